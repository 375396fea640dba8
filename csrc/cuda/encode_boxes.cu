// Boxes to offsets from the priors, a thread for each.
#include "coding.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 256;

template <typename S>
__global__ void __launch_bounds__(kThreads)
    encode_boxes_kernel(const S* boxes, const S* priors, int64_t count, int64_t num_priors,
                        Variances variances, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const Box<S> prior = load_box<S>(priors, i % num_priors);
  store_box(out, i, encode(load_box<S>(boxes, i), prior, variances));
}

// Gradients of (center, log size) of one side to (low, high).
template <typename S>
__device__ Side<S> side_gradient(S low, S high, S prior_low, S prior_high, S by_center, S by_size,
                                 const Variances& variances) {
  const S moved = by_center / S(variances.center) / side(prior_low, prior_high).size / 2;
  const S size = high - low;
  const S grown = size > S(kMinSize) ? by_size / S(variances.size) / size : S(0);
  return {moved - grown, moved + grown};
}

template <typename S>
__global__ void __launch_bounds__(kThreads)
    encode_boxes_backward_kernel(const S* grad, const S* boxes, const S* priors, int64_t count,
                                 int64_t num_priors, Variances variances, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const Box<S> box = load_box<S>(boxes, i), prior = load_box<S>(priors, i % num_priors);
  const Box<S> g = load_box<S>(grad, i);
  const auto [x1, x2] = side_gradient(box.x1, box.x2, prior.x1, prior.x2, g.x1, g.x2, variances);
  const auto [y1, y2] = side_gradient(box.y1, box.y2, prior.y1, prior.y2, g.y1, g.y2, variances);
  store_box(out, i, Box<S>{x1, y1, x2, y2});
}

void check_boxes(const Tensor& boxes, const Tensor& priors) {
  check_device(boxes, priors);
  check_float(boxes, "boxes");
  check_float(priors, "priors");
  check_shape(priors, "priors", {-1, 4});
  check_shape(boxes, "boxes", {-1, priors.size(0), 4});
}

}  // namespace

Tensor encode_boxes_cuda(const Tensor& boxes, const Tensor& priors, double center_variance,
                         double size_variance) {
  check_boxes(boxes, priors);
  const ScalarType type = compute_type(boxes, priors);
  const Tensor from = packed(boxes, type), p = packed(priors, type);
  Tensor out = torch::stable::new_empty(from, from.sizes());
  const int64_t count = out.numel() / 4;
  if (count == 0) return out;
  const Stream stream(from);
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    stream.launch<encode_boxes_kernel<S>>(ceil_div(count, kThreads), kThreads, 0, data<S>(from),
                                          data<S>(p), count, p.size(0),
                                          Variances{center_variance, size_variance}, data<S>(out));
  });
  return out;
}

Tensor encode_boxes_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& priors,
                                  double center_variance, double size_variance) {
  check_boxes(boxes, priors);
  check_device(boxes, grad);
  check_float(grad, "grad");
  check_shape(grad, "grad", {boxes.size(0), boxes.size(1), 4});
  const ScalarType type = compute_type(boxes, priors);
  const Tensor from = packed(boxes, type), p = packed(priors, type), g = packed(grad, type);
  Tensor out = torch::stable::new_empty(from, from.sizes());
  const int64_t count = out.numel() / 4;
  if (count == 0) return out;
  const Stream stream(from);
  with_compute(type, [&](auto kind) {
    using S = decltype(kind);
    stream.launch<encode_boxes_backward_kernel<S>>(
        ceil_div(count, kThreads), kThreads, 0, data<S>(g), data<S>(from), data<S>(p), count,
        p.size(0), Variances{center_variance, size_variance}, data<S>(out));
  });
  return out;
}

SSDKERN_CUDA_IMPL(m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes_cuda));
  m.impl("encode_boxes_backward", TORCH_BOX(&encode_boxes_backward_cuda));
}

}  // namespace ssdkern
