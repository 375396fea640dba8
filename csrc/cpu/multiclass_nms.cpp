// Per-class suppression of decoded, scored boxes, images and classes in parallel.
#include "detections.h"
#define SSDKERN_KERNELS "multiclass_nms.h"
#include "isa.h"

namespace ssdkern {

DetectionTensors multiclass_nms_cpu(const Tensor& boxes, const Tensor& scores,
                                    double score_threshold, double iou_threshold, int64_t nms_top_k,
                                    int64_t keep_top_k) {
  check_class_scores(boxes, scores);
  const int64_t images = scores.size(0), priors = scores.size(1), classes = scores.size(2);
  check_limits(priors, nms_top_k, keep_top_k);
  const Limits limits{score_threshold, iou_threshold, nms_top_k, keep_top_k};
  const ScalarType type = compute_type(boxes, scores);
  const Tensor rank =
      type == ScalarType::Double ? as(scores, type) : torch::stable::contiguous(scores);
  return with_float(rank, [&](auto kind) {
    using T = decltype(kind);
    using S = Compute<T>;
    const Tensor corners = as(boxes, scalar_type_of<S>());
    const auto run = SSDKERN_PICK(scan_scores<T, S>);
    const auto scan = [&](int64_t image, int64_t prior, int64_t count, Key<S>* keys,
                          int32_t* labels) {
      const T* first = data<T>(rank) + (image * priors + prior) * classes;
      return run(first, prior, count, classes, S(score_threshold), keys, labels);
    };
    const auto boxes_of = [&](int64_t image, const std::vector<Key<S>>& keys, S* out) {
      const S* own = data<S>(corners) + image * priors * 4;
      for (const auto key : keys) out = std::copy_n(own + 4 * int64_t(index_of<S>(key)), 4, out);
    };
    return select_detections<S>(boxes, images, priors, classes, limits, scan, boxes_of);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def(
      "multiclass_nms(Tensor boxes, Tensor scores, float score_threshold, float iou_threshold, "
      "int nms_top_k, int keep_top_k) -> (Tensor boxes, Tensor scores, Tensor labels, "
      "Tensor prior_index, Tensor count)");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) {
  m.impl("multiclass_nms", TORCH_BOX(&multiclass_nms_cpu));
}

}  // namespace ssdkern
