// Maximum and sum of exponentials of rows of logits. A block brings its rows into shared memory, by
// 16-byte loads whatever their length, and LANES lanes read each there: a third of the instructions
// of a warp that reads rows from global memory, which took longer to issue than the rows to come.
#pragma once

#include "coding.cuh"

namespace ssdkern {

constexpr int kRowThreads = 128, kMostLanes = 16, kTileBytes = 24 << 10;

// map(x) of all x of a row from `begin` on, combined: in four chains of each lane, then of the
// lanes, which all get the result. `none` is what combine starts from.
template <int LANES, typename S, typename T, typename Map, typename Combine>
__device__ S reduce_row(const T* row, int begin, int end, S none, Map map, Combine combine) {
  S parts[4] = {none, none, none, none};
  const T* x = row + begin + threadIdx.x % LANES;
  int left = end - begin - threadIdx.x % LANES;
#pragma unroll 1
  for (; left > 3 * LANES; left -= 4 * LANES, x += 4 * LANES) {
#pragma unroll
    for (int i = 0; i < 4; ++i) parts[i] = combine(parts[i], map(S(x[i * LANES])));
  }
#pragma unroll
  for (int i = 0; i < 3; ++i)
    if (left > i * LANES) parts[i] = combine(parts[i], map(S(x[i * LANES])));
  S all = combine(combine(parts[0], parts[1]), combine(parts[2], parts[3]));
#pragma unroll
  for (int d = LANES / 2; d > 0; d /= 2) all = combine(all, __shfl_xor_sync(kAllLanes, all, d));
  return all;
}

// A NaN loses.
template <int LANES, typename S, typename T>
__device__ S row_max(const T* row, int begin, int end) {
  return reduce_row<LANES, S>(
      row, begin, end, -S(INFINITY), [](S x) { return x; }, [](S a, S b) { return fmax(a, b); });
}

template <int LANES, typename S, typename T>
__device__ S row_sum(const T* row, int num_classes, S max) {
  const S from = max == -S(INFINITY) ? S(0) : max;
  return reduce_row<LANES, S>(
      row, 0, num_classes, S(0), [from](S x) { return sum_exp(x - from); },
      [](S a, S b) { return a + b; });
}

// The rows of a block: as many as it has threads, over LANES.
template <int LANES, typename T>
struct Tile {
  static constexpr int kLanes = LANES, kRows = kRowThreads / LANES;
  static_assert(kRows * sizeof(T) % 16 == 0, "every tile begins where 16-byte loads can");

  const T* logits;
  int64_t num_rows;
  int num_classes;
  bool staged;  // false where not even kMostLanes make it fit: they read global memory

  __device__ int64_t row() const { return int64_t(blockIdx.x) * kRows + threadIdx.x / LANES; }
  // Beyond the end a thread follows the last row: shuffles need all lanes.
  __device__ int64_t row_or_last() const { return min(row(), num_rows - 1); }
  // Of each row one thread writes the results.
  __device__ bool writes() const { return row() < num_rows && threadIdx.x % LANES == 0; }

  // By the whole block: where the logits of this thread's row_or_last() lie. `memory` has room for
  // them.
  __device__ const T* load(void* memory) const {
    if (LANES == kMostLanes && !staged) return logits + row_or_last() * num_classes;
    struct alignas(16) Step {
      T values[16 / sizeof(T)];
    };
    constexpr int kStep = 16 / sizeof(T), kAhead = 6;
    const int64_t first = int64_t(blockIdx.x) * kRows;
    const int size = int(min(int64_t(kRows), num_rows - first)) * num_classes, steps = size / kStep;
    const T* const from = logits + first * num_classes;
    T* const tile = static_cast<T*>(memory);
#pragma unroll 1
    for (int base = threadIdx.x; base < steps; base += kRowThreads * kAhead) {
      Step ahead[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (const int at = base + i * kRowThreads; at < steps)
          ahead[i] = reinterpret_cast<const Step*>(from)[at];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (const int at = base + i * kRowThreads; at < steps)
          reinterpret_cast<Step*>(tile)[at] = ahead[i];
    }
#pragma unroll 1
    for (int i = steps * kStep + threadIdx.x; i < size; i += kRowThreads) tile[i] = from[i];
    __syncthreads();
    return tile + int(row_or_last() - first) * num_classes;
  }
};

// Calls f(tile, blocks, bytes of shared memory) with as few lanes a row as let the rows fit, and
// the lanes of a warp find their words in different banks.
template <typename T, typename F>
void with_tile(const T* logits, int64_t num_rows, int num_classes, F f) {
  const int64_t row_bytes = int64_t(num_classes) * sizeof(T);
  const auto bytes = [&](int lanes) { return kRowThreads / lanes * row_bytes; };
  const auto call = [&](auto lanes) {
    using Rows = Tile<lanes.value, T>;
    const bool fits = bytes(lanes.value) <= kTileBytes;
    f(Rows{logits, num_rows, num_classes, fits}, ceil_div(num_rows, int64_t(Rows::kRows)),
      fits ? bytes(lanes.value) : 0);
  };
  using std::integral_constant;
  if (row_bytes % 8 != 0 && bytes(1) <= kTileBytes) return call(integral_constant<int, 1>());
  if (row_bytes % 16 != 0 && bytes(2) <= kTileBytes) return call(integral_constant<int, 2>());
  if (bytes(8) <= kTileBytes) return call(integral_constant<int, 8>());
  call(integral_constant<int, kMostLanes>());
}

}  // namespace ssdkern
