// From logits and offsets to detections: rows that cannot pass are left without any exp, and only
// the survivors of each class are decoded.
#include <cmath>
#include <limits>

#include "detections.h"
#define SSDKERN_KERNELS "detect.h"
#include "isa.h"

namespace ssdkern {
namespace {

double log_odds(double threshold) {
  constexpr double kSlack = 1e-3;
  if (threshold >= 1) return std::numeric_limits<double>::infinity();
  if (!(threshold > 0)) return -std::numeric_limits<double>::infinity();
  return std::log(threshold / (1 - threshold)) - kSlack;
}

}  // namespace

DetectionTensors detect_cpu(const Tensor& logits, const Tensor& offsets, const Tensor& priors,
                            double score_threshold, double iou_threshold, int64_t nms_top_k,
                            int64_t keep_top_k, double center_variance, double size_variance,
                            double max_log_scale, bool clip) {
  check_heads(logits, offsets, priors);
  const int64_t images = logits.size(0), count = logits.size(1), classes = logits.size(2);
  check_limits(count, nms_top_k, keep_top_k);
  const Limits limits{score_threshold, iou_threshold, nms_top_k, keep_top_k};
  const ScalarType type = compute_type(logits, offsets, priors);
  const Tensor heads =
      type == ScalarType::Double ? as(logits, type) : torch::stable::contiguous(logits);
  return with_float(heads, [&](auto kind) {
    using T = decltype(kind);
    using S = Compute<T>;
    const Tensor codes = as(offsets, scalar_type_of<S>()), prior = as(priors, scalar_type_of<S>());
    const T *first = data<T>(heads), *end = first + images * count * classes;
    const auto run = SSDKERN_PICK(scan_logits<T, S>);
    const auto decode = SSDKERN_PICK(decode_boxes_rows<S, S>);
    const S margin = S(log_odds(S(score_threshold)));
    const auto scan = [&](int64_t image, int64_t row, int64_t rows, Key<S>* keys, int32_t* labels) {
      std::vector<S> scratch(classes + 15);
      return run(first + (image * count + row) * classes, end, row, rows, classes,
                 S(score_threshold), margin, scratch.data(), keys, labels);
    };
    const auto boxes_of = [&](int64_t image, const std::vector<Key<S>>& keys, S* out) {
      std::vector<S> code(4 * keys.size()), box(4 * keys.size());
      for (size_t i = 0; i < keys.size(); ++i) {
        const int64_t row = index_of<S>(keys[i]);
        std::copy_n(data<S>(codes) + (image * count + row) * 4, 4, code.data() + 4 * i);
        std::copy_n(data<S>(prior) + row * 4, 4, box.data() + 4 * i);
      }
      const Variances variances{center_variance, size_variance};
      decode(code.data(), box.data(), keys.size(), variances, max_log_scale, out);
      if (clip)
        for (size_t i = 0; i < 4 * keys.size(); ++i)
          out[i] = out[i] < S(0) ? S(0) : out[i] > S(1) ? S(1) : out[i];
    };
    return select_detections<S>(logits, images, count, classes, limits, scan, boxes_of);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssdkern, m) {
  m.def(
      "detect(Tensor logits, Tensor offsets, Tensor priors, float score_threshold, "
      "float iou_threshold, int nms_top_k, int keep_top_k, float center_variance, "
      "float size_variance, float max_log_scale, bool clip) -> (Tensor boxes, Tensor scores, "
      "Tensor labels, Tensor prior_index, Tensor count)");
}

STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m) { m.impl("detect", TORCH_BOX(&detect_cpu)); }

}  // namespace ssdkern
