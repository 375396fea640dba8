// From logits and offsets to detections, in three launches: the softmax of each row, which lists
// the rows that matter, then those of detections.cuh, which take exp only of scores that can pass
// and decode only what is left.
#include "detections.cuh"
#include "softmax.cuh"

namespace ssdkern {
namespace {

// A row in which some class but the background may pass: its softmax is exp(x - max) * scale.
template <typename S>
struct alignas(4 * sizeof(S)) PassingRow {
  S max, scale, cut;  // no logit below `cut` passes
  unsigned prior;
};

// Lists the rows of each image that may pass, in any order: rows [B, P], counts [B].
template <int LANES, typename T, typename S>
__global__ void __launch_bounds__(kRowThreads)
    softmax_kernel(Tile<LANES, T> tile, int num_priors, S threshold, PassingRow<S>* rows,
                   int* counts) {
  SSDKERN_SHARED(memory);
  const T* const x = tile.load(memory);
  const S most = row_max<LANES, S>(x, 1, tile.num_classes);
  const S max = fmax(most, S(x[0]));
  const S sum = row_sum<LANES, S>(x, tile.num_classes, max);
  // exp(x - max) / sum > threshold, less more than all of this can round
  const S margin = S(1e-3) + S(1e-6) * (max < 0 ? -max : max);
  const S cut = threshold > 0 ? max + log(threshold * sum) - margin : -S(INFINITY);
  const bool passes = tile.writes() && most >= cut;
  const int lane = threadIdx.x % 32;
  // the first row of an image takes places for all of its warp: 1 atomic instead of up to 32
  for (unsigned todo = __ballot_sync(kAllLanes, passes); todo;) {
    const int taker = __ffs(todo) - 1, image = int(tile.row() / num_priors);
    const int now = __shfl_sync(kAllLanes, image, taker);
    const unsigned same = __ballot_sync(kAllLanes, passes && image == now);
    int place = lane == taker ? atomicAdd(&counts[image], __popc(same)) : 0;
    place = __shfl_sync(kAllLanes, place, taker) + __popc(same & ((1u << lane) - 1));
    const int64_t first = int64_t(image) * num_priors;
    if (same >> lane & 1) rows[first + place] = {max, 1 / sum, cut, unsigned(tile.row() - first)};
    todo &= ~same;
  }
}

template <typename T, typename S>
struct Probabilities {
  using Row = PassingRow<S>;
  const T* logits;
  const Row* rows;
  const int* counts;
  unsigned num_classes;
  S threshold;

  __device__ static S most() { return 1; }
  __device__ void go_to(int64_t image, int64_t first, int c) {
    logits += first * num_classes + c;
    rows += first;
    counts += image;
  }
  __device__ int count() const { return *counts; }
  __device__ Row row(unsigned i) const { return rows[i]; }
  __device__ S load(const Row& row) const { return S(logits[uint64_t(row.prior) * num_classes]); }
  __device__ bool passes(const Row& row, S logit, S* score) const {
    if (!(logit >= row.cut)) return false;
    *score = exp(logit - row.max) * row.scale;
    return *score > threshold;
  }
};

template <typename S>
struct DecodedBoxes {
  AnyBoxes offsets;
  const S* priors;
  Variances variances;
  double max_log_scale;
  bool clip;

  __device__ static S unit(S x) { return x < 0 ? S(0) : x > 1 ? S(1) : x; }

  __device__ Box<S> load(int64_t row, int prior) const {
    const Box<S> box =
        decode(load_box<S>(offsets, row), load_box<S>(priors, prior), variances, max_log_scale);
    return clip ? Box<S>{unit(box.x1), unit(box.y1), unit(box.x2), unit(box.y2)} : box;
  }
};

}  // namespace

Results detect_cuda(const Tensor& logits, const Tensor& offsets, const Tensor& priors,
                    double score_threshold, double iou_threshold, int64_t nms_top_k,
                    int64_t keep_top_k, double center_variance, double size_variance,
                    double max_log_scale, bool clip) {
  check_device(logits, offsets, priors);
  check_heads(logits, offsets, priors);
  const int64_t size[] = {logits.size(0), logits.size(1), logits.size(2)};
  check_limits(size[1], size[2], nms_top_k, keep_top_k);
  const ScalarType type = compute_type(logits, offsets, priors);
  const Tensor given = type == ScalarType::Double ? packed(logits, type) : packed(logits);
  const Tensor from = packed(offsets), boxes = packed(priors, type);
  const Stream stream(logits);
  return with_float(given, [&](auto element) {
    using T = decltype(element);
    using S = Compute<T>;
    const int64_t num_rows = size[0] * size[1];
    Scratch scratch;
    const auto rows = scratch.reserve<PassingRow<S>>(num_rows);
    scratch.allocate(logits);
    Tensor counts = torch::stable::new_zeros(logits, {size[0]}, ScalarType::Int);
    if (num_rows > 0 && size[2] > 1)
      with_tile(data<T>(given), num_rows, int(size[2]),
                [&](auto tile, int64_t blocks, size_t bytes) {
                  stream.launch<softmax_kernel<decltype(tile)::kLanes, T, S>>(
                      blocks, kRowThreads, bytes, tile, int(size[1]), S(score_threshold),
                      scratch[rows], data<int>(counts));
                });
    const Probabilities<T, S> scores{data<T>(given), scratch[rows], data<int>(counts),
                                     unsigned(size[2]), S(score_threshold)};
    const DecodedBoxes<S> decoded{
        AnyBoxes(from), data<S>(boxes), {center_variance, size_variance}, max_log_scale, clip};
    return find_detections<S>(stream, given, scores, decoded, size, iou_threshold, nms_top_k,
                              keep_top_k);
  });
}

SSDKERN_CUDA_IMPL(m) { m.impl("detect", TORCH_BOX(&detect_cuda)); }

}  // namespace ssdkern
