// SSD's loss. Forward reads the logits once; backward writes zeros and the selected rows.
#include <memory>
#include <numeric>

#include "tensors.h"
#define SSDKERN_KERNELS "multibox_loss.h"
#include "isa.h"

namespace ssdkern {
namespace {

struct Targets {
  Tensor priors, gt_boxes, gt_labels, matched;
  Variances variances;
  int64_t images, count, classes;
};

Targets check_targets(const Tensor& logits, const Tensor& offsets, const Tensor& priors,
                      const Tensor& gt_boxes, const Tensor& gt_labels, const Tensor& matched,
                      Variances variances, ScalarType type) {
  check_heads(logits, offsets, priors);
  check_ground_truth(logits, gt_boxes, gt_labels, matched);
  const int64_t images = logits.size(0), count = logits.size(1), classes = logits.size(2);
  STD_TORCH_CHECK(gt_labels.scalar_type() == ScalarType::Long, "want gt_labels of dtype int64, ",
                  "got ", gt_labels.scalar_type());
  STD_TORCH_CHECK(matched.scalar_type() == ScalarType::Int, "want matched of dtype int32, got ",
                  matched.scalar_type());
  const Targets out{as(priors, type),
                    as(gt_boxes, type),
                    torch::stable::contiguous(gt_labels),
                    torch::stable::contiguous(matched),
                    variances,
                    images,
                    count,
                    classes};
  const int64_t* label = data<int64_t>(out.gt_labels);
  for (int64_t i = 0; i < gt_boxes.size(0); ++i)
    STD_TORCH_CHECK(label[i] >= 0 && label[i] < classes, "want gt_labels in 1..", classes - 1,
                    ", got ", label[i]);
  const int32_t* row = data<int32_t>(out.matched);
  int32_t low = -2, high = -1;
  for (int64_t i = 0; i < images * count; ++i) {
    low = std::min(low, row[i]);
    high = std::max(high, row[i]);
  }
  STD_TORCH_CHECK(low >= -2 && high < gt_boxes.size(0), "want matched in -2..",
                  gt_boxes.size(0) - 1, ", got ", low, "..", high);
  return out;
}

// Where an image's flags are set, in order.
std::vector<int32_t> indices(const bool* flags, int64_t count) {
  std::vector<int32_t> found(count + 1);
  int64_t size = 0;
  for (int64_t i = 0; i < count; ++i) {
    found[size] = int32_t(i);
    size += flags[i];
  }
  found.resize(size);
  return found;
}

// An image's positives, and what their offsets should be: [positives, 4].
template <typename S>
struct Positives {
  std::unique_ptr<bool[]> flags;
  std::vector<int32_t> priors;
  std::vector<S> offsets;

  Positives(const Targets& targets, const int32_t* matched) : flags(new bool[targets.count + 1]) {
    for (int64_t i = 0; i < targets.count; ++i) flags[i] = matched[i] >= 0;
    priors = indices(flags.get(), targets.count);
    std::vector<S> from(4 * priors.size()), to(4 * priors.size());
    const S *all = data<S>(targets.priors), *gt_boxes = data<S>(targets.gt_boxes);
    for (size_t k = 0; k < priors.size(); ++k) {
      std::copy_n(all + 4 * int64_t(priors[k]), 4, from.data() + 4 * k);
      std::copy_n(gt_boxes + 4 * int64_t(matched[priors[k]]), 4, to.data() + 4 * k);
    }
    offsets.resize(from.size());
    const auto encode = SSDKERN_PICK(encode_boxes_rows<S>);
    encode(to.data(), from.data(), int64_t(priors.size()), targets.variances, offsets.data());
  }
};

// What the rows of logits are normalised by, see multibox_loss.h.
template <typename S>
struct Normalizers {
  std::unique_ptr<S[]> peak, log_sum;

  explicit Normalizers(int64_t rows) : peak(new S[rows]), log_sum(new S[rows]) {}

