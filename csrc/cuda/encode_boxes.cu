// Boxes to offsets from the priors, a thread for each.
#include "coding.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 256;

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads) encode_boxes_kernel(CodedRows<T, S> in, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < in.count) store_box(out, i, encode(in.row(i), in.prior(i), in.variances));
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

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    encode_boxes_backward_kernel(CodedRows<T, S> in, const S* grad, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= in.count) return;
  const Box<S> box = in.row(i), prior = in.prior(i), g = load_box<S>(grad, i);
  const auto [x1, x2] = side_gradient(box.x1, box.x2, prior.x1, prior.x2, g.x1, g.x2, in.variances);
  const auto [y1, y2] = side_gradient(box.y1, box.y2, prior.y1, prior.y2, g.y1, g.y2, in.variances);
  store_box(out, i, Box<S>{x1, y1, x2, y2});
}

}  // namespace

Tensor encode_boxes_cuda(const Tensor& boxes, const Tensor& priors, double center_variance,
                         double size_variance) {
  const Coded coded(boxes, "boxes", priors, {center_variance, size_variance});
  return coded.run([&]<typename T, typename S>(const Stream& stream, CodedRows<T, S> in, S* out) {
    stream.launch<encode_boxes_kernel<T, S>>(ceil_div(in.count, kThreads), kThreads, 0, in, out);
  });
}

Tensor encode_boxes_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& priors,
                                  double center_variance, double size_variance) {
  const Coded coded(boxes, "boxes", priors, {center_variance, size_variance});
  const Tensor g = coded.gradient(grad);
  return coded.run([&]<typename T, typename S>(const Stream& stream, CodedRows<T, S> in, S* out) {
    stream.launch<encode_boxes_backward_kernel<T, S>>(ceil_div(in.count, kThreads), kThreads, 0, in,
                                                      data<S>(g), out);
  });
}

SSDKERN_CUDA_IMPL(m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes_cuda));
  m.impl("encode_boxes_backward", TORCH_BOX(&encode_boxes_backward_cuda));
}

}  // namespace ssdkern
