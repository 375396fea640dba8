// Greedy suppression of one long list, also within groups. Panels of kPanel boxes follow each
// other: tiles of 128 x 128 pairs give bit masks; one block settles the panel, 128 boxes at a time;
// what it keeps suppresses among all later boxes.
#pragma once

#include "nms_order.cuh"
#include "overlap.cuh"

namespace ssdkern {

constexpr int64_t kMostBoxes = (1 << 30) - 1;
constexpr int kTile = 128, kWords = kTile / 32, kPanelTiles = kPanel / kTile;
constexpr int kSlots = kPanelTiles + 2;  // of a row: from the tile before its own to the last
constexpr int kRows = 16, kSettleThreads = 32 + kTile / kRows * kPanelTiles;
constexpr int kApplyThreads = 256, kApplyRows = 512;

// One for each box of a tile.
struct alignas(16) Bits {
  unsigned words[kWords];
};

// Bits of the pairs of a panel: mask[row][slot] has those of a tile's boxes that the row
// suppresses; of the row's own tile, slot 1, and the one before, slot 0, those that suppress it.
template <typename S, bool GROUPED>
__global__ void __launch_bounds__(kTile)
    tile_kernel(Sorted<S> sorted, int first, int count, Limit<S> limit, Bits* mask) {
  __shared__ Box<S> columns[kTile];
  alignas(16) __shared__ S shares[kTile];
  __shared__ int64_t groups[GROUPED ? kTile : 1];
  // row tile y has columns from y - 1 on; those of y and tiles - 1 - y fill a rectangle's row
  const int tiles = (count + kTile - 1) / kTile, y = blockIdx.x / (tiles + 3);
  const int x = blockIdx.x % (tiles + 3);
  const bool upper = x <= tiles - y;
  const int row_tile = upper ? y : tiles - 1 - y, column_tile = upper ? y - 1 + x : x - 3;
  if (column_tile < 0) return;
  const int thread = threadIdx.x, row = row_tile * kTile + thread;
  const int column = first + min(column_tile * kTile + thread, count - 1);
  columns[thread] = sorted.boxes[column];
  shares[thread] = limit.share(area(columns[thread]));
  if (GROUPED) groups[thread] = sorted.groups[column];
  __syncthreads();

  Bits bits = {};
  bool active = row < count && !(sorted.removed[(first + row) / 32] >> row % 32 & 1);
  const int64_t group = GROUPED && active ? sorted.groups[first + row] : 0;
  if (GROUPED) active = active && groups[0] <= group && group <= groups[kTile - 1];
  if (active) {
    const Box<S> box = sorted.boxes[first + row];
    const S box_area = area(box), share = limit.share(box_area);
#pragma unroll 1
    for (int from = 0; from < kTile; from += 32) {
      unsigned word = limit.suspects(box, share, columns + from, shares + from);
      if (row_tile == column_tile) word &= (1ull << max(0, min(32, thread - from))) - 1;
      for (unsigned rest = word; rest != 0; rest &= rest - 1) {
        const int i = from + __ffs(rest) - 1;
        const Box<S> other = columns[i];
        if ((GROUPED && groups[i] != group) ||
            !limit.exceeded(overlap(box, other), box_area, area(other)))
          word ^= rest & -rest;
      }
      bits = {bits.words[1], bits.words[2], bits.words[3], word};
    }
  }
  mask[row * kSlots + column_tile - row_tile + 1] = bits;
}

__device__ __forceinline__ unsigned common(const Bits& a, const Bits& b) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kWords; ++i) bits |= a.words[i] & b.words[i];
  return bits;
}

// Of a tile's boxes those that are kept, by a warp. A lane has the suppressors of every 32nd box:
// in the tile before, where `last` was kept, and in its own. Among 32 boxes it is the one solution
// of "a box stays unless a kept, earlier box suppresses it", reached from anywhere in as many steps
// as the longest chain has.
__device__ __forceinline__ Bits settle_tile(Bits gone, const Bits& last, const Bits* before,
                                            const Bits* own) {
  const int lane = threadIdx.x % 32;
  unsigned dead[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) dead[i] = (gone.words[i] >> lane & 1) | common(before[i], last);
  Bits keep = {};
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const bool alive = (dead[i] | common(own[i], keep)) == 0;
    unsigned now = __ballot_sync(kAllLanes, alive);
    do {
      keep.words[i] = now;
      now = __ballot_sync(kAllLanes, alive && (own[i].words[i] & now) == 0);
    } while (now != keep.words[i]);
  }
  return keep;
}

