// Included by isa.h, once per instruction set.
#include "encode_boxes.h"
#include "mine_hard_negatives.h"

// logsumexp of up to kLanes rows of `logits` [rows, classes], whatever the logits are.
template <typename T, typename S>
SSDKERN_INLINE Vec<S> log_sum_exp(const T* logits, int rows, int64_t classes) {
  const S lowest = -S(__builtin_inf());
  S most[kLanes], total[kLanes];
  const T* x = logits;
  for (int row = 0; row < rows; ++row, x += classes) {
    auto top = splat(lowest);
    for (int64_t c = 0; c < classes; c += kLanes)
      top = max(top, load_part_as(x + c, int(std::min<int64_t>(kLanes, classes - c)), lowest));
    most[row] = highest(top);
  }
  // in a loop of its own: it need not wait for the maximum of its row
  x = logits;
  for (int row = 0; row < rows; ++row, x += classes) {
    auto sums = splat(S(0));
    for (int64_t c = 0; c < classes; c += kLanes) {
      const int left = int(std::min<int64_t>(kLanes, classes - c));
      sums = sums + exp(load_part_as(x + c, left, lowest) - splat(most[row]));
    }
    total[row] = sum(sums);
  }
  for (int row = rows; row < kLanes; ++row) most[row] = total[row] = S(1);
  return load(most) + log(load(total));
}

// 2^n p(f), |f| <= 1/2, for x in [-87.3, 88]: within 3 ulp and one more for each unit of |x|.
SSDKERN_INLINE Vec<float> rough_exp(Vec<float> x) {
  x = x * splat(1.44269504f);
  const auto magic = splat(12583039.0f);  // 1.5 * 2^23 + 127: rounds, and biases the exponent
  const auto shifted = x + magic;
  const auto f = x - (shifted - magic);
  auto p = splat(0.00132764725f);
  p = p * f + splat(0.00967554096f);
  p = p * f + splat(0.0555071309f);
  p = p * f + splat(0.240221202f);
  p = p * f + splat(0.693146944f);
  p = p * f + splat(1.00000012f);
  return p * as_vec(shift_left(as_ints(shifted), 23));
}

// logsumexp of up to kLanes rows in one pass, and whether it holds: where logits are neither large
// nor small, and so neither are their sums.
template <typename T>
SSDKERN_INLINE bool plain_log_sum_exp(const T* x, int rows, int64_t classes, Vec<float>& out) {
  auto most = splat(0.0f), least = splat(0.0f);
  float total[kLanes];
  for (int row = 0; row < kLanes; ++row) total[row] = 1;
  for (int row = 0; row < rows; ++row, x += classes) {
    auto sums = splat(0.0f);
    for (int64_t c = 0; c < classes; c += kLanes) {
      const int left = int(std::min<int64_t>(kLanes, classes - c));
      const auto logits = load_part_as(x + c, left, -87.0f);  // adds 1e-38 where there is no class
      __builtin_prefetch(x + c + 512);
      most = max(most, logits);
      least = min(least, logits);
      sums = sums + rough_exp(logits);
    }
    total[row] = sum(sums);
  }
  const auto sums = load(total);
  out = log(sums);
  const auto fits = (sums > splat(1e-10f)) & (splat(1e10f) > sums);  // false for NaN
  return bits(fits & (splat(88.0f) > most) & (least > splat(-87.3f))) == 0xffff;
}

// logsumexp of up to kLanes rows. Whether a row takes the plain way hangs on its own logits alone:
// equal rows give equal bits, whatever lies beside them.
template <typename T, typename S>
SSDKERN_INLINE void log_sum_exp_lanes(const T* x, int rows, int64_t classes, S* lse) {
  if constexpr (std::is_same_v<S, float>) {
    Vec<S> found;
    if (plain_log_sum_exp(x, rows, classes, found)) return store_part(lse, found, rows);
    for (int row = 0; row < rows; ++row, x += classes) {
      if (!plain_log_sum_exp(x, 1, classes, found)) found = log_sum_exp<T, S>(x, 1, classes);
      store_part(lse + row, found, 1);
    }
  } else {
    store_part(lse, log_sum_exp<T, S>(x, rows, classes), rows);
  }
}

// logsumexp of each of `count` rows of `logits` [count, classes].
template <typename T, typename S>
void log_sum_exp_rows(const T* logits, int64_t count, int64_t classes, S* lse) {
  for (int64_t first = 0; first < count; first += kLanes)
    log_sum_exp_lanes(logits + first * classes, int(std::min<int64_t>(kLanes, count - first)),
                      classes, lse + first);
}

// The gradient of one selected row: (softmax - one at `label`) * scale.
template <typename T, typename S>
void softmax_gradient(const T* logits, int64_t classes, int64_t label, S lse, S scale, T* out) {
  for (int64_t c = 0; c < classes; c += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, classes - c));
    S lanes[kLanes];
    store(lanes, exp(load_part_as(logits + c, left, S(0)) - splat(lse)));
    if (label >= c && label < c + left) lanes[label - c] -= S(1);
    store_part_as(out + c, load(lanes) * splat(scale), left);
  }
}
