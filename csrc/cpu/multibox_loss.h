// Included by isa.h, once per instruction set.
#include "encode_boxes.h"
#include "mine_hard_negatives.h"

// Of up to kLanes rows of logits the highest, and the logarithm of the sum of exp(x - highest):
// added up they would lose digits that a cross-entropy wants.
template <typename S>
struct LogSums {
  Vec<S> peak, log_sum;
};

// Whatever the logits are.
template <typename T, typename S>
SSDKERN_INLINE LogSums<S> careful_log_sums(const T* logits, int rows, int64_t classes) {
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
  return {load(most), log(load(total))};
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

// In one pass, the highest being taken for 0, and whether that holds: where logits are neither
// large nor small, and so neither are their sums.
template <typename T>
SSDKERN_INLINE bool plain_log_sums(const T* x, int rows, int64_t classes, LogSums<float>& out) {
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
  out = {splat(0.0f), log(sums)};
  const auto fits = (sums > splat(1e-10f)) & (splat(1e10f) > sums);  // false for NaN
  return bits(fits & (splat(88.0f) > most) & (least > splat(-87.3f))) == 0xffff;
}

// Whether a row takes the plain way hangs on its own logits alone: equal rows give equal bits,
// whatever lies beside them.
template <typename T, typename S>
SSDKERN_INLINE void log_sums(const T* x, int rows, int64_t classes, S* peak, S* log_sum) {
  LogSums<S> found;
  const auto put = [&](int row, int count) {
    store_part(peak + row, found.peak, count);
    store_part(log_sum + row, found.log_sum, count);
  };
  if constexpr (std::is_same_v<S, float>) {
    if (plain_log_sums(x, rows, classes, found)) return put(0, rows);
    for (int row = 0; row < rows; ++row, x += classes) {
      if (!plain_log_sums(x, 1, classes, found)) found = careful_log_sums<T, S>(x, 1, classes);
      put(row, 1);
    }
  } else {
    found = careful_log_sums<T, S>(x, rows, classes);
    put(0, rows);
  }
}

// Of each of `count` rows of `logits` [count, classes].
template <typename T, typename S>
void log_sums_rows(const T* logits, int64_t count, int64_t classes, S* peak, S* log_sum) {
  for (int64_t first = 0; first < count; first += kLanes)
    log_sums(logits + first * classes, int(std::min<int64_t>(kLanes, count - first)), classes,
             peak + first, log_sum + first);
}

// The gradient of one selected row: (softmax - one at `label`) * scale.
template <typename T, typename S>
void softmax_gradient(const T* logits, int64_t classes, int64_t label, S scale, T* out) {
  S peak[kLanes], log_sum[kLanes];
  log_sums(logits, 1, classes, peak, log_sum);
  for (int64_t c = 0; c < classes; c += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, classes - c));
    const auto x = load_part_as(logits + c, left, S(0)) - splat(peak[0]);
    S lanes[kLanes];
    store(lanes, exp(x - splat(log_sum[0])));
    if (label >= c && label < c + left) lanes[label - c] -= S(1);
    store_part_as(out + c, load(lanes) * splat(scale), left);
  }
}
