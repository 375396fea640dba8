// Which negatives an image trains on: a block for each image selects, nothing is sorted.
#include "hardest.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 1024, kAhead = 5;

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    mine_hard_negatives_kernel(const T* loss, const bool* positive, int num_priors,
                               double neg_pos_ratio, OrderKey<S>* spilled, bool* selected) {
  using Key = OrderKey<S>;
  SSDKERN_SHARED(memory);
  __shared__ Hardest<Key> hardest;
  const int64_t first = int64_t(blockIdx.x) * num_priors;
  Key* const keys = spilled ? spilled + first : reinterpret_cast<Key*>(memory);

  Seen<Key> seen;
  for (int base = threadIdx.x; base < num_priors; base += kAhead * kThreads) {
    S values[kAhead];
    bool positives[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = min(base + k * kThreads, num_priors - 1);
      values[k] = S(loss[first + i]), positives[k] = positive[first + i];
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = base + k * kThreads;
      if (i >= num_priors) break;
      Key key = 0;
      if (positives[k]) {
        ++seen.positives;
      } else if (values[k] != -S(INFINITY)) {
        key = seen.candidate(values[k]);
      }
      keys[i] = key;
    }
  }
  const Cut<Key> cut = hardest.find(keys, num_priors, neg_pos_ratio, seen);
  for (int i = threadIdx.x; i < num_priors; i += kThreads)
    selected[first + i] = cut.takes(keys[i], i);
}

}  // namespace

Tensor mine_hard_negatives_cuda(const Tensor& loss, const Tensor& positive, double neg_pos_ratio) {
  check_device(loss, positive);
  check_mining(loss, positive);
  const int64_t batch = loss.size(0), num_priors = loss.size(1);
  STD_TORCH_CHECK(num_priors < 1 << 30, "want fewer than 2^30 priors, got ", num_priors);
  const Tensor values = as(loss, loss.scalar_type()), marks = as(positive, ScalarType::Bool);
  Tensor selected = torch::stable::new_empty(marks, {batch, num_priors});
  if (selected.numel() == 0) return selected;
  const Stream stream(loss);
  with_float(values, [&](auto element) {
    using T = decltype(element);
    using S = Compute<T>;
    using Key = OrderKey<S>;
    const size_t bytes = num_priors * sizeof(Key);
    const bool fits = bytes + sizeof(Hardest<Key>) + 1024 <= stream.shared_limit();
    Scratch scratch;
    const auto keys = scratch.reserve<Key>(fits ? 0 : batch * num_priors);
    scratch.allocate(loss);
    stream.launch<mine_hard_negatives_kernel<T, S>>(
        batch, kThreads, fits ? bytes : 0, data<T>(values), data<bool>(marks), int(num_priors),
        neg_pos_ratio, fits ? nullptr : scratch[keys], data<bool>(selected));
  });
  return selected;
}

SSDKERN_CUDA_IMPL(m) { m.impl("mine_hard_negatives", TORCH_BOX(&mine_hard_negatives_cuda)); }

}  // namespace ssdkern
