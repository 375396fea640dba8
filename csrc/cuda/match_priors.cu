// Which ground truth each prior stands for, without the IoU matrix. Two launches: a thread for each
// prior finds its best row, and each block the best of its priors for every row; then a block for
// each image lets the rows claim their priors.
#include "overlap.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kChunk = 128, kClaimThreads = 512;
constexpr int kClaimed = 1 << 30;  // marks a claimed prior in `matched` while claims are settled
constexpr double kMinIou = 1e-6;   // Caffe keeps no pair below

// The prior that a row of ground truth wants: highest IoU, then lowest index; -1 for none.
template <typename S>
struct Claim {
  S iou;
  int prior;
};

enum State { kFree, kHolds, kLost, kNone };  // of a row, while claims are settled

// Rows of ground truth of an image, kept inside of the tensor whatever `gt_offsets` holds.
struct Rows {
  int begin, end;
  __device__ Rows(const int* gt_offsets, int image, int total)
      : begin(max(gt_offsets[image], 0)), end(min(gt_offsets[image + 1], total)) {}
};

// Whether a box can overlap one of the boxes that lie within `bounds`.
template <typename S>
__device__ __forceinline__ bool reaches(const Box<S>& box, const Box<S>& bounds) {
  return box.x1 < bounds.x2 && box.x2 > bounds.x1 && box.y1 < bounds.y2 && box.y2 > bounds.y1;
}

template <typename S>
__device__ __forceinline__ Box<S> warp_bounds(const Box<S>& box) {
  const auto low = [](S a, S b) { return lower(a, b); };
  const auto high = [](S a, S b) { return higher(a, b); };
  return {warp_reduce(box.x1, low), warp_reduce(box.y1, low), warp_reduce(box.x2, high),
          warp_reduce(box.y2, high)};
}

// matched [B, P], claims [blocks of priors, T], bounds [P / 32] of each warp's priors.
template <typename S>
__global__ void __launch_bounds__(kThreads,
                                  sizeof(S) == 4 ? std::min(5, kThreadsOfSm / kThreads) : 4)
    match_priors_kernel(const S* priors, int num_priors, const S* gt_boxes, int num_rows,
                        const int* gt_offsets, int prior_blocks, S threshold, S min_iou, bool all,
                        int* matched, Claim<S>* claims, Box<S>* bounds) {
  __shared__ Box<S> boxes[kChunk];
  __shared__ S areas[kChunk];
  __shared__ Claim<S> finds[kWarps][kChunk];
  const int image = blockIdx.x / prior_blocks, block = blockIdx.x % prior_blocks;
  const int prior = block * kThreads + threadIdx.x, lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const S nan = S(NAN);
  const Box<S> box = prior < num_priors ? load_box<S>(priors, prior) : Box<S>{nan, nan, nan, nan};
  const S box_area = area(box);
  const Box<S> reach = warp_bounds(box);
  if (image == 0 && lane == 0 && prior < num_priors) bounds[prior / 32] = reach;

  const Rows rows(gt_offsets, image, num_rows);
  S best = -1;
  int best_row = -1;
  for (int first = rows.begin; first < rows.end; first += kChunk) {
    // 1. a chunk of ground truth
    const int count = min(kChunk, rows.end - first);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      boxes[i] = load_box<S>(gt_boxes, first + i);
      areas[i] = area(boxes[i]);
    }
    for (int i = lane; i < count; i += 32) finds[warp][i] = {S(0), -1};
    __syncthreads();

    // 2. the rows that reach this warp's priors: its best, and the best prior of each
    for (int base = 0; base < count; base += 32) {
      const int mine = base + lane;
      const bool near = mine < count && (all || reaches(boxes[mine], reach));
      for (unsigned todo = __ballot_sync(kAllLanes, near); todo; todo &= todo - 1) {
        const int i = base + __ffs(todo) - 1;
        const S value = iou(overlap(boxes[i], box), areas[i], box_area);
        if (value >= 0 && value > best) best = value, best_row = first + i;
        const S found = value > 0 ? value : S(0);
        const S top = warp_max(found);
        if (top > 0) {
          const unsigned equal = __ballot_sync(kAllLanes, found == top);
          if (lane == __ffs(equal) - 1) finds[warp][i] = {found, prior};
        }
      }
    }
    __syncthreads();

    // 3. the best prior of the block
    for (int i = threadIdx.x; i < count; i += kThreads) {
      Claim<S> find = finds[0][i];
#pragma unroll
      for (int w = 1; w < kWarps; ++w)
        if (finds[w][i].iou > find.iou) find = finds[w][i];
      claims[int64_t(block) * num_rows + first + i] = find;
    }
    __syncthreads();
  }
  if (prior < num_priors)
    matched[int64_t(image) * num_priors + prior] =
        best >= threshold && best > min_iou ? best_row : -1;
}

