// Greedy suppression of one list.
#include "nms.cuh"

namespace ssdkern {

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_device(boxes, scores);
  check_scored(boxes, scores, kMostBoxes);
  const ScalarType type = compute_type(boxes, scores);
  const Tensor from = packed(boxes, type), ranking = as(scores, type);
  return with_compute(type, [&](auto kind) {
    return suppress<decltype(kind), false>(from, ranking, ranking, iou_threshold);
  });
}

SSDKERN_CUDA_IMPL(m) { m.impl("nms", TORCH_BOX(&nms_cuda)); }

}  // namespace ssdkern
