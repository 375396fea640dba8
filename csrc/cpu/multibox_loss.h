// Included by isa.h, once per instruction set.
#include "encode_boxes.h"

// logsumexp of each of `count` rows of `logits` [count, classes]: one read, two passes in cache.
template <typename T, typename S>
void log_sum_exp_rows(const T* logits, int64_t count, int64_t classes, S* lse) {
  const S lowest = -S(__builtin_inf());
  S most[kLanes], total[kLanes];
  for (int64_t first = 0; first < count; first += kLanes) {
    const int rows = int(std::min<int64_t>(kLanes, count - first));
    const T* x = logits + first * classes;
    for (int row = 0; row < rows; ++row, x += classes) {
      auto top = splat(lowest);
      for (int64_t c = 0; c < classes; c += kLanes)
        top = max(top, load_part_as(x + c, int(std::min<int64_t>(kLanes, classes - c)), lowest));
      most[row] = highest(top);
    }
    // in a loop of its own: it need not wait for the maximum of its row
    x = logits + first * classes;
    for (int row = 0; row < rows; ++row, x += classes) {
      const auto shift = splat(most[row]);
      auto sums = splat(S(0));
      for (int64_t c = 0; c < classes; c += kLanes) {
        const int left = int(std::min<int64_t>(kLanes, classes - c));
        __builtin_prefetch(x + c + kLanes * classes);  // the rows that the next maxima wait for
        sums = sums + exp(load_part_as(x + c, left, lowest) - shift);  // 0 where there is no class
      }
      total[row] = sum(sums);
    }
    for (int row = rows; row < kLanes; ++row) most[row] = total[row] = S(1);
    store_part(lse + first, load(most) + log(load(total)), rows);
  }
}

// The gradient of one selected row: (softmax - one at `label`) * scale.
template <typename T, typename S>
void softmax_gradient(const T* logits, int64_t classes, int64_t label, S lse, S scale, T* out) {
  for (int64_t c = 0; c < classes; c += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, classes - c));
    const auto p = exp(load_part_as(logits + c, left, S(0)) - splat(lse));
    S lanes[kLanes];
    store(lanes, p);
    for (int i = 0; i < left; ++i) {
      const S target = c + i == label ? S(1) : S(0);
      out[c + i] = T((lanes[i] - target) * scale);
    }
  }
}