template <typename S>
__device__ Claim<S> best_claim(const Claim<S>* claims, int blocks, int num_rows, int row) {
  Claim<S> best = claims[row];
#pragma unroll 8
  for (int block = 1; block < blocks; ++block) {
    const Claim<S> other = claims[int64_t(block) * num_rows + row];
    if (other.iou > best.iou) best = other;
  }
  return best;
}

// "argmax": each row takes its prior, the last row winning.
template <typename S>
__global__ void __launch_bounds__(kClaimThreads, 1)
    claim_best_kernel(const S* priors, int num_priors, const S* gt_boxes, int num_rows,
                      const int* gt_offsets, int prior_blocks, Claim<S>* claims, int* matched) {
  const Rows rows(gt_offsets, blockIdx.x, num_rows);
  matched += int64_t(blockIdx.x) * num_priors;
  for (int row = rows.begin + threadIdx.x; row < rows.end; row += kClaimThreads) {
    int prior = best_claim(claims, prior_blocks, num_rows, row).prior;
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
  }
  __syncthreads();
  for (int row = rows.begin + threadIdx.x; row < rows.end; row += kClaimThreads)
    if (claims[row].prior >= 0) atomicAnd(&matched[claims[row].prior], ~kClaimed);
}

// "bipartite": taking the best pair of the matrix again and again gives the one stable matching,
// as both sides rank pairs alike. So rows propose, a prior keeps its best proposer, and rows that
// lost look for their next best, all at once: a warp for each of them.
template <typename S>
struct Image {
  const S *priors, *gt_boxes;
  const Box<S>* bounds;
  int num_priors;
  S min_iou;
  int* matched;
  Claim<S>* wanted;  // [T]
  int* state;        // [T]

  // Whether a row with this IoU takes a prior from the row that holds it.
  __device__ bool beats(S value, int row, int holder) const {
    const S held = wanted[holder].iou;
    return value > held || (value == held && row < holder);
  }

  __device__ void propose(int row) {
    const Claim<S> claim = wanted[row];
    int* const holder = &matched[claim.prior];
    state[row] = kHolds;
    __threadfence_block();  // before another row can take the prior away
    for (int seen = *holder;;) {
      const bool held = seen >= kClaimed;
      if (held && !beats(claim.iou, row, seen - kClaimed)) {
        state[row] = kLost;
        return;
      }
      const int now = atomicCAS(holder, seen, kClaimed | row);
      if (now == seen) {
        if (held) state[seen - kClaimed] = kLost;
        return;
      }
      seen = now;
    }
  }

  // The best prior that would still have the row; by a whole warp.
  __device__ Claim<S> next_best(int row) const {
    const int lane = threadIdx.x % 32, groups = (num_priors + 31) / 32;
    const Box<S> box = load_box<S>(gt_boxes, row);
    const S box_area = area(box);
    Claim<S> best = {min_iou, num_priors};
    for (int base = 0; base < groups; base += 32) {
      const int mine = base + lane;
      const bool near = mine < groups && reaches(box, bounds[mine]);
      for (unsigned todo = __ballot_sync(kAllLanes, near); todo; todo &= todo - 1) {
        const int prior = (base + __ffs(todo) - 1) * 32 + lane;
        if (prior >= num_priors) continue;
        const Box<S> other = load_box<S>(priors, prior);
        const S value = iou(overlap(box, other), box_area, area(other));
        if (!(value > best.iou)) continue;
        const int seen = matched[prior];
        if (seen < kClaimed || beats(value, row, seen - kClaimed)) best = {value, prior};
      }
    }
    const S top = warp_max(best.iou);
    const unsigned index = best.iou == top ? best.prior : num_priors;
    return {top, int(warp_reduce(index, [](unsigned a, unsigned b) { return a < b ? a : b; }))};
  }
};

