// From logits and offsets to detections, in three launches: the softmax of each row, then those of
// detections.cuh, which take exp only of scores that can pass and decode only what is left.
#include "detections.cuh"
#include "softmax.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 256;

// A row's softmax, and the logit below which no score passes.
template <typename S>
struct Rows {
  S* cut;
  Softmax<S>* softmax;
};

template <typename T, typename S, int LANES, int ITEMS>
__global__ void __launch_bounds__(kThreads)
    softmax_kernel(const T* logits, int64_t num_rows, int num_classes, S threshold, Rows<S> rows) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / LANES) + threadIdx.x / LANES;
  const int64_t at = row < num_rows ? row : num_rows - 1;  // shuffles need all lanes
  const Softmax<S> softmax = row_softmax<LANES, ITEMS, S>(logits + at * num_classes, num_classes);
  if (row >= num_rows || threadIdx.x % LANES != 0) return;
  // exp(x - max) > threshold * sum, less more than all of this can round
  const S margin = S(1e-3) + S(1e-6) * (softmax.max < 0 ? -softmax.max : softmax.max);
  const S cut = softmax.max + log(threshold * softmax.sum) - margin;
  rows.cut[row] = threshold > 0 ? cut : -S(INFINITY);
  rows.softmax[row] = softmax;
}

template <typename T, typename S>
struct Probabilities {
  struct Loaded {
    S logit, cut;
  };
  const T* logits;
  Rows<S> rows;
  int num_classes;
  S threshold;

  __device__ Loaded load(int64_t row, int c) const {
    return {S(logits[row * num_classes + c]), rows.cut[row]};
  }
  __device__ bool passes(Loaded loaded, int64_t row, S* score) const {
    if (!(loaded.logit >= loaded.cut)) return false;
    const Softmax<S> softmax = rows.softmax[row];
    *score = exp(loaded.logit - softmax.max) / softmax.sum;
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
  const Tensor given = type == ScalarType::Double ? as(logits, type) : packed(logits);
  const Tensor from = packed(offsets), boxes = packed(priors, type);
  const Stream stream(logits);
  return with_float(given, [&](auto element) {
    using T = decltype(element);
    using S = Compute<T>;
    const int64_t num_rows = size[0] * size[1];
    Scratch scratch;
    const auto cut = scratch.reserve<S>(num_rows);
    const auto softmax = scratch.reserve<Softmax<S>>(num_rows);
    scratch.allocate(logits);
    const Rows<S> rows{scratch[cut], scratch[softmax]};
    if (num_rows > 0 && size[2] > 0)
      with_lanes(size[2], [&](auto lanes, auto items) {
        stream.launch<softmax_kernel<T, S, lanes.value, items.value>>(
            ceil_div(num_rows * lanes.value, kThreads), kThreads, 0, data<T>(given), num_rows,
            int(size[2]), S(score_threshold), rows);
      });
    const Probabilities<T, S> scores{data<T>(given), rows, int(size[2]), S(score_threshold)};
    const DecodedBoxes<S> decoded{
        AnyBoxes(from), data<S>(boxes), {center_variance, size_variance}, max_log_scale, clip};
    return find_detections<S>(stream, given, scores, decoded, size, iou_threshold, nms_top_k,
                              keep_top_k);
  });
}

SSDKERN_CUDA_IMPL(m) { m.impl("detect", TORCH_BOX(&detect_cuda)); }

}  // namespace ssdkern
