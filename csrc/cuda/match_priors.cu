// Which ground truth each prior stands for, without the IoU matrix. Two launches: a thread for each
// prior finds its best row, and each block the best of its priors for every row; then a block for
// each image lets the rows claim their priors.
#include <limits>

#include "claims.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = kBlockPriors, kWarps = kThreads / 32, kChunk = 128;
constexpr double kMinIou = 1e-6;  // Caffe keeps no pair below

// Whether a box can overlap one of the boxes that lie within `bounds`.
template <typename S>
__device__ __forceinline__ bool reaches(const Box<S>& box, const Box<S>& bounds) {
  return (box.x1 < bounds.x2) & (box.x2 > bounds.x1) & (box.y1 < bounds.y2) & (box.y2 > bounds.y1);
}

template <typename S>
__device__ __forceinline__ Box<S> warp_bounds(const Box<S>& box) {
  const auto low = [](S a, S b) { return fmin(a, b); };  // of a NaN and a number, the number
  const auto high = [](S a, S b) { return fmax(a, b); };
  return {warp_reduce(box.x1, low), warp_reduce(box.y1, low), warp_reduce(box.x2, high),
          warp_reduce(box.y2, high)};
}

// matched [B, P], claims [blocks of priors, T].
template <typename S>
__global__ void __launch_bounds__(kThreads,
                                  sizeof(S) == 4 ? std::min(5, kThreadsOfSm / kThreads) : 4)
    match_priors_kernel(const S* priors, int num_priors, const S* gt_boxes, int num_rows,
                        const int* gt_offsets, int images, S threshold, S min_iou, S apart,
                        int* matched, Claim<S>* claims) {
  __shared__ Box<S> boxes[kChunk];
  __shared__ Claim<S> finds[kWarps][kChunk];
  const int turn = gridDim.x - 1 - blockIdx.x;  // the last priors are the largest: they start first
  const int image = turn % images, block = turn / images;
  const int prior = block * kThreads + threadIdx.x, lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const Rows rows(gt_offsets, image, num_rows);
  const S nan = S(NAN);
  const Box<S> box = prior < num_priors ? load_box<S>(priors, prior) : Box<S>{nan, nan, nan, nan};
  const S box_area = area(box);
  const Box<S> reach = warp_bounds(box);

  S best = min_iou;
  int best_row = -1;
  for (int first = rows.begin; first < rows.end; first += kChunk) {
    // 1. a chunk of ground truth
    const int count = min(kChunk, rows.end - first);
    if (threadIdx.x < count) boxes[threadIdx.x] = load_box<S>(gt_boxes, first + threadIdx.x);
    __syncthreads();

    // 2. the rows that reach this warp's priors: its best, and the best prior of each
    for (int base = 0; base < count; base += 32) {
      const int mine = base + lane;
      const bool near = mine < count && ((apart < 0) | reaches(boxes[mine], reach));
      S most = 0;  // the highest IoU with row `mine`, and whose it is
      unsigned who = 0;
      for (unsigned todo = __ballot_sync(kAllLanes, near); todo; todo &= todo - 1) {
        const int bit = __ffs(todo) - 1;
        const Box<S> row = boxes[base + bit];
        const S inter = overlap(row, box);
        S value = 0;
        if (!(inter <= apart)) value = iou(inter, area(row), box_area);
        if (value > best) best = value, best_row = first + base + bit;
        const S found = value > 0 ? value : S(0);
        const S top = warp_max(found);
        const unsigned equal = __ballot_sync(kAllLanes, found == top);
        if (lane == bit) most = top, who = equal;
      }
      if (mine < count) finds[warp][mine] = {most, prior - lane + __ffs(who) - 1};
    }
    __syncthreads();

    // 3. the best prior of the block
    if (threadIdx.x < count) {
      Claim<S> find = {S(0), -1};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const Claim<S> other = finds[w][threadIdx.x];
        if (other.iou > find.iou) find = other;
      }
      claims[int64_t(block) * num_rows + first + threadIdx.x] = find;
    }
    __syncthreads();
  }
  if (prior < num_priors)
    matched[int64_t(image) * num_priors + prior] = best >= threshold ? best_row : -1;
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
  scratch.allocate(priors);
  // an IoU counts above this: any but a negative one under "argmax"
  const S min_iou = bipartite ? S(kMinIou) : -std::numeric_limits<S>::denorm_min();
  // and boxes with no more than this in common are passed over: 0 would take long to divide
  const S apart = !bipartite && S(iou_threshold) <= 0 ? S(-1) : S(0);
  const int* offsets = data<int>(gt_offsets);
  stream.launch<match_priors_kernel<S>>(
      images * blocks, kThreads, 0, data<S>(priors), num_priors, data<S>(gt_boxes), num_rows,
      offsets, int(images), S(iou_threshold), min_iou, apart, data<int>(matched), scratch[claims]);
  if (num_rows == 0) return;
  if (bipartite) {
    const Image<S> image{data<S>(priors),    data<S>(gt_boxes), num_priors,
                         num_rows,           int(blocks),       min_iou,
                         data<int>(matched), scratch[claims],   scratch[wanted]};
    stream.launch<claim_greedily_kernel<S>>(images, kClaimThreads, 0, image, offsets);
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
