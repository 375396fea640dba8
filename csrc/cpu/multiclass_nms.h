// Included by isa.h, once per instruction set.

// The lanes of `mask` as candidates of the classes from `label` on.
template <typename S>
SSDKERN_INLINE int64_t append(uint32_t mask, Vec<S> scores, int64_t prior, int64_t label,
                              Key<S>* keys, int32_t* labels, int64_t count) {
  S lanes[kLanes];
  store(lanes, scores);
  for (; mask; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    keys[count] = make_key(lanes[lane], uint32_t(prior));
    labels[count++] = int32_t(label + lane);
  }
  return count;
}

// The candidates of `count` priors from `prior` on, in order; `scores` [count, classes].
template <typename T, typename S>
int64_t scan_scores(const T* scores, int64_t prior, int64_t count, int64_t classes, S threshold,
                    Key<S>* keys, int32_t* labels) {
  int64_t found = 0;
  const auto bound = splat(threshold);
  const S nothing = S(__builtin_nan(""));
  for (int64_t row = 0; row < count; ++row, scores += classes)
    for (int64_t c = 1; c < classes; c += kLanes) {
      const int left = int(std::min<int64_t>(kLanes, classes - c));
      const auto score = load_part_as(scores + c, left, nothing);
      const uint32_t mask = bits(score > bound);
      if (mask) found = append(mask, score, prior + row, c, keys, labels, found);
    }
  return found;
}
