// Greedy suppression of one long list, also within groups. Panels of kPanel boxes follow each
// other: tiles of 64 x 64 pairs give bit masks; one block settles the panel, 64 boxes at a time;
// what it keeps suppresses among all later boxes.
#pragma once

#include "nms_order.cuh"
#include "overlap.cuh"

namespace ssdkern {

constexpr int64_t kMostBoxes = (1 << 30) - 1;
constexpr int kTile = 64, kPanelTiles = kPanel / kTile;
constexpr int kSettleThreads = 1024, kApplyThreads = 256, kApplyRows = 512;

// Bits of the pairs of a panel: mask[column tile][row] has a bit for each column that the row
// suppresses; on the diagonal one for each earlier row that suppresses this one.
template <typename S, bool GROUPED>
__global__ void __launch_bounds__(kTile)
    tile_kernel(Sorted<S> sorted, int first, int count, Limit<S> limit, Bits* mask) {
  __shared__ Box<S> columns[kTile];
  __shared__ S areas[kTile];
  __shared__ int64_t groups[GROUPED ? kTile : 1];
  // rows y and tiles - 1 - y of the upper triangle fill a rectangle's row together
  const int tiles = (count + kTile - 1) / kTile, y = blockIdx.x / (tiles + 1);
  const int x = blockIdx.x % (tiles + 1);
  const bool upper = x < tiles - y;
  const int row_tile = upper ? y : tiles - 1 - y;
  const int column_tile = upper ? y + x : x - 1;
  const int thread = threadIdx.x, row = row_tile * kTile + thread;
  const int column = column_tile * kTile + thread;
  const S nan = S(NAN);
  const Box<S> none = {nan, nan, nan, nan};
  columns[thread] = column < count ? sorted.boxes[first + column] : none;
  areas[thread] = area(columns[thread]);
  if (GROUPED && column < count) groups[thread] = sorted.groups[first + column];
  __syncthreads();

  Bits bits = 0;
  const unsigned* removed = &sorted.removed[(first + row) / 32];
  if (row < count && !(*removed >> row % 32 & 1)) {
    const Box<S> box = sorted.boxes[first + row];
    const S box_area = area(box);
    const int64_t group = GROUPED ? sorted.groups[first + row] : 0;
    const int size = min(kTile, count - column_tile * kTile);
    if (!GROUPED || groups[0] <= group) {
#pragma unroll 4
      for (int i = 0; i < size; ++i) {
        const bool same = !GROUPED || groups[i] == group;
        const bool hit = limit.exceeded(overlap(box, columns[i]), box_area, areas[i]);
        bits |= Bits(same && hit) << i;
      }
    }
    if (row_tile == column_tile) bits &= (Bits(1) << thread) - 1;
  }
  mask[int64_t(column_tile) * tiles * kTile + row] = bits;
}

__device__ __forceinline__ Bits warp_or(Bits bits) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const unsigned high = __reduce_or_sync(kAllLanes, unsigned(bits >> 32));
  return Bits(high) << 32 | __reduce_or_sync(kAllLanes, unsigned(bits));
#else
  return warp_reduce(bits, [](Bits a, Bits b) { return a | b; });
#endif
}

// Of 64 boxes the bits of those that are kept: the one solution of "a box stays unless a kept,
// earlier box suppresses it", reached from anywhere in as many steps as the longest chain has.
// A lane has the suppressors of boxes `lane` and `lane + 32`.
__device__ inline Bits settle_tile(Bits alive, Bits low, Bits high) {
  const int lane = threadIdx.x % 32;
  Bits keep = alive;
  while (true) {
    const bool first = (alive >> lane & 1) && !(low & keep);
    const bool second = (alive >> (lane + 32) & 1) && !(high & keep);
    const Bits upper = __ballot_sync(kAllLanes, second);
    const Bits next = upper << 32 | __ballot_sync(kAllLanes, first);
    if (next == keep) return keep;
    keep = next;
  }
}

// Indices of the kept boxes in the order of scores; `ends` is shared memory for a count a thread.
template <typename S>
__device__ void write_result(const Sorted<S>& sorted, int total, int* ends) {
  const Bits* kept = sorted.kept_by_rank ? sorted.kept_by_rank : sorted.kept;
  const int words = (total + 63) / 64, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t done = 0;
  for (int base = 0; base < words; base += kSettleThreads) {
    const int size = min(kSettleThreads, words - base);
    int sum = threadIdx.x < size ? __popcll(kept[base + threadIdx.x]) : 0;
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
      const Bits bits = kept[base + word];
      const int64_t start = done + ends[word] - __popcll(bits);
      for (int bit = lane; bit < 64; bit += 32)
        if (bits >> bit & 1)
          sorted.result[start + __popcll(bits & ((Bits(1) << bit) - 1))] =
              sorted.index[int64_t(base + word) * 64 + bit];
    }
    done += ends[kSettleThreads - 1];
  }
  if (threadIdx.x == 0) *sorted.count = done;
}

