// Offsets from the priors to boxes, a thread for each.
#include "coding.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 256;

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    decode_boxes_kernel(CodedRows<T, S> in, double max_log_scale, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < in.count) store_box(out, i, decode(in.row(i), in.prior(i), in.variances, max_log_scale));
}

// Gradient of half a side's length in the offset that scales it.
template <typename S>
__device__ S scale_gradient(S offset, S low, S high, S grad, S variance, S bound) {
  const S scale = offset * variance;
  return scale >= bound ? S(0) : grad * (exp(scale) * side(low, high).size / 2) * variance;
}

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    decode_boxes_backward_kernel(CodedRows<T, S> in, const S* grad, double max_log_scale, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= in.count) return;
  const Box<S> given = in.row(i), prior = in.prior(i), g = load_box<S>(grad, i);
  const S center = S(in.variances.center), size = S(in.variances.size), bound = S(max_log_scale);
  store_box(out, i,
            Box<S>{(g.x1 + g.x2) * side(prior.x1, prior.x2).size * center,
                   (g.y1 + g.y2) * side(prior.y1, prior.y2).size * center,
                   scale_gradient(given.x2, prior.x1, prior.x2, g.x2 - g.x1, size, bound),
                   scale_gradient(given.y2, prior.y1, prior.y2, g.y2 - g.y1, size, bound)});
}

}  // namespace

Tensor decode_boxes_cuda(const Tensor& offsets, const Tensor& priors, double center_variance,
                         double size_variance, double max_log_scale) {
  const Coded coded(offsets, "offsets", priors, {center_variance, size_variance});
  return coded.run([&]<typename T, typename S>(const Stream& stream, CodedRows<T, S> in, S* out) {
    stream.launch<decode_boxes_kernel<T, S>>(ceil_div(in.count, kThreads), kThreads, 0, in,
                                             max_log_scale, out);
  });
}

Tensor decode_boxes_backward_cuda(const Tensor& grad, const Tensor& offsets, const Tensor& priors,
                                  double center_variance, double size_variance,
                                  double max_log_scale) {
  const Coded coded(offsets, "offsets", priors, {center_variance, size_variance});
  const Tensor g = coded.gradient(grad);
  return coded.run([&]<typename T, typename S>(const Stream& stream, CodedRows<T, S> in, S* out) {
    stream.launch<decode_boxes_backward_kernel<T, S>>(ceil_div(in.count, kThreads), kThreads, 0, in,
                                                      data<S>(g), max_log_scale, out);
  });
}

SSDKERN_CUDA_IMPL(m) {
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cuda));
  m.impl("decode_boxes_backward", TORCH_BOX(&decode_boxes_backward_cuda));
}

}  // namespace ssdkern
