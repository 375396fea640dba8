// Included by isa.h, once per instruction set.
#include "decode_boxes.h"
#include "multiclass_nms.h"

// Whether a class can pass: p > t implies x - x[0] > log(t / (1 - t)), which is `margin` less slack
// for rounding. A row without such a class needs no exp.
template <typename T, typename S>
SSDKERN_INLINE bool may_pass(const T* row, int64_t classes, const T* end, S margin) {
  const S background = S(row[0]);
  const S slack = S(1e-6) * (background < S(0) ? -background : background);
  const auto bound = splat(background + margin - slack);
  for (int64_t c = 1; c < classes; c += kLanes) {
    const int left = int(std::min<int64_t>(kLanes, classes - c));
    if (row + c + kLanes <= end) {  // the lanes past this row belong to the next
      uint32_t above = bits(load_as(row + c) > bound);
      if (above & (uint32_t(-1) >> (32 - left))) return true;
    } else if (bits(load_part_as(row + c, left, S(__builtin_nan(""))) > bound)) {
      return true;
    }
  }
  return false;
}

// The candidates of `count` priors from `prior` on, in order; `logits` [count, classes] lie in
// memory that ends at `end`. `scratch` holds classes + 15 values.
template <typename T, typename S>
int64_t scan_logits(const T* logits, const T* end, int64_t prior, int64_t count, int64_t classes,
                    S threshold, S margin, S* scratch, Key<S>* keys, int32_t* labels) {
  int64_t found = 0;
  const S lowest = -S(__builtin_inf());
  for (int64_t row = 0; row < count; ++row, logits += classes) {
    if (threshold >= S(0) && !may_pass(logits, classes, end, margin)) continue;
    auto top = splat(lowest);
    for (int64_t c = 0; c < classes; c += kLanes) {
      const int left = int(std::min<int64_t>(kLanes, classes - c));
      const auto x = load_part_as(logits + c, left, lowest);
      top = max(top, x);
      store(scratch + c, x);
    }
    const S most = highest(top);
    auto total = splat(S(0));
    for (int64_t c = 0; c < classes; c += kLanes) {
      const auto e = exp(load(scratch + c) - splat(most));  // 0 where there is no class
      store(scratch + c, e);
      total = total + e;
    }
    const auto whole = splat(sum(total));
    for (int64_t c = 0; c < classes; c += kLanes) {
      const int left = int(std::min<int64_t>(kLanes, classes - c));
      const auto score = load(scratch + c) / whole;
      uint32_t mask = bits(score > splat(threshold)) & (uint32_t(-1) >> (32 - left));
      if (c == 0) mask &= ~1u;
      if (mask) found = append(mask, score, prior + row, c, keys, labels, found);
    }
  }
  return found;
}
