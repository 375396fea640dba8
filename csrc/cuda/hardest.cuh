// The hard negatives of an image, selected by one block: nothing is sorted.
#pragma once

#include "reduce.cuh"
#include "select.cuh"

namespace ssdkern {

// What a thread has seen of an image's priors.
template <typename Key>
struct Seen {
  int positives = 0, candidates = 0;
  Key lowest = ~Key(0), highest = 0;

  // The key of a candidate.
  template <typename S>
  __device__ Key candidate(S loss) {
    const Key key = order_key(loss);
    ++candidates;
    lowest = min(lowest, key), highest = max(highest, key);
    return key;
  }
};

// In shared memory.
template <typename Key>
struct Hardest {
  Select<Key, 1> select;
  Key key_parts[32];
  int counts[32];

  // By the whole block, with what each thread has seen, to which it adds up. Of the keys, those of
  // candidates are not 0.
  __device__ Cut<Key> find(const Key* keys, int num_priors, double neg_pos_ratio, Seen<Key>& seen) {
    seen.positives = block_sum(seen.positives, counts);
    seen.candidates = block_sum(seen.candidates, counts);
    seen.lowest = block_reduce(seen.lowest, key_parts, [](Key a, Key b) { return min(a, b); });
    seen.highest = block_reduce(seen.highest, key_parts, [](Key a, Key b) { return max(a, b); });
    const double wanted = seen.positives * neg_pos_ratio;
    const int take = wanted < seen.candidates ? int(wanted) : seen.candidates;
    return take_highest(select, keys, num_priors, take, seen.candidates, seen.lowest, seen.highest);
  }
};

}  // namespace ssdkern
