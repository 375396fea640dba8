// Which negatives an image trains on: a block for each image selects, nothing is sorted.
#include "reduce.cuh"
#include "select.cuh"

namespace ssdkern {
namespace {

constexpr int kThreads = 1024;

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    mine_hard_negatives_kernel(const T* loss, const bool* positive, int num_priors,
                               double neg_pos_ratio, OrderKey<S>* spilled, bool* selected) {
  using Key = OrderKey<S>;
  SSDKERN_SHARED(memory);
  __shared__ Select<Key, 1> select;
  __shared__ Key key_parts[kThreads / 32];
  __shared__ int counts[kThreads / 32];
  const int64_t first = int64_t(blockIdx.x) * num_priors;
  Key* const keys = spilled ? spilled + first : reinterpret_cast<Key*>(memory);

  int positives = 0, candidates = 0;
  Key lowest = ~Key(0), highest = 0;
  for (int i = threadIdx.x; i < num_priors; i += kThreads) {
    const S value = S(loss[first + i]);
    Key key = 0;
    if (positive[first + i]) {
      ++positives;
    } else if (value != -S(INFINITY)) {
      ++candidates;
      key = order_key(value);
      lowest = min(lowest, key), highest = max(highest, key);
    }
    keys[i] = key;
  }
  positives = block_sum(positives, counts);
  candidates = block_sum(candidates, counts);
  lowest = block_reduce(lowest, key_parts, [](Key a, Key b) { return min(a, b); });
  highest = block_reduce(highest, key_parts, [](Key a, Key b) { return max(a, b); });

  const double wanted = positives * neg_pos_ratio;
  const int take = wanted < candidates ? int(wanted) : candidates;
  const Cut<Key> cut = take_highest(select, keys, num_priors, take, candidates, lowest, highest);
  for (int i = threadIdx.x; i < num_priors; i += kThreads)
    selected[first + i] = cut.takes(keys[i], i);
}

}  // namespace

Tensor mine_hard_negatives_cuda(const Tensor& loss, const Tensor& positive, double neg_pos_ratio) {
  check_device(loss, positive);
  check_float(loss, "loss");
  check_shape(loss, "loss", {-1, -1});
  const int64_t batch = loss.size(0), num_priors = loss.size(1);
  check_shape(positive, "positive", {batch, num_priors});
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
    const bool fits = bytes + sizeof(Select<Key, 1>) + 1024 <= stream.shared_limit();
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
