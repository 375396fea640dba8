// Offsets to boxes: the inverse of encode_boxes.
#include "tensors.h"
#define SSDKERN_KERNELS "decode_boxes.h"
#include "isa.h"

namespace ssdkern {
Tensor decode_boxes_cpu(const Tensor& offsets, const Tensor& priors, double center_variance,
                        double size_variance, double max_log_scale) {
  check_coding(offsets, "offsets", priors);
  const Tensor from = torch::stable::contiguous(offsets);
  return with_float(from, [&](auto kind) {
    using T = decltype(kind);
    using S = Compute<T>;
    const Tensor prior = as(priors, scalar_type_of<S>());
    Tensor out = torch::stable::new_empty(from, from.sizes(), scalar_type_of<S>());
    const auto run = SSDKERN_PICK(decode_boxes_rows<T, S>);
    for_each_row_block(from.size(0), from.size(1), [&](int64_t row, int64_t box, int64_t count) {
      run(data<T>(from) + 4 * row, data<S>(prior) + 4 * box, count,
          {center_variance, size_variance}, max_log_scale, data<S>(out) + 4 * row);
    });
    return out;
  });
}

Tensor decode_boxes_backward_cpu(const Tensor& grad, const Tensor& offsets, const Tensor& priors,
                                 double center_variance, double size_variance,
                                 double max_log_scale) {
  check_coding(offsets, "offsets", priors);
  check_floats(grad, "grad", {offsets.size(0), offsets.size(1), 4});
  const Tensor from = torch::stable::contiguous(offsets);
  return with_float(from, [&](auto kind) {
    using T = decltype(kind);
    using S = Compute<T>;
    const Tensor prior = as(priors, scalar_type_of<S>()), g = as(grad, scalar_type_of<S>());
    Tensor out = torch::stable::new_empty(from, from.sizes(), scalar_type_of<S>());
    const auto run = SSDKERN_PICK(decode_boxes_rows_backward<T, S>);
    for_each_row_block(from.size(0), from.size(1), [&](int64_t row, int64_t box, int64_t count) {
      run(data<S>(g) + 4 * row, data<T>(from) + 4 * row, data<S>(prior) + 4 * box, count,
          {center_variance, size_variance}, max_log_scale, data<S>(out) + 4 * row);
    });
    return out;
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def(
      "decode_boxes(Tensor offsets, Tensor priors, float center_variance, float size_variance, "
      "float max_log_scale) -> Tensor");
  m.def(
      "decode_boxes_backward(Tensor grad, Tensor offsets, Tensor priors, float center_variance, "
      "float size_variance, float max_log_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) {
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cpu));
  m.impl("decode_boxes_backward", TORCH_BOX(&decode_boxes_backward_cpu));
}

}  // namespace ssdkern
