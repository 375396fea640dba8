// Offsets from the priors to boxes, a thread for each.
#include "coding.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 256;

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    decode_boxes_kernel(const T* offsets, const S* priors, int64_t count, int64_t num_priors,
                        Variances variances, double max_log_scale, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const Box<S> prior = load_box<S>(priors, i % num_priors);
  store_box(out, i, decode(load_box<S>(offsets, i), prior, variances, max_log_scale));
}

// Gradient of half a side's length in the offset that scales it.
template <typename S>
__device__ S scale_gradient(S offset, S low, S high, S grad, S variance, S bound) {
  const S scale = offset * variance;
  return scale >= bound ? S(0) : grad * (exp(scale) * side(low, high).size / 2) * variance;
}

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    decode_boxes_backward_kernel(const S* grad, const T* offsets, const S* priors, int64_t count,
                                 int64_t num_priors, Variances variances, double max_log_scale,
                                 S* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const Box<S> prior = load_box<S>(priors, i % num_priors), given = load_box<S>(offsets, i);
  const Box<S> g = load_box<S>(grad, i);
  const S center = S(variances.center), size = S(variances.size), bound = S(max_log_scale);
  store_box(out, i,
            Box<S>{(g.x1 + g.x2) * side(prior.x1, prior.x2).size * center,
                   (g.y1 + g.y2) * side(prior.y1, prior.y2).size * center,
                   scale_gradient(given.x2, prior.x1, prior.x2, g.x2 - g.x1, size, bound),
                   scale_gradient(given.y2, prior.y1, prior.y2, g.y2 - g.y1, size, bound)});
}

void check_offsets(const Tensor& offsets, const Tensor& priors) {
  check_device(offsets, priors);
  check_float(offsets, "offsets");
  check_float(priors, "priors");
  check_shape(priors, "priors", {-1, 4});
  check_shape(offsets, "offsets", {-1, priors.size(0), 4});
}

}  // namespace

Tensor decode_boxes_cuda(const Tensor& offsets, const Tensor& priors, double center_variance,
                         double size_variance, double max_log_scale) {
  check_offsets(offsets, priors);
  const ScalarType type = compute_type(offsets, priors);
  const Tensor from = type == ScalarType::Double ? packed(offsets, type) : packed(offsets);
  const Tensor p = packed(priors, type);
  Tensor out = torch::stable::new_empty(from, from.sizes(), type);
  const int64_t count = out.numel() / 4;
  if (count == 0) return out;
  const Stream stream(from);
  with_float(from, [&](auto element) {
    using T = decltype(element);
    using S = Compute<T>;
    stream.launch<decode_boxes_kernel<T, S>>(
        ceil_div(count, kThreads), kThreads, 0, data<T>(from), data<S>(p), count, p.size(0),
        Variances{center_variance, size_variance}, max_log_scale, data<S>(out));
  });
  return out;
}

Tensor decode_boxes_backward_cuda(const Tensor& grad, const Tensor& offsets, const Tensor& priors,
                                  double center_variance, double size_variance,
                                  double max_log_scale) {
  check_offsets(offsets, priors);
  check_device(offsets, grad);
  check_float(grad, "grad");
  check_shape(grad, "grad", {offsets.size(0), offsets.size(1), 4});
  const ScalarType type = compute_type(offsets, priors);
  const Tensor from = type == ScalarType::Double ? packed(offsets, type) : packed(offsets);
  const Tensor p = packed(priors, type), g = packed(grad, type);
  Tensor out = torch::stable::new_empty(from, from.sizes(), type);
  const int64_t count = out.numel() / 4;
  if (count == 0) return out;
  const Stream stream(from);
  with_float(from, [&](auto element) {
    using T = decltype(element);
    using S = Compute<T>;
    stream.launch<decode_boxes_backward_kernel<T, S>>(
        ceil_div(count, kThreads), kThreads, 0, data<S>(g), data<T>(from), data<S>(p), count,
        p.size(0), Variances{center_variance, size_variance}, max_log_scale, data<S>(out));
  });
  return out;
}

SSDKERN_CUDA_IMPL(m) {
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes_cuda));
  m.impl("decode_boxes_backward", TORCH_BOX(&decode_boxes_backward_cuda));
}

}  // namespace ssdkern