template <typename S>
__global__ void __launch_bounds__(kClaimThreads, 1)
    claim_greedily_kernel(Image<S> image, int num_rows, const int* gt_offsets, int prior_blocks,
                          const Claim<S>* claims) {
  const Rows rows(gt_offsets, blockIdx.x, num_rows);
  image.matched += int64_t(blockIdx.x) * image.num_priors;
  for (int row = rows.begin + threadIdx.x; row < rows.end; row += kClaimThreads) {
    const Claim<S> claim = best_claim(claims, prior_blocks, num_rows, row);
    image.wanted[row] = claim;
    image.state[row] = claim.iou > image.min_iou ? kFree : kNone;
  }
  bool again = true;
  while (again) {
    __syncthreads();
    for (int row = rows.begin + threadIdx.x; row < rows.end; row += kClaimThreads)
      if (image.state[row] == kFree) image.propose(row);
    __syncthreads();
    bool free = false;
    for (int row = rows.begin + threadIdx.x / 32; row < rows.end; row += kClaimThreads / 32) {
      if (image.state[row] != kLost) continue;
      const Claim<S> claim = image.next_best(row);
      const bool found = claim.prior < image.num_priors;
      free |= found;
      if (threadIdx.x % 32 == 0) {
        image.wanted[row] = claim;
        image.state[row] = found ? kFree : kNone;
      }
    }
    again = __syncthreads_or(free);
  }
  for (int row = rows.begin + threadIdx.x; row < rows.end; row += kClaimThreads)
    if (image.state[row] == kHolds) image.matched[image.wanted[row].prior] = row;
}

template <typename S>
void match(const Tensor& priors, const Tensor& gt_boxes, const Tensor& gt_offsets,
           double iou_threshold, bool bipartite, Tensor& matched) {
  const Stream stream(priors);
  const int64_t images = gt_offsets.size(0) - 1, blocks = ceil_div(priors.size(0), kThreads);
  const int num_priors = int(priors.size(0)), num_rows = int(gt_boxes.size(0));
  Scratch scratch;
  const auto claims = scratch.reserve<Claim<S>>(blocks * num_rows);
  const auto wanted = scratch.reserve<Claim<S>>(num_rows);
  const auto state = scratch.reserve<int>(num_rows);
  const auto bounds = scratch.reserve<Box<S>>(ceil_div(num_priors, 32));
  scratch.allocate(priors);
  const S min_iou = bipartite ? S(kMinIou) : S(-1);
  const bool all = !bipartite && iou_threshold <= 0;  // then a prior matches without overlap
  const int* offsets = data<int>(gt_offsets);
  stream.launch<match_priors_kernel<S>>(images * blocks, kThreads, 0, data<S>(priors), num_priors,
                                        data<S>(gt_boxes), num_rows, offsets, int(blocks),
                                        S(iou_threshold), min_iou, all, data<int>(matched),
                                        scratch[claims], scratch[bounds]);
  if (num_rows == 0) return;
  if (bipartite) {
    const Image<S> image{data<S>(priors), data<S>(gt_boxes),  scratch[bounds], num_priors,
                         min_iou,         data<int>(matched), scratch[wanted], scratch[state]};
    stream.launch<claim_greedily_kernel<S>>(images, kClaimThreads, 0, image, num_rows, offsets,
                                            int(blocks), scratch[claims]);
  } else {
    stream.launch<claim_best_kernel<S>>(images, kClaimThreads, 0, data<S>(priors), num_priors,
                                        data<S>(gt_boxes), num_rows, offsets, int(blocks),
                                        scratch[claims], data<int>(matched));
  }
}

}  // namespace

Tensor match_priors_cuda(const Tensor& priors, const Tensor& gt_boxes, const Tensor& gt_offsets,
                         double iou_threshold, bool bipartite) {
  check_device(priors, gt_boxes, gt_offsets);
  check_matching(priors, gt_boxes);
  check_shape(gt_offsets, "gt_offsets", {-1});
  STD_TORCH_CHECK(gt_offsets.size(0) >= 1, "want gt_offsets [B+1], got [0]");
  STD_TORCH_CHECK(priors.size(0) < kClaimed && gt_boxes.size(0) < kClaimed,
                  "want fewer than 2^30 priors and rows of ground truth");
  const ScalarType type = compute_type(priors, gt_boxes);
  const Tensor p = packed(priors, type), boxes = packed(gt_boxes, type);
  const Tensor offsets = as(gt_offsets, ScalarType::Int);
  Tensor matched = torch::stable::new_empty(offsets, {offsets.size(0) - 1, p.size(0)});
  if (matched.numel() == 0) return matched;
  with_compute(type, [&](auto kind) {
    match<decltype(kind)>(p, boxes, offsets, iou_threshold, bipartite, matched);
  });
  return matched;
}

SSDKERN_CUDA_IMPL(m) { m.impl("match_priors", TORCH_BOX(&match_priors_cuda)); }

}  // namespace ssdkern
