// What the tensors of each op must be, on CPU and CUDA alike.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ssdkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i)
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

// Checks the shape; a size of -1 in `want` fits any.
inline void check_shape(const Tensor& tensor, const char* name, const std::vector<int64_t>& want) {
  bool fits = tensor.dim() == int64_t(want.size());
  for (size_t i = 0; fits && i < want.size(); ++i)
    fits = want[i] < 0 || tensor.size(int64_t(i)) == want[i];
  std::string text = "[";
  for (size_t i = 0; i < want.size(); ++i)
    text += (i ? ", " : "") + (want[i] < 0 ? "*" : std::to_string(want[i]));
  STD_TORCH_CHECK(fits, "want ", name, " ", text, "], got ", shape(tensor));
}

inline bool is_float(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

inline void check_float(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(is_float(tensor), "want ", name, " of a floating-point dtype, got ",
                  tensor.scalar_type());
}

inline void check_floats(const Tensor& tensor, const char* name, const std::vector<int64_t>& want) {
  check_float(tensor, name);
  check_shape(tensor, name, want);
}

// Of box_iou.
inline void check_pair(const Tensor& boxes1, const Tensor& boxes2) {
  check_floats(boxes1, "boxes1", {-1, -1, 4});
  check_floats(boxes2, "boxes2", {boxes1.size(0), -1, 4});
}

// Of encode_boxes and decode_boxes.
inline void check_coding(const Tensor& rows, const char* name, const Tensor& priors) {
  check_floats(priors, "priors", {-1, 4});
  check_floats(rows, name, {-1, priors.size(0), 4});
}

inline void check_matching(const Tensor& priors, const Tensor& gt_boxes) {
  check_floats(priors, "priors", {-1, 4});
  check_floats(gt_boxes, "gt_boxes", {-1, 4});
}

inline void check_mining(const Tensor& loss, const Tensor& positive) {
  check_floats(loss, "loss", {-1, -1});
  check_shape(positive, "positive", {loss.size(0), loss.size(1)});
}

inline void check_ratio(double neg_pos_ratio) {
  STD_TORCH_CHECK(neg_pos_ratio >= 0 && neg_pos_ratio <= 1e6, "want 0 <= neg_pos_ratio <= 1e6, ",
                  "got ", neg_pos_ratio);
}

// What a model gives to multibox_loss and to detect.
inline void check_heads(const Tensor& logits, const Tensor& offsets, const Tensor& priors) {
  check_floats(logits, "logits", {-1, -1, -1});
  check_floats(offsets, "offsets", {logits.size(0), logits.size(1), 4});
  check_floats(priors, "priors", {logits.size(1), 4});
}

inline void check_ground_truth(const Tensor& logits, const Tensor& gt_boxes,
                               const Tensor& gt_labels, const Tensor& matched) {
  check_floats(gt_boxes, "gt_boxes", {-1, 4});
  check_shape(gt_labels, "gt_labels", {gt_boxes.size(0)});
  check_shape(matched, "matched", {logits.size(0), logits.size(1)});
}

// Of nms and batched_nms.
inline void check_scored(const Tensor& boxes, const Tensor& scores, int64_t most) {
  check_floats(boxes, "boxes", {-1, 4});
  check_floats(scores, "scores", {boxes.size(0)});
  STD_TORCH_CHECK(boxes.size(0) <= most, "want at most ", most, " boxes, got ", boxes.size(0));
}

// Of multiclass_nms.
inline void check_class_scores(const Tensor& boxes, const Tensor& scores) {
  check_floats(scores, "scores", {-1, -1, -1});
  check_floats(boxes, "boxes", {scores.size(0), scores.size(1), 4});
}

}  // namespace ssdkern
