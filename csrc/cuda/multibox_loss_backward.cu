// The gradient of the MultiBox loss in one launch that writes each element once, and reads only the
// rows that were selected. Their softmax is taken anew: exp(x - lse) of a kept logsumexp, which is
// rounded, would be off by more than the promise where logits are large.
#include "multibox_loss.cuh"
#include "softmax.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 256, kBackwardRows = 128;

template <typename T, typename S>
struct Gradients {
  const S *localization, *classification;  // of the two sums
  const T* logits;
  const bool* selected;
  T* to_logits;
};

template <typename S>
__device__ void store_any(void* boxes, ScalarType type, int64_t i, const Box<S>& box) {
  switch (type) {
    case ScalarType::Double:
      return store_box(static_cast<double*>(boxes), i, box);
    case ScalarType::Half:
      return store_box(static_cast<Half*>(boxes), i, box);
    case ScalarType::BFloat16:
      return store_box(static_cast<BFloat16*>(boxes), i, box);
    default:
      return store_box(static_cast<float*>(boxes), i, box);
  }
}

template <typename S>
__device__ S clamp_one(S x) {
  return x < -1 ? S(-1) : x > 1 ? S(1) : x;
}

// A block writes the gradients of kBackwardRows rows: zeros throughout, then the few selected rows.
template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    multibox_loss_backward_kernel(Gradients<T, S> grads, Target target, Boxes<S> boxes,
                                  int64_t rows, int num_priors, void* to_offsets) {
  const int64_t first = int64_t(blockIdx.x) * kBackwardRows;
  const int count = int(min(int64_t(kBackwardRows), rows - first));
  const int num_classes = target.num_classes, lane = threadIdx.x % 32;

  // 1. zeros, 16 bytes at a time: kBackwardRows rows of any type are a multiple of that
  constexpr int kStep = 16 / sizeof(T);
  T* const out = grads.to_logits + first * num_classes;
  const int64_t size = int64_t(count) * num_classes, steps = size / kStep;
  struct alignas(16) Zeros {
    T values[kStep];
  };
  Zeros zeros;
#pragma unroll
  for (int i = 0; i < kStep; ++i) zeros.values[i] = T(S(0));
  for (int64_t i = threadIdx.x; i < steps; i += kThreads) reinterpret_cast<Zeros*>(out)[i] = zeros;
  for (int64_t i = steps * kStep + threadIdx.x; i < size; i += kThreads) out[i] = T(S(0));

  // 2. offsets
  if (threadIdx.x < count) {
    const int64_t i = first + threadIdx.x;
    const int row = target.row(i);
    Box<S> grad = {S(0), S(0), S(0), S(0)};
    if (row >= 0) {
      const S scale = *grads.localization;
      const Box<S> prior = load_box<S>(boxes.priors, i % num_priors);
      const Box<S> wanted = encode(load_box<S>(boxes.gt_boxes, row), prior, boxes.variances);
      const Box<S> given = load_box<S>(boxes.offsets, i);
      grad = {clamp_one(given.x1 - wanted.x1) * scale, clamp_one(given.y1 - wanted.y1) * scale,
              clamp_one(given.x2 - wanted.x2) * scale, clamp_one(given.y2 - wanted.y2) * scale};
    }
    store_any(to_offsets, boxes.offsets.type, i, grad);
  }
  __syncthreads();

  // 3. selected rows, a warp for each
  constexpr int kRows = kBackwardRows / (kThreads / 32);
  const int base = threadIdx.x / 32 * kRows;
  const bool mine = lane < kRows && base + lane < count && grads.selected[first + base + lane];
  for (unsigned todo = __ballot_sync(kAllLanes, mine); todo; todo &= todo - 1) {
    const int64_t i = first + base + __ffs(todo) - 1;
    const int label = target.label(target.matched[i]);
    const S scale = *grads.classification;
    const T* const x = grads.logits + i * num_classes;
    T* const gradient = grads.to_logits + i * num_classes;
    const S max = row_max<32, S>(x, 0, num_classes);
    const S sum = row_sum<32, S>(x, num_classes, max);
    for (int c = lane; c < num_classes; c += 32) {
      const S p = exp(S(x[c]) - max) / sum;
      gradient[c] = T((c == label ? p - 1 : p) * scale);
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor> multibox_loss_backward_cuda(
    const Tensor& grad_localization, const Tensor& grad_classification, const Tensor& logits,
    const Tensor& offsets, const Tensor& priors, const Tensor& gt_boxes, const Tensor& gt_labels,
    const Tensor& matched, const Tensor& selected, double center_variance, double size_variance) {
  const Inputs in(logits, offsets, priors, gt_boxes, gt_labels, matched);
  const int64_t batch = in.logits.size(0), num_priors = in.logits.size(1);
  check_device(logits, grad_localization, grad_classification, selected);
  check_shape(grad_localization, "grad_localization", {});
  check_shape(grad_classification, "grad_classification", {});
  check_shape(selected, "selected", {batch, num_priors});
  const Tensor scale_localization = as(grad_localization, in.type);
  const Tensor scale_classification = as(grad_classification, in.type);
  const Tensor taken = as(selected, ScalarType::Bool);
  Tensor to_logits = torch::stable::new_empty(in.logits, in.logits.sizes());
  Tensor to_offsets = torch::stable::new_empty(in.offsets, in.offsets.sizes());
  if (in.rows() == 0) return {to_logits, to_offsets};
  const Stream stream(in.logits);
  with_types(in, [&](auto element, auto number) {
    using T = decltype(element);
    using S = decltype(number);
    const Gradients<T, S> grads{data<S>(scale_localization), data<S>(scale_classification),
                                data<T>(in.logits), data<bool>(taken), data<T>(to_logits)};
    stream.launch<multibox_loss_backward_kernel<T, S>>(
        ceil_div(in.rows(), kBackwardRows), kThreads, 0, grads, in.target(),
        in.boxes<S>({center_variance, size_variance}), in.rows(), int(num_priors),
        to_offsets.mutable_data_ptr());
  });
  return {as(to_logits, logits.scalar_type()), to_offsets};
}

SSDKERN_CUDA_IMPL(m) { m.impl("multibox_loss_backward", TORCH_BOX(&multibox_loss_backward_cuda)); }

}  // namespace ssdkern