// Indices of the kept boxes in the order of scores; `ends` is shared memory for a count a thread.
template <typename S>
__device__ void write_result(const Sorted<S>& sorted, int total, int* ends) {
  const unsigned* kept = sorted.kept_by_rank ? sorted.kept_by_rank : sorted.kept;
  const int words = (total + 31) / 32, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t done = 0;
  for (int base = 0; base < words; base += kSettleThreads) {
    const int size = min(kSettleThreads, words - base);
    int sum = threadIdx.x < size ? __popc(kept[base + threadIdx.x]) : 0;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, d);
      if (lane >= d) sum += other;
    }
    __syncthreads();
    ends[threadIdx.x] = sum;  // within the warp
    __syncthreads();
    int before = 0;
    for (int w = 0; w < warp; ++w) before += ends[w * 32 + 31];
    __syncthreads();
    ends[threadIdx.x] = sum + before;
    __syncthreads();
    for (int word = warp; word < size; word += kSettleThreads / 32) {
      const unsigned bits = kept[base + word], lower = bits & ((1u << lane) - 1);
      if (bits >> lane & 1)
        sorted.result[done + ends[word] - __popc(bits) + __popc(lower)] =
            sorted.index[int64_t(base + word) * 32 + lane];
    }
    done += ends[kSettleThreads - 1];
  }
  if (threadIdx.x == 0) *sorted.count = done;
}

// Of 32 boxes the bits of those that do not exist or were removed by an earlier panel.
template <typename S>
__device__ unsigned absent(const Sorted<S>& sorted, int first, int count, int word) {
  const int size = count - word * 32;
  if (size <= 0) return ~0u;
  return sorted.removed[first / 32 + word] | (size < 32 ? ~0u << size : 0);
}

