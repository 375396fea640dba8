// The k highest of many keys by one block, without sorting: equal keys from the lowest index on.
#pragma once

#include "device.cuh"

namespace ssdkern {

// Unsigned integers that order as numbers do: -0 as +0, NaN highest. No number gives 0.
__device__ __forceinline__ unsigned order_key(float value) {
  if (value != value) return 0xffffffff;
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000;
}
__device__ __forceinline__ unsigned long long order_key(double value) {
  if (value != value) return ~0ull;
  const unsigned long long bits = __double_as_longlong(value + 0.0);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}

template <typename S>
using OrderKey = decltype(order_key(S()));

__device__ __forceinline__ int bit_length(unsigned value) { return 32 - __clz(value); }
__device__ __forceinline__ int bit_length(unsigned long long value) { return 64 - __clzll(value); }

// The inclusive sum over this lane and the higher ones.
__device__ __forceinline__ unsigned suffix_sum(unsigned value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const unsigned other = __shfl_down_sync(kAllLanes, value, delta);
    if (lane + delta < 32) value += other;
  }
  return value;
}

// What is taken: keys above `key`, and those equal to it up to `index`.
template <typename Key>
struct Cut {
  Key key;
  int index;
  __device__ bool takes(Key other, int at) const {
    return other > key || (other == key && at <= index);
  }
};

// In shared memory; for LISTS lists at once, each thread of the block visiting keys of one of them.
// Each pass spreads the interval that holds the k-th key over kBins bins and goes on in its bin;
// where that is a single key, among the indices of this key.
template <typename Key, int LISTS>
struct Select {
  static constexpr int kBins = 1024;
  static constexpr int kAll = 0x7fffffff;

  unsigned histogram[LISTS][kBins];
  Key low[LISTS], high[LISTS];
  int need[LISTS];  // of the keys in [low, high]; 0 where the list is settled
  bool by_index[LISTS];
  Cut<Key> cut[LISTS];

  // By one thread for each list: all of its keys lie in [lowest, highest].
  __device__ void start(int list, Key lowest, Key highest) {
    low[list] = lowest, high[list] = highest;
    by_index[list] = false;
  }
  // By one thread for each list, after that: the `wanted` highest of `count` keys.
  __device__ void want(int list, int wanted, int count) {
    need[list] = wanted < count && wanted > 0 ? wanted : 0;
    cut[list] = wanted > 0 ? Cut<Key>{low[list], kAll} : Cut<Key>{Key(~Key(0)), -1};
  }

  // By the whole block.
  __device__ void clear() {
    unsigned* const bins = &histogram[0][0];
    for (int i = threadIdx.x; i < LISTS * kBins; i += blockDim.x) bins[i] = 0;
  }

  // visit(key, index) that counts keys of list `mine`, or where it is tied the indices of one key;
  // indices are below `size`.
  __device__ auto counter(int mine, bool tied, int size) {
    const Key from = low[mine], range = high[mine] - from, equal = tied ? cut[mine].key : Key(0);
    return [=, bins = histogram[mine], shift = shift_of(range)](Key key, int index) {
      if (tied && key != equal) return;
      const Key place = (tied ? Key(size - 1 - index) : key) - from;
      if (place <= range) atomicAdd(&bins[place >> shift], 1);
    };
  }

  // By the whole block, with a barrier between `want` and this: settles `cut`. `each` calls
  // visit(key, index) for the keys of list `mine` that this thread looks after. Up to `slack` keys
  // more than wanted may be taken. `counted` where all keys have been counted since `start`.
  template <typename Each>
  __device__ void run(int mine, int size, int slack, Each each, bool counted = false) {
    for (; __syncthreads_or(threadIdx.x < LISTS && need[threadIdx.x % LISTS] > 0);
         counted = false) {
      if (!counted) {
        clear();
        __syncthreads();
        if (need[mine] > 0) each(counter(mine, by_index[mine], size));
        __syncthreads();
      }
      const int list = threadIdx.x / 32;
      if (list < LISTS && need[list] > 0) narrow(list, size, slack);
      __syncthreads();
    }
  }

 private:
  __device__ static int shift_of(Key range) {
    const int bits = bit_length(range);
    return bits > 10 ? bits - 10 : 0;
  }

  // By a warp: goes on in the bin that holds the need-th highest key.
  __device__ void narrow(int list, int size, int slack) {
    const unsigned* bins = histogram[list];
    const int lane = threadIdx.x % 32;
    unsigned wanted = need[list], sum = 0;
#pragma unroll
    for (int i = 0; i < 32; ++i) sum += bins[lane * 32 + (i + lane) % 32];  // no bank conflicts
    unsigned above = suffix_sum(sum);
    const int chunk = 31 - __clz(__ballot_sync(kAllLanes, above >= wanted));
    wanted -= __shfl_sync(kAllLanes, above - sum, chunk);
    sum = bins[chunk * 32 + lane];
    above = suffix_sum(sum);
    const int last = 31 - __clz(__ballot_sync(kAllLanes, above >= wanted));
    wanted -= __shfl_sync(kAllLanes, above - sum, last);
    const unsigned inside = __shfl_sync(kAllLanes, sum, last);
    __syncwarp();  // all lanes have read what the first one writes
    if (lane != 0) return;

    const int shift = shift_of(high[list] - low[list]);
    const Key from = low[list] + (Key(chunk * 32 + last) << shift);
    const bool settled = inside - wanted <= unsigned(slack);
    need[list] = settled ? 0 : wanted;
    if (by_index[list]) {
      if (settled) cut[list].index = size - 1 - int(from);
    } else {
      cut[list].key = from;
    }
    if (settled || shift > 0) {
      high[list] = from + min(Key(high[list] - from), Key((Key(1) << shift) - 1));
      low[list] = from;
    } else {  // more keys equal to `from` than are wanted
      by_index[list] = true;
      low[list] = 0, high[list] = size - 1;
    }
  }
};

// The `wanted` highest of the keys that are not 0: by the whole block.
template <typename Key>
__device__ Cut<Key> take_highest(Select<Key, 1>& select, const Key* keys, int size, int wanted,
                                 int count, Key lowest, Key highest) {
  if (threadIdx.x == 0) select.start(0, lowest, highest), select.want(0, wanted, count);
  __syncthreads();
  select.run(0, size, 0, [&](auto visit) {
    for (int i = threadIdx.x; i < size; i += blockDim.x)
      if (keys[i] != 0) visit(keys[i], i);
  });
  return select.cut[0];
}

}  // namespace ssdkern
