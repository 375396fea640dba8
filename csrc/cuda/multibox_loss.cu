// The MultiBox loss in two launches: the cross-entropy of every row, one read of the logits; then a
// block for each image mines by selection and sums. Sums are in float64, and in an order that
// depends on the sizes only.
#include "hardest.cuh"
#include "multibox_loss.cuh"
#include "softmax.cuh"

namespace ssdkern {
namespace {

constexpr int kImageThreads = 1024, kAhead = 5;

// -log softmax of each row's target, [rows].
template <int LANES, typename T, typename S>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_kernel(Tile<LANES, T> rows, Target target, S* cross_entropy, unsigned* ticket) {
  SSDKERN_SHARED(memory);
  if (blockIdx.x == 0 && threadIdx.x == 0) *ticket = 0;
  const int match = target.matched[rows.row_or_last()];  // on its way while the rows come
  const T* const x = rows.load(memory);
  const int label = target.label(match);
  const S max = row_max<LANES, S>(x, 0, rows.num_classes);
  const S log_sum = log(row_sum<LANES, S>(x, rows.num_classes, max));
  if (rows.writes()) cross_entropy[rows.row()] = log_sum - (S(x[label]) - max);
}

template <typename S>
__device__ S smooth_l1(S x) {
  const S size = x < 0 ? -x : x;
  return size < 1 ? x * x / 2 : size - S(0.5);
}

template <typename S>
__device__ double localization_loss(const Box<S>& offsets, const Box<S>& wanted) {
  return double(smooth_l1(offsets.x1 - wanted.x1)) + smooth_l1(offsets.y1 - wanted.y1) +
         smooth_l1(offsets.x2 - wanted.x2) + smooth_l1(offsets.y2 - wanted.y2);
}

struct Sums {
  double localization, classification;
  long long positives;
};

template <typename S>
struct Totals {
  S *localization, *classification;
  int64_t* positives;
};

template <typename S>
__global__ void __launch_bounds__(kImageThreads)
    multibox_loss_kernel(const S* cross_entropy, Target target, Boxes<S> boxes, int num_priors,
                         double neg_pos_ratio, OrderKey<S>* spilled, bool* selected, Sums* images,
                         unsigned* ticket, Totals<S> totals) {
  using Key = OrderKey<S>;
  SSDKERN_SHARED(memory);
  __shared__ Hardest<Key> hardest;
  __shared__ double parts[kImageThreads / 32];
  const int64_t image = blockIdx.x, first = image * num_priors;
  Key* const keys = spilled ? spilled + first : reinterpret_cast<Key*>(memory);

  // 1. positives, and what the negatives rank by
  Seen<Key> seen;
  double localization = 0, classification = 0;
  for (int base = threadIdx.x; base < num_priors; base += kAhead * kImageThreads) {
    int rows[kAhead];
    S losses[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = base + k * kImageThreads;
      rows[k] = i < num_priors ? target.row(first + i) : -2;
      losses[k] = i < num_priors ? cross_entropy[first + i] : S(0);
    }
    unsigned positives = 0;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = base + k * kImageThreads;
      if (i >= num_priors) break;
      const bool positive = rows[k] >= 0;
      keys[i] = positive || rows[k] == -2 ? Key(0) : seen.candidate(losses[k]);
      selected[first + i] = positive;
      positives |= unsigned(positive) << k;
    }
    for (; positives; positives &= positives - 1) {
      const int i = base + (__ffs(positives) - 1) * kImageThreads;
      ++seen.positives;
      classification += cross_entropy[first + i];
      const Box<S> truth = load_box<S>(boxes.gt_boxes, target.row(first + i));
      const Box<S> wanted = encode(truth, load_box<S>(boxes.priors, i), boxes.variances);
      localization += localization_loss(load_box<S>(boxes.offsets, first + i), wanted);
    }
  }