// One block. The first warp settles tiles, its next words on their way meanwhile; the others pass
// on what the tile before suppresses, each thread for some of its rows in one later tile. Only rows
// that were kept are read.
template <typename S>
__global__ void __launch_bounds__(kSettleThreads)
    settle_kernel(Sorted<S> sorted, int first, int count, const Bits* mask, int total) {
  __shared__ Bits kept[kPanelTiles], gone[kPanelTiles];
  __shared__ int ends[kSettleThreads];
  const int tiles = (count + kTile - 1) / kTile, worker = int(threadIdx.x) - 32;
  const int part = worker / kPanelTiles, ahead = worker % kPanelTiles;
  const bool settles = worker < 0;
  const Bits* at = mask + (settles ? threadIdx.x * kSlots : part * kRows * kSlots + ahead + 3);
  Bits before[kWords], own[kWords], last = {};
  const auto load = [&] {
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      before[i] = at[i * 32 * kSlots], own[i] = at[i * 32 * kSlots + 1];
  };
  if (settles) load();
  for (int i = threadIdx.x; i < tiles * kWords; i += kSettleThreads)
    gone[i / kWords].words[i % kWords] = absent(sorted, first, count, i);
  __syncthreads();
  for (int tile = 0; tile < tiles; ++tile) {
    const int column = tile + 1 + ahead;
    if (settles) {
      Bits now_before[kWords], now_own[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) now_before[i] = before[i], now_own[i] = own[i];
      at += kTile * kSlots;
      if (tile + 1 < tiles) load();
      last = settle_tile(gone[tile], last, now_before, now_own);
      if (threadIdx.x == 0) kept[tile] = last;
    } else if (tile > 0) {
      const unsigned rows = kept[tile - 1].words[part / 2] >> part % 2 * kRows;
      if (column < tiles) {
        Bits found[kRows], sum = {};
#pragma unroll
        for (int i = 0; i < kRows; ++i) found[i] = rows >> i & 1 ? at[i * kSlots] : Bits();
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
          for (int w = 0; w < kWords; ++w) sum.words[w] |= found[i].words[w];
#pragma unroll
        for (int w = 0; w < kWords; ++w)
          if (sum.words[w]) atomicOr(&gone[column].words[w], sum.words[w]);
      }
      at += kTile * kSlots;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i * 32 < count; i += kSettleThreads)
    sorted.kept[first / 32 + i] = kept[i / kWords].words[i % kWords];
  if (sorted.rank)
    for (int i = threadIdx.x; i < count; i += kSettleThreads)
      if (kept[i / kTile].words[i % kTile / 32] >> i % 32 & 1) {
        const int rank = sorted.rank[first + i];
        atomicOr(&sorted.kept_by_rank[rank / 32], 1u << rank % 32);
      }
  __syncthreads();
  if (first + count == total) write_result(sorted, total, ends);
}

// What a panel keeps suppresses among the later boxes: a thread for each of them, and kApplyRows
// boxes of the panel a block.
template <typename S, bool GROUPED>
__global__ void __launch_bounds__(kApplyThreads)
    apply_kernel(Sorted<S> sorted, int first, int total, Limit<S> limit) {
  __shared__ Box<S> boxes[kApplyThreads];
  alignas(16) __shared__ S shares[kApplyThreads];
  __shared__ int64_t groups[GROUPED ? kApplyThreads : 1];
  __shared__ unsigned size;
  constexpr int kSplits = kPanel / kApplyRows;
  const int start = first + kPanel + blockIdx.x / kSplits * kApplyThreads;
  const int rows = first + blockIdx.x % kSplits * kApplyRows, position = start + threadIdx.x;
  if (GROUPED && sorted.groups[rows + kApplyRows - 1] < sorted.groups[start]) return;
  const bool there = position < total;
  // one that other blocks remove meanwhile may be looked at in vain
  const bool active = there && !(load_relaxed(&sorted.removed[position / 32]) >> position % 32 & 1);
  const Box<S> box = sorted.boxes[there ? position : start];
  const S box_area = area(box), share = limit.share(box_area);
  const int64_t group = GROUPED ? sorted.groups[there ? position : start] : 0;
  bool hit = !active;
  for (int base = rows; base < rows + kApplyRows; base += kApplyThreads) {
    __syncthreads();
    if (threadIdx.x == 0) size = 0;
    boxes[threadIdx.x] = {};
    shares[threadIdx.x] = S(INFINITY);
    __syncthreads();
    const int row = base + threadIdx.x;
    if (sorted.kept[row / 32] >> row % 32 & 1) {
      const unsigned slot = atomicAdd(&size, 1);
      boxes[slot] = sorted.boxes[row];
      shares[slot] = limit.share(area(boxes[slot]));
      if (GROUPED) groups[slot] = sorted.groups[row];
    }
    __syncthreads();
    const int kept = size;
    for (int from = 0; from < kept && !hit; from += 32) {
      unsigned rest = limit.suspects(box, share, boxes + from, shares + from);
      for (; rest != 0 && !hit; rest &= rest - 1) {
        const int i = from + __ffs(rest) - 1;
        hit = i < kept && (!GROUPED || groups[i] == group) &&
              limit.exceeded(overlap(boxes[i], box), area(boxes[i]), box_area);
      }
    }
  }
  const unsigned bits = __ballot_sync(kAllLanes, active && hit);
  if (bits && threadIdx.x % 32 == 0) atomicOr(&sorted.removed[position / 32], bits);
}

// Kept indices in the order of scores. Waits for the stream once, to learn how many they are.
template <typename S, bool GROUPED>
Tensor suppress(const Tensor& boxes, const Tensor& scores, const Tensor& groups,
                double iou_threshold) {
  const int64_t total = boxes.size(0), ranks = GROUPED ? total : 0;
  Tensor result = torch::stable::new_empty(boxes, {total}, ScalarType::Long);
  if (total == 0) return result;
  const Stream stream(boxes);
  const int64_t tiles = ceil_div(std::min<int64_t>(total, kPanel), kTile);
  Scratch scratch;
  const auto in_order = scratch.reserve<Box<S>>(total);
  const auto group = scratch.reserve<int64_t>(ranks), index = scratch.reserve<int64_t>(total);
  const auto rank = scratch.reserve<int>(ranks);
  const auto removed = scratch.reserve<unsigned>(ceil_div(total, 32));
  const auto kept = scratch.reserve<unsigned>(ceil_div(total, 32));
  const auto by_rank = scratch.reserve<unsigned>(ceil_div(ranks, 32));
  const auto mask = scratch.reserve<Bits>(tiles * kTile * kSlots);
  const auto count = scratch.reserve<int64_t>(1);
  scratch.allocate(boxes);
  const Sorted<S> sorted{scratch[in_order],
                         GROUPED ? scratch[group] : nullptr,
                         GROUPED ? scratch[rank] : nullptr,
                         scratch[index],
                         scratch[removed],
                         scratch[kept],
                         GROUPED ? scratch[by_rank] : nullptr,
                         data<int64_t>(result),
                         scratch[count]};
  bring_into_order<S, GROUPED>(stream, boxes, scores, groups, sorted);
  const Limit<S> limit(iou_threshold);
  for (int64_t first = 0; first < total; first += kPanel) {
    const int64_t size = std::min<int64_t>(kPanel, total - first), rest = total - first - size;
    const int64_t now = ceil_div(size, kTile);
    stream.launch<tile_kernel<S, GROUPED>>(now * (now + 3) / 2, kTile, 0, sorted, int(first),
                                           int(size), limit, scratch[mask]);
    stream.launch<settle_kernel<S>>(1, kSettleThreads, 0, sorted, int(first), int(size),
                                    scratch[mask], int(total));
    if (rest > 0)
      stream.launch<apply_kernel<S, GROUPED>>(ceil_div(rest, kApplyThreads) * (kPanel / kApplyRows),
                                              kApplyThreads, 0, sorted, int(first), int(total),
                                              limit);
  }
  return torch::stable::narrow(result, 0, 0, stream.read(sorted.count));
}

}  // namespace ssdkern
