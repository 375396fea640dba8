// How the rows of ground truth of an image claim their priors.
#pragma once

#include "overlap.cuh"

namespace ssdkern {
namespace {

constexpr int kBlockPriors = 256, kClaimThreads = 512, kClaimWarps = kClaimThreads / 32;
constexpr int kRoom = 512;         // rows whose wishes lie in shared memory
constexpr int kClaimed = 1 << 30;  // marks a claimed prior in `matched` while claims are settled

// The prior that a row of ground truth wants: highest IoU, then lowest index; -1 for none.
template <typename S>
struct alignas(2 * sizeof(S)) Claim {
  S iou;
  int prior;

  __device__ bool before(const Claim& other) const {
    return (iou > other.iou) | ((iou == other.iou) & (prior < other.prior));
  }
};

// The first of a warp's claims.
template <typename S>
__device__ __forceinline__ Claim<S> warp_first(const Claim<S>& claim) {
  const S top = warp_max(claim.iou);
  return {top, int(~warp_max(claim.iou == top ? ~unsigned(claim.prior) : 0u))};
}

// Rows of ground truth of an image, kept inside of the tensor whatever `gt_offsets` holds.
struct Rows {
  int begin, end;
  __device__ Rows(const int* gt_offsets, int image, int total)
      : begin(min(max(gt_offsets[image], 0), total)),
        end(max(begin, min(gt_offsets[image + 1], total))) {}
};

// Calls `take(row, claim)` with the first claim of each row. A warp reads four rows at once, and of
// each the claims of 64 blocks, with no load waiting for another.
template <typename S, typename F>
__device__ __forceinline__ void take_first(const Claim<S>* claims, int count, int blocks,
                                           int num_rows, F take) {
  constexpr int kRows = 4, kLanes = 32 / kRows, kAhead = 8;
  const int lane = threadIdx.x % 32;
  for (int first = threadIdx.x / 32 * kRows; first < count; first += kClaimWarps * kRows) {
    const int row = min(first + lane % kRows, count - 1);
    const int64_t step = int64_t(kLanes) * num_rows;
    const Claim<S>* claim = claims + lane / kRows * int64_t(num_rows) + row;
    Claim<S> best = {S(0), -1};
    for (int block = lane / kRows; block < blocks; block += kLanes * kAhead) {
      Claim<S> ahead[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i, claim += step) {
        ahead[i] = {S(0), -1};
        if (block + kLanes * i < blocks) ahead[i] = *claim;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (ahead[i].iou > best.iou) best = ahead[i];
    }
#pragma unroll
    for (int lanes = kRows; lanes < 32; lanes *= 2) {
      const Claim<S> other = {__shfl_xor_sync(kAllLanes, best.iou, lanes),
                              __shfl_xor_sync(kAllLanes, best.prior, lanes)};
      if (other.before(best)) best = other;
    }
    __syncwarp();  // `take` may write where other lanes have read
    if (lane < kRows && first + lane < count) take(row, best);
  }
}

// "argmax": each row takes its prior, the last row winning.
template <typename S>
__global__ void __launch_bounds__(kClaimThreads, 1)
    claim_best_kernel(const S* priors, int num_priors, const S* gt_boxes, int num_rows,
                      const int* gt_offsets, int blocks, Claim<S>* claims, int* matched) {
  const Rows rows(gt_offsets, blockIdx.x, num_rows);
  matched += int64_t(blockIdx.x) * num_priors;
  const int count = rows.end - rows.begin;
  take_first(claims + rows.begin, count, blocks, num_rows, [&](int i, const Claim<S>& claim) {
    const int row = rows.begin + i;
    int prior = claim.prior;
    const Box<S> box = load_box<S>(gt_boxes, row);
    const S box_area = area(box);
    if (prior < 0 && box_area == box_area) {  // overlaps nothing: the first prior, as argmax does
      for (prior = 0; prior < num_priors; ++prior) {
        const Box<S> other = load_box<S>(priors, prior);
        if (iou(overlap(box, other), box_area, area(other)) >= 0) break;
      }
    }
    const bool found = prior >= 0 && prior < num_priors;
    claims[row].prior = found ? prior : -1;
    if (found) atomicMax(&matched[prior], kClaimed | row);
  });
  __syncthreads();
  for (int row = rows.begin + threadIdx.x; row < rows.end; row += kClaimThreads)
    if (claims[row].prior >= 0) atomicAnd(&matched[claims[row].prior], ~kClaimed);
}

// "bipartite": taking the best pair of the matrix again and again gives the one stable matching,
// as both sides rank pairs alike. So rows propose, a prior keeps its best proposer, and rows that
// lost look for their next best, all at once: a warp for each of them. Rows count from 0 here.
template <typename S>
struct Image {
  const S *priors, *gt_boxes;
  int num_priors, num_rows, blocks;
  S min_iou;
  int* matched;
  Claim<S>* claims;  // [blocks, T]
  Claim<S>* wanted;  // [rows]

  // Whether a row with this IoU takes a prior from what `matched` holds for it.
  __device__ __forceinline__ bool wins(S value, int row, int seen) const {
    return seen < kClaimed ||
           Claim<S>{value, row}.before({wanted[seen - kClaimed].iou, seen - kClaimed});
  }

  __device__ bool lost(int row) const {
    const int prior = wanted[row].prior;
    return prior >= 0 && matched[prior] != (kClaimed | row);
  }

  __device__ void propose(int row) const {
    const Claim<S> claim = wanted[row];
    if (claim.prior < 0) return;
    int* const holder = &matched[claim.prior];
    int seen = load_relaxed(holder);
    while (wins(claim.iou, row, seen)) {
      const int now = atomicCAS(holder, seen, kClaimed | row);
      if (now == seen) break;
      seen = now;
    }
  }

  // The first prior of a block that would still have the row; by a whole warp.
  __device__ Claim<S> next_of_block(int block, int row, const Box<S>& box) const {
    constexpr int kEach = kBlockPriors / 32;
    const int first = block * kBlockPriors + threadIdx.x % 32;
    Box<S> others[kEach];
    int seen[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int prior = min(first + 32 * i, num_priors - 1);
      others[i] = load_box<S>(priors, prior);
      seen[i] = matched[prior];
    }
    Claim<S> best = {min_iou, -1};
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const S inter = overlap(box, others[i]);
      if (!(inter > 0)) continue;  // zeros divide slowly
      const S value = iou(inter, area(box), area(others[i]));
      if (value > best.iou && wins(value, row, seen[i]))
        best = {value, min(first + 32 * i, num_priors - 1)};
    }
    return warp_first(best);
  }

  // The first prior that would still have the row; by a whole warp. A block whose claim would not
  // is asked for its next, but only where that may be first. This stays its claim, as a prior that
  // refused a row goes on to better ones only.
  __device__ Claim<S> next(int row) const {
    const int lane = threadIdx.x % 32;
    const Box<S> box = load_box<S>(gt_boxes, row);
    Claim<S> best = {min_iou, -1};
    for (int base = 0; base < blocks; base += 32) {
      Claim<S>* const at = &claims[int64_t(base + lane) * num_rows + row];
      Claim<S> claim = {S(0), -1};
      if (base + lane < blocks) claim = *at;
      bool taken = claim.before(best) && !wins(claim.iou, row, matched[claim.prior]);
      Claim<S> open = best;
      if (claim.before(best) && !taken) open = claim;
      best = warp_first(open);
      while (const unsigned todo = __ballot_sync(kAllLanes, taken && claim.before(best))) {
        const int owner = __ffs(todo) - 1;
        const Claim<S> next = next_of_block(base + owner, row, box);
        if (lane == owner) *at = next, taken = false;
        if (next.before(best)) best = next;
      }
    }
    return best;
  }
};

template <typename S>
__global__ void __launch_bounds__(kClaimThreads, 1)
    claim_greedily_kernel(Image<S> image, const int* gt_offsets) {
  __shared__ Claim<S> room[kRoom];
  const Rows rows(gt_offsets, blockIdx.x, image.num_rows);
  const int count = rows.end - rows.begin, lane = threadIdx.x % 32;
  image.matched += int64_t(blockIdx.x) * image.num_priors;
  image.gt_boxes += 4 * int64_t(rows.begin);
  image.claims += rows.begin;
  image.wanted = count <= kRoom ? room : image.wanted + rows.begin;
  take_first(image.claims, count, image.blocks, image.num_rows, [&](int row, Claim<S> claim) {
    if (!(claim.iou > image.min_iou)) claim.prior = -1;
    image.wanted[row] = claim;
  });
  __syncthreads();
  // the best pair that is left settles in each round: there are no more of them than rows
  for (int round = 0; round < count; ++round) {
    for (int row = threadIdx.x; row < count; row += kClaimThreads) image.propose(row);
    __syncthreads();
    bool found = false;
    for (int first = threadIdx.x / 32; first < count; first += kClaimThreads) {
      const int mine = first + lane * kClaimWarps;  // neighbours go to other warps
      unsigned todo = __ballot_sync(kAllLanes, mine < count && image.lost(mine));
      for (; todo; todo &= todo - 1) {
        const int owner = __ffs(todo) - 1;
        const Claim<S> claim = image.next(first + owner * kClaimWarps);
        if (lane == owner) image.wanted[mine] = claim;
        found |= claim.prior >= 0;
      }
    }
    if (!__syncthreads_or(found)) break;
  }
  for (int row = threadIdx.x; row < count; row += kClaimThreads)
    if (image.wanted[row].prior >= 0) image.matched[image.wanted[row].prior] = rows.begin + row;
}

}  // namespace
}  // namespace ssdkern