  // 2. the hardest negatives
  const Cut<Key> cut = hardest.find(keys, num_priors, neg_pos_ratio, seen);
  for (int base = threadIdx.x; base < num_priors; base += kAhead * kImageThreads) {
    S losses[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = base + k * kImageThreads;
      const bool taken = i < num_priors && cut.takes(keys[i], i);
      losses[k] = taken ? cross_entropy[first + i] : S(0);
      if (taken) selected[first + i] = true;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) classification += losses[k];
  }

  // 3. sums of the image, and by the last block of all images
  localization = block_sum(localization, parts);
  classification = block_sum(classification, parts);
  __shared__ bool last;
  if (threadIdx.x == 0) {
    images[image] = {localization, classification, seen.positives};
    __threadfence();
    last = atomicAdd(ticket, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  localization = classification = 0;
  long long all_positives = 0;
  for (int i = threadIdx.x; i < gridDim.x; i += kImageThreads) {
    const volatile Sums& sums = images[i];
    localization += sums.localization;
    classification += sums.classification;
    all_positives += sums.positives;
  }
  localization = block_sum(localization, parts);
  classification = block_sum(classification, parts);
  const double count = block_sum(double(all_positives), parts);
  if (threadIdx.x == 0) {
    *totals.localization = S(localization);
    *totals.classification = S(classification);
    *totals.positives = int64_t(count);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> multibox_loss_cuda(
    const Tensor& logits, const Tensor& offsets, const Tensor& priors, const Tensor& gt_boxes,
    const Tensor& gt_labels, const Tensor& matched, double neg_pos_ratio, double center_variance,
    double size_variance) {
  const Inputs in(logits, offsets, priors, gt_boxes, gt_labels, matched);
  const int64_t batch = in.logits.size(0), num_priors = in.logits.size(1);
  Tensor localization = torch::stable::new_empty(in.priors, {});
  Tensor classification = torch::stable::new_empty(in.priors, {});
  Tensor positives = torch::stable::new_empty(in.priors, {}, ScalarType::Long);
  Tensor selected = torch::stable::new_empty(in.priors, {batch, num_priors}, ScalarType::Bool);
  if (in.rows() == 0) {
    for (Tensor* sum : {&localization, &classification, &positives}) torch::stable::zero_(*sum);
    return {localization, classification, positives, selected};
  }
  const Stream stream(in.logits);
  with_types(in, [&](auto element, auto number) {
    using T = decltype(element);
    using S = decltype(number);
    using Key = OrderKey<S>;
    const size_t key_bytes = num_priors * sizeof(Key), fixed = sizeof(Hardest<Key>) + 1024;
    const bool fits = key_bytes + fixed <= stream.shared_limit();
    Scratch scratch;
    const auto cross_entropy = scratch.reserve<S>(in.rows());
    const auto keys = scratch.reserve<Key>(fits ? 0 : in.rows());
    const auto images = scratch.reserve<Sums>(batch);
    const auto ticket = scratch.reserve<unsigned>(1);
    scratch.allocate(in.logits);
    with_tile(data<T>(in.logits), in.rows(), in.target().num_classes,
              [&](auto tile, int64_t blocks, size_t bytes) {
                stream.launch<cross_entropy_kernel<decltype(tile)::kLanes, T, S>>(
                    blocks, kRowThreads, bytes, tile, in.target(), scratch[cross_entropy],
                    scratch[ticket]);
              });
    const Totals<S> totals{data<S>(localization), data<S>(classification),
                           data<int64_t>(positives)};
    stream.launch<multibox_loss_kernel<S>>(
        batch, kImageThreads, fits ? key_bytes : 0, scratch[cross_entropy], in.target(),
        in.boxes<S>({center_variance, size_variance}), int(num_priors), neg_pos_ratio,
        fits ? nullptr : scratch[keys], data<bool>(selected), scratch[images], scratch[ticket],
        totals);
  });
  return {localization, classification, positives, selected};
}

SSDKERN_CUDA_IMPL(m) { m.impl("multibox_loss", TORCH_BOX(&multibox_loss_cuda)); }

}  // namespace ssdkern
