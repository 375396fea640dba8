// Bitonic sorts, and a key with its index in one number.
#pragma once

#include "select.cuh"

namespace ssdkern {

__extension__ typedef unsigned __int128 Wide;

// Descends as the key descends and the index ascends.
template <typename S>
using Packed = std::conditional_t<sizeof(S) == 8, Wide, unsigned long long>;

template <typename S>
__device__ __forceinline__ Packed<S> pack(OrderKey<S> key, int index) {
  return Packed<S>(key) << 32 | unsigned(~index);
}
template <typename S>
__device__ __forceinline__ OrderKey<S> key_of(Packed<S> packed) {
  return OrderKey<S>(packed >> 32);
}
template <typename P>
__device__ __forceinline__ int index_of(P packed) {
  return ~int(unsigned(packed));
}

// The number that gave the key.
__device__ __forceinline__ float number_of(unsigned key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffff : ~key);
}
__device__ __forceinline__ double number_of(unsigned long long key) {
  return __longlong_as_double(key >> 63 ? key & ~(1ull << 63) : ~key);
}

inline int64_t power_of_two(int64_t least) {
  int64_t size = 32;
  while (size < least) size *= 2;
  return size;
}

// Sorts `count` items descending, by `threads` threads that meet in `sync`. There is room for the
// next power of two of items. A thread reads some pairs before it writes the first: the compiler
// cannot tell that a store is not where the next load is.
template <typename P, typename Sync>
__device__ void bitonic_sort(P* items, int count, int thread, int threads, Sync sync) {
  constexpr int kPairs = 4;
  int size = 1;
  while (size < count) size *= 2;
  for (int i = count + thread; i < size; i += threads) items[i] = 0;
  sync();
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
#pragma unroll 1
      for (int first = thread; first < size / 2; first += kPairs * threads) {
        P a[kPairs], b[kPairs];
        const auto place = [&](int k) {
          const int i = first + k * threads;
          return 2 * i - (i & (step - 1));
        };
#pragma unroll
        for (int k = 0; k < kPairs; ++k)
          if (const int low = place(k); low < size) a[k] = items[low], b[k] = items[low + step];
#pragma unroll
        for (int k = 0; k < kPairs; ++k)
          if (const int low = place(k); low < size && (a[k] < b[k]) == ((low & run) == 0))
            items[low] = b[k], items[low + step] = a[k];
      }
      sync();
    }
  }
}

}  // namespace ssdkern
