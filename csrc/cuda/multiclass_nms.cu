// Per-class suppression of decoded, scored boxes.
#include "detections.cuh"

namespace ssdkern {
namespace {

template <typename T, typename S>
struct GivenScores {
  struct Row {
    unsigned prior;
  };
  const T* scores;
  int num_priors;
  unsigned num_classes;
  S threshold;

  __device__ static S most() { return INFINITY; }
  __device__ void go_to(int64_t, int64_t first, int c) { scores += first * num_classes + c; }
  __device__ int count() const { return num_priors; }
  __device__ Row row(unsigned i) const { return {i}; }
  __device__ S load(Row row) const { return S(scores[uint64_t(row.prior) * num_classes]); }
  __device__ bool passes(Row, S loaded, S* score) const {
    *score = loaded;
    return loaded > threshold;
  }
};

template <typename S>
struct GivenBoxes {
  AnyBoxes boxes;
  __device__ Box<S> load(int64_t row, int) const { return load_box<S>(boxes, row); }
};

}  // namespace

Results multiclass_nms_cuda(const Tensor& boxes, const Tensor& scores, double score_threshold,
                            double iou_threshold, int64_t nms_top_k, int64_t keep_top_k) {
  check_device(boxes, scores);
  check_class_scores(boxes, scores);
  const int64_t size[] = {scores.size(0), scores.size(1), scores.size(2)};
  check_limits(size[1], size[2], nms_top_k, keep_top_k);
  const bool wide = compute_type(boxes, scores) == ScalarType::Double;
  const Tensor from = packed(boxes), given = wide ? as(scores, ScalarType::Double) : packed(scores);
  const Stream stream(scores);
  return with_float(given, [&](auto element) {
    using T = decltype(element);
    using S = Compute<T>;
    const GivenScores<T, S> source{data<T>(given), int(size[1]), unsigned(size[2]),
                                   S(score_threshold)};
    return find_detections<S>(stream, given, source, GivenBoxes<S>{AnyBoxes(from)}, size,
                              iou_threshold, nms_top_k, keep_top_k);
  });
}

SSDKERN_CUDA_IMPL(m) { m.impl("multiclass_nms", TORCH_BOX(&multiclass_nms_cuda)); }

}  // namespace ssdkern
