// What the forward and the backward pass of the MultiBox loss share.
#pragma once

#include "coding.cuh"

namespace ssdkern {

// What a prior is trained for: its row of ground truth, -1 for the background, -2 for nothing.
struct Target {
  const int* matched;
  const int64_t* gt_labels;
  int num_rows, num_classes;

  __device__ int row(int64_t i) const {
    const int row = matched[i];
    return row >= num_rows ? -1 : row;
  }
  __device__ int label(int match) const {
    const int64_t label = unsigned(match) < unsigned(num_rows) ? gt_labels[match] : 0;
    return label < 0 || label >= num_classes ? 0 : int(label);
  }
};

template <typename S>
struct Boxes {
  AnyBoxes offsets;
  const S *priors, *gt_boxes;
  Variances variances;
};

struct Inputs {
  Tensor logits, offsets, priors, gt_boxes, gt_labels, matched;
  ScalarType type;

  Inputs(const Tensor& given_logits, const Tensor& given_offsets, const Tensor& given_priors,
         const Tensor& given_boxes, const Tensor& given_labels, const Tensor& given_matched)
      : type(compute_type(given_logits, given_offsets, given_priors, given_boxes)) {
    check_device(given_logits, given_offsets, given_priors, given_boxes, given_labels,
                 given_matched);
    check_heads(given_logits, given_offsets, given_priors);
    check_ground_truth(given_logits, given_boxes, given_labels, given_matched);
    STD_TORCH_CHECK(given_logits.size(2) > 0, "want at least one class, got 0");
    STD_TORCH_CHECK(given_priors.size(0) < 1 << 30 && given_boxes.size(0) < 1 << 30 &&
                        given_logits.size(2) < 1 << 30,
                    "want fewer than 2^30 priors, rows of ground truth and classes");
    logits = type == ScalarType::Double ? packed(given_logits, type) : packed(given_logits);
    offsets = packed(given_offsets);
    priors = packed(given_priors, type);
    gt_boxes = packed(given_boxes, type);
    gt_labels = as(given_labels, ScalarType::Long);
    matched = as(given_matched, ScalarType::Int);
  }

  int64_t rows() const { return logits.size(0) * logits.size(1); }
  Target target() const {
    return {data<int>(matched), data<int64_t>(gt_labels), int(gt_boxes.size(0)),
            int(logits.size(2))};
  }
  template <typename S>
  Boxes<S> boxes(Variances variances) const {
    return {AnyBoxes(offsets), data<S>(priors), data<S>(gt_boxes), variances};
  }
};

// Calls f(T{}, S{}): the type of the logits, and what it is computed in.
template <typename F>
void with_types(const Inputs& in, F f) {
  with_float(in.logits, [&](auto element) {
    using T = decltype(element);
    using S = Compute<T>;
    f(element, S());
  });
}

}  // namespace ssdkern
