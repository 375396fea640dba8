// Selection of an image's hard negatives, without sorting them.
#pragma once

#include <cmath>
#include <limits>

#include "order.h"
#include "tensors.h"

namespace ssdkern {

inline void check_ratio(double neg_pos_ratio) {
  STD_TORCH_CHECK(neg_pos_ratio >= 0 && neg_pos_ratio <= 1e6, "want 0 <= neg_pos_ratio <= 1e6, ",
                  "got ", neg_pos_ratio);
}

// Of keys in any order, leaves the `count` first ones in some order. A histogram of their upper
// bits finds those that are surely in; only the last bin is partitioned.
template <typename K>
void partition_first(std::vector<K>& keys, int64_t count) {
  if (int64_t(keys.size()) <= count) return;
  constexpr int kShift = 8 * sizeof(K) - 11;
  int64_t bins[2048] = {};
  for (const K key : keys) ++bins[uint32_t(key >> kShift)];
  uint32_t last = 0;
  int64_t before = 0;
  while (before + bins[last] < count) before += bins[last++];
  const auto edge = std::partition(keys.begin(), keys.end(),
                                   [&](K key) { return uint32_t(key >> kShift) < last; });
  const auto end =
      std::partition(edge, keys.end(), [&](K key) { return uint32_t(key >> kShift) == last; });
  if (count > before) std::nth_element(edge, edge + (count - before) - 1, end);
  keys.resize(count);
}

// Marks min(int(ratio * positives), candidates) priors of highest loss, NaN first, equal losses
// from the lowest prior on. A positive, or a loss of -inf, is no candidate.
template <typename S>
void mark_hardest(const S* loss, const bool* positive, int64_t priors, double neg_pos_ratio,
                  bool* hardest) {
  std::fill(hardest, hardest + priors, false);
  const int64_t wanted =
      int64_t(double(std::count(positive, positive + priors, true)) * neg_pos_ratio);
  if (wanted == 0) return;
  std::vector<Key<S>> keys;
  keys.reserve(priors);
  for (int64_t i = 0; i < priors; ++i)
    if (!positive[i] && loss[i] != -std::numeric_limits<S>::infinity())
      keys.push_back(make_key(loss[i], uint32_t(i)));
  partition_first(keys, wanted);
  for (const auto key : keys) hardest[index_of<S>(key)] = true;
}

}  // namespace ssdkern
