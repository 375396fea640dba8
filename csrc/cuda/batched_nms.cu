// Greedy suppression within groups, which lie one after the other in the order that `suppress`
// uses.
#include "nms.cuh"

namespace ssdkern {

Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                        double iou_threshold) {
  check_device(boxes, scores, idxs);
  check_scored(boxes, scores, kMostBoxes);
  check_shape(idxs, "idxs", {boxes.size(0)});
  const ScalarType type = compute_type(boxes, scores);
  const Tensor from = packed(boxes, type), ranking = as(scores, type);
  const Tensor groups = as(idxs, ScalarType::Long);
  return with_compute(type, [&](auto kind) {
    return suppress<decltype(kind), true>(from, ranking, groups, iou_threshold);
  });
}

SSDKERN_CUDA_IMPL(m) { m.impl("batched_nms", TORCH_BOX(&batched_nms_cuda)); }

}  // namespace ssdkern