  // Not below 0, as rounding could have it; a NaN stays.
  S cross_entropy(int64_t row, S logit) const {
    const S loss = log_sum[row] - (logit - peak[row]);
    return loss < 0 ? S(0) : loss;
  }
};

// Calls f(image) for all images, in parallel.
template <typename F>
void for_each_image(int64_t images, F f) {
  torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) f(image);
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> multibox_loss_cpu(
    const Tensor& logits, const Tensor& offsets, const Tensor& priors, const Tensor& gt_boxes,
    const Tensor& gt_labels, const Tensor& matched, double neg_pos_ratio, double center_variance,
    double size_variance) {
  check_ratio(neg_pos_ratio);
  const ScalarType type = compute_type(logits, offsets);
  const Targets targets = check_targets(logits, offsets, priors, gt_boxes, gt_labels, matched,
                                        {center_variance, size_variance}, type);
  const auto [images, count, classes] = std::tuple(targets.images, targets.count, targets.classes);
  const Tensor heads =
      type == ScalarType::Double ? as(logits, type) : torch::stable::contiguous(logits);
  return with_float(heads, [&](auto kind) {
    using T = decltype(kind);
    using S = Compute<T>;
    const Tensor codes = as(offsets, type);
    Tensor selected = torch::stable::new_empty(codes, {images, count}, ScalarType::Bool);
    std::vector<S> rank(images * count);
    const T* x = data<T>(heads);
    const int32_t* row = data<int32_t>(targets.matched);
    const int64_t* label = data<int64_t>(targets.gt_labels);
    const Normalizers<S> norm(images * count);
    const auto run = SSDKERN_PICK(log_sums_rows<T, S>);
    for_each_row_block(images, count, [&](int64_t first, int64_t, int64_t rows) {
      run(x + first * classes, rows, classes, &norm.peak[first], &norm.log_sum[first]);
      for (int64_t i = first; i < first + rows; ++i)
        rank[i] = row[i] == -2 || classes == 0 ? -std::numeric_limits<S>::infinity()
                                               : norm.cross_entropy(i, S(x[i * classes]));
    });

    std::vector<double> localization(images), classification(images);
    std::vector<int64_t> positives(images);
    const auto mine = SSDKERN_PICK(mine_image<S>);
    for_each_image(images, [&](int64_t image) {
      const int64_t first = image * count;
      const Positives<S> found(targets, row + first);
      const std::unique_ptr<LaneInt<S>[]> keys(new LaneInt<S>[count + kLanes]);
      bool* chosen = data<bool>(selected) + first;
      mine(rank.data() + first, found.flags.get(), count, neg_pos_ratio, keys.get(), chosen);
      for (const auto i : indices(chosen, count)) classification[image] += double(rank[first + i]);
      positives[image] = int64_t(found.priors.size());
      const S *code = data<S>(codes) + first * 4, *want = found.offsets.data();
      for (const auto i : found.priors) {
        const int64_t at = first + i;
        chosen[i] = true;
        classification[image] +=
            double(norm.cross_entropy(at, S(x[at * classes + label[row[at]]])));
        for (int k = 0; k < 4; ++k) {
          const S off = std::abs(code[4 * i + k] - *want++);
          localization[image] += double(off < S(1) ? S(0.5) * off * off : off - S(0.5));
        }
      }
    });
    const auto scalar = [&]<typename N>(const std::vector<N>& parts, ScalarType kind_of) {
      return std::pair(torch::stable::new_empty(codes, {}, kind_of),
                       std::accumulate(parts.begin(), parts.end(), N(0)));
    };
    auto [loc, loc_sum] = scalar(localization, type);
    auto [cls, cls_sum] = scalar(classification, type);
    auto [number, total] = scalar(positives, ScalarType::Long);
    *data<S>(loc) = S(loc_sum);
    *data<S>(cls) = S(cls_sum);
    *data<int64_t>(number) = total;
    return std::tuple(loc, cls, number, selected);
  });
}

std::tuple<Tensor, Tensor> multibox_loss_backward_cpu(
    const Tensor& grad_localization, const Tensor& grad_classification, const Tensor& logits,
    const Tensor& offsets, const Tensor& priors, const Tensor& gt_boxes, const Tensor& gt_labels,
    const Tensor& matched, const Tensor& selected, double center_variance, double size_variance) {
  check_floats(grad_localization, "grad_localization", {});
  check_floats(grad_classification, "grad_classification", {});
  const ScalarType type = compute_type(logits, offsets);
  const Targets targets = check_targets(logits, offsets, priors, gt_boxes, gt_labels, matched,
                                        {center_variance, size_variance}, type);
  const auto [images, count, classes] = std::tuple(targets.images, targets.count, targets.classes);
  check_shape(selected, "selected", {images, count});
  STD_TORCH_CHECK(selected.scalar_type() == ScalarType::Bool, "want selected of dtype bool, got ",
                  selected.scalar_type());
  const Tensor heads =
      type == ScalarType::Double ? as(logits, type) : torch::stable::contiguous(logits);
  return with_float(heads, [&](auto kind) {
    using T = decltype(kind);
    using S = Compute<T>;
    const Tensor codes = as(offsets, type);
    const Tensor chosen = torch::stable::contiguous(selected);
    Tensor grad_logits = torch::stable::new_empty(heads, heads.sizes());
    Tensor grad_offsets = torch::stable::new_empty(codes, codes.sizes());
    const T* x = data<T>(heads);
    T* out = data<T>(grad_logits);
    const int32_t* row = data<int32_t>(targets.matched);
    const int64_t* label = data<int64_t>(targets.gt_labels);
    const S by_class = *data<S>(as(grad_classification, type));
    const S by_offset = *data<S>(as(grad_localization, type));
    const bool* taken = data<bool>(chosen);
    const auto run = SSDKERN_PICK(softmax_gradient<T, S>);
    for_each_row_block(images, count, [&](int64_t first, int64_t, int64_t rows) {
      std::fill(out + first * classes, out + (first + rows) * classes, T(0));
      for (int64_t i = first; i < first + rows; ++i)
        if (taken[i])
          run(x + i * classes, classes, row[i] >= 0 ? label[row[i]] : 0, by_class,
              out + i * classes);
    });
    for_each_image(images, [&](int64_t image) {
      const int64_t first = image * count;
      const Positives<S> found(targets, row + first);
      const S *code = data<S>(codes) + first * 4, *want = found.offsets.data();
      S* grad = data<S>(grad_offsets) + first * 4;
      std::fill(grad, grad + count * 4, S(0));
      for (const auto i : found.priors)
        for (int k = 0; k < 4; ++k) {
          const S off = code[4 * i + k] - *want++;
          grad[4 * i + k] = std::min(std::max(off, S(-1)), S(1)) * by_offset;  // a NaN stays
        }
    });
    return std::tuple(grad_logits, as(grad_offsets, offsets.scalar_type()));
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def(
      "multibox_loss(Tensor logits, Tensor offsets, Tensor priors, Tensor gt_boxes, "
      "Tensor gt_labels, Tensor matched, float neg_pos_ratio, float center_variance, "
      "float size_variance) -> (Tensor localization, Tensor classification, "
      "Tensor num_positives, Tensor selected)");
  m.def(
      "multibox_loss_backward(Tensor grad_localization, Tensor grad_classification, "
      "Tensor logits, Tensor offsets, Tensor priors, Tensor gt_boxes, Tensor gt_labels, "
      "Tensor matched, Tensor selected, float center_variance, float size_variance) "
      "-> (Tensor grad_logits, Tensor grad_offsets)");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) {
  m.impl("multibox_loss", TORCH_BOX(&multibox_loss_cpu));
  m.impl("multibox_loss_backward", TORCH_BOX(&multibox_loss_backward_cpu));
}

}  // namespace ssdkern