// Of a tile's boxes the bits of those that do not exist or were removed by an earlier panel.
template <typename S>
__device__ Bits absent(const Sorted<S>& sorted, int first, int count, int tile) {
  const unsigned* words = sorted.removed + first / 32 + tile * 2;
  const int size = count - tile * kTile;
  const Bits outside = size < kTile ? ~Bits(0) << size : 0;
  return outside | words[0] | (size > 32 ? Bits(words[1]) << 32 : 0);
}

// One block. Each warp looks after every 32nd column tile, and ORs into its own columns what the
// rows of each settled tile suppress. The next step's words are on their way while a tile settles.
template <typename S>
__global__ void __launch_bounds__(kSettleThreads)
    settle_kernel(Sorted<S> sorted, int first, int count, const Bits* mask, int total) {
  constexpr int kWarps = kSettleThreads / 32, kMine = kPanelTiles / kWarps;
  __shared__ Bits keep[kPanelTiles];
  __shared__ int ends[kSettleThreads];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = (count + kTile - 1) / kTile;
  Bits gone[kMine], low[kMine], high[kMine], next_low[kMine], next_high[kMine];
  const auto load = [&](int row_tile) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int column = i * kWarps + warp;
      const bool needed = row_tile < tiles && column < tiles && column >= row_tile;
      const Bits* rows = mask + (int64_t(column) * tiles + row_tile) * kTile + lane;
      next_low[i] = needed ? rows[0] : 0;
      next_high[i] = needed ? rows[32] : 0;
    }
  };
  load(0);
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int column = i * kWarps + warp;
    gone[i] = lane == 0 && column < tiles ? absent(sorted, first, count, column) : 0;
  }
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) low[i] = next_low[i], high[i] = next_high[i];
    load(tile + 1);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      if (i * kWarps + warp != tile) continue;
      const Bits bits = settle_tile(~warp_or(gone[i]), low[i], high[i]);
      if (lane == 0) {
        keep[tile] = bits;
        sorted.kept[first / kTile + tile] = bits;
      }
    }
    __syncthreads();
    const Bits bits = keep[tile];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      gone[i] |= bits >> lane & 1 ? low[i] : 0;
      gone[i] |= bits >> (lane + 32) & 1 ? high[i] : 0;
    }
  }
  if (sorted.rank)
    for (int i = threadIdx.x; i < count; i += kSettleThreads)
      if (keep[i / kTile] >> i % kTile & 1) {
        const int rank = sorted.rank[first + i];
        atomicOr(&sorted.kept_by_rank[rank / 64], Bits(1) << rank % 64);
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
  __shared__ S areas[kApplyThreads];
  __shared__ int64_t groups[GROUPED ? kApplyThreads : 1];
  __shared__ unsigned size;
  constexpr int kSplits = kPanel / kApplyRows;
  const int start = first + kPanel + blockIdx.x / kSplits * kApplyThreads;
  const int rows = first + blockIdx.x % kSplits * kApplyRows, position = start + threadIdx.x;
  if (GROUPED && sorted.groups[rows + kApplyRows - 1] < sorted.groups[start]) return;
  const bool there = position < total;
  const bool active = there && !(sorted.removed[position / 32] >> position % 32 & 1);
  const Box<S> box = sorted.boxes[there ? position : start];
  const S box_area = area(box);
  const int64_t group = GROUPED ? sorted.groups[there ? position : start] : 0;
  bool hit = !active;
  for (int base = rows; base < rows + kApplyRows; base += kApplyThreads) {
    __syncthreads();
    if (threadIdx.x == 0) size = 0;
    __syncthreads();
    const int row = base + threadIdx.x;
    if (sorted.kept[row / 64] >> row % 64 & 1) {
      const unsigned slot = atomicAdd(&size, 1);
      boxes[slot] = sorted.boxes[row];
      areas[slot] = area(boxes[slot]);
      if (GROUPED) groups[slot] = sorted.groups[row];
    }
    __syncthreads();
    for (int i = 0; i < size && !hit; ++i)
      hit = (!GROUPED || groups[i] == group) &&
            limit.exceeded(overlap(boxes[i], box), areas[i], box_area);
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
  const auto kept = scratch.reserve<Bits>(ceil_div(total, 64));
  const auto by_rank = scratch.reserve<Bits>(ceil_div(ranks, 64));
  const auto mask = scratch.reserve<Bits>(tiles * tiles * kTile);
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
    stream.launch<tile_kernel<S, GROUPED>>(now * (now + 1) / 2, kTile, 0, sorted, int(first),
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
