// Boxes to offsets from the priors.
#include "tensors.h"
#define SSDKERN_KERNELS "encode_boxes.h"
#include "isa.h"

namespace ssdkern {
Tensor encode_boxes_cpu(const Tensor& boxes, const Tensor& priors, double center_variance,
                        double size_variance) {
  check_coding(boxes, "boxes", priors);
  const ScalarType type = compute_type(boxes, priors);
  const Tensor from = as(boxes, type), prior = as(priors, type);
  Tensor out = torch::stable::new_empty(from, from.sizes());
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    const auto run = SSDKERN_PICK(encode_boxes_rows<S>);
    for_each_row_block(from.size(0), from.size(1), [&](int64_t row, int64_t box, int64_t count) {
      run(data<S>(from) + 4 * row, data<S>(prior) + 4 * box, count,
          {center_variance, size_variance}, data<S>(out) + 4 * row);
    });
  });
  return out;
}

Tensor encode_boxes_backward_cpu(const Tensor& grad, const Tensor& boxes, const Tensor& priors,
                                 double center_variance, double size_variance) {
  check_coding(boxes, "boxes", priors);
  check_floats(grad, "grad", {boxes.size(0), boxes.size(1), 4});
  const ScalarType type = compute_type(boxes, priors);
  const Tensor g = as(grad, type), from = as(boxes, type), prior = as(priors, type);
  Tensor out = torch::stable::new_empty(from, from.sizes());
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    const auto run = SSDKERN_PICK(encode_boxes_rows_backward<S>);
    for_each_row_block(from.size(0), from.size(1), [&](int64_t row, int64_t box, int64_t count) {
      run(data<S>(g) + 4 * row, data<S>(from) + 4 * row, data<S>(prior) + 4 * box, count,
          {center_variance, size_variance}, data<S>(out) + 4 * row);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def(
      "encode_boxes(Tensor boxes, Tensor priors, float center_variance, float size_variance) -> "
      "Tensor");
  m.def(
      "encode_boxes_backward(Tensor grad, Tensor boxes, Tensor priors, float center_variance, "
      "float size_variance) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes_cpu));
  m.impl("encode_boxes_backward", TORCH_BOX(&encode_boxes_backward_cpu));
}

}  // namespace ssdkern
