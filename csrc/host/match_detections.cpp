#include "match_detections.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace ssdkern {
namespace {

struct Box {
  double x1, y1, x2, y2;
};

double iou(const Box& a, const Box& b, double extra) {
  const double width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1) + extra;
  const double height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1) + extra;
  if (!(width > 0 && height > 0)) return 0;
  const double intersection = width * height;
  const double area_a = (a.x2 - a.x1 + extra) * (a.y2 - a.y1 + extra);
  const double area_b = (b.x2 - b.x1 + extra) * (b.y2 - b.y1 + extra);
  return intersection / (area_a + area_b - intersection);
}

void check_boxes(const Array<double>& boxes, const char* name) {
  if (boxes.ndim() != 2 || boxes.shape(1) != 4)
    throw std::invalid_argument(std::string("want ") + name + " [N, 4], got " +
                                std::to_string(boxes.ndim()) + " dimensions");
}

void check_offsets(const Array<int64_t>& offsets, py::ssize_t rows, const char* name) {
  const int64_t* p = offsets.data();
  const py::ssize_t n = offsets.ndim() == 1 ? offsets.shape(0) : 0;
  if (n == 0 || p[0] != 0 || p[n - 1] != rows || !std::is_sorted(p, p + n))
    throw std::invalid_argument(std::string("want ") + name + " ascending from 0 to " +
                                std::to_string(rows) + " in one dimension");
}

}  // namespace

py::tuple match_detections(const Array<double>& boxes, const Array<int64_t>& offsets,
                           const Array<double>& gt_boxes, const Array<bool>& gt_ignore,
                           const Array<int64_t>& gt_offsets, double iou_threshold, bool plus_one) {
  check_boxes(boxes, "boxes");
  check_boxes(gt_boxes, "gt_boxes");
  check_offsets(offsets, boxes.shape(0), "offsets");
  check_offsets(gt_offsets, gt_boxes.shape(0), "gt_offsets");
  if (gt_ignore.ndim() != 1 || gt_ignore.shape(0) != gt_boxes.shape(0))
    throw std::invalid_argument("want gt_ignore [N] beside gt_boxes [N, 4], N = " +
                                std::to_string(gt_boxes.shape(0)));
  if (offsets.shape(0) != gt_offsets.shape(0))
    throw std::invalid_argument("want as many groups in gt_offsets as in offsets, got " +
                                std::to_string(gt_offsets.shape(0) - 1) + " and " +
                                std::to_string(offsets.shape(0) - 1));

  py::array_t<int8_t> outcome(boxes.shape(0));
  py::array_t<int64_t> matched(boxes.shape(0));
  const auto* det = reinterpret_cast<const Box*>(boxes.data());
  const auto* gt = reinterpret_cast<const Box*>(gt_boxes.data());
  const bool* ignore = gt_ignore.data();
  const int64_t *starts = offsets.data(), *gt_starts = gt_offsets.data();
  const int64_t groups = offsets.shape(0) - 1, num_gt = gt_boxes.shape(0);
  int8_t* out = outcome.mutable_data();
  int64_t* out_row = matched.mutable_data();
  {
    py::gil_scoped_release release;
    const double extra = plus_one ? 1 : 0;
    std::vector<char> taken(num_gt, 0);
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t d = starts[group]; d < starts[group + 1]; ++d) {
        double best = -1;
        int64_t row = -1;
        for (int64_t g = gt_starts[group]; g < gt_starts[group + 1]; ++g) {
          const double overlap = iou(det[d], gt[g], extra);
          if (overlap > best) best = overlap, row = g;
        }
        const bool hit = row >= 0 && best >= iou_threshold;
        out_row[d] = hit ? row : -1;
        if (!hit || (!ignore[row] && taken[row])) {
          out[d] = 0;
        } else {
          out[d] = ignore[row] ? -1 : 1;
          taken[row] = 1;
        }
      }
    }
  }
  return py::make_tuple(outcome, matched);
}

}  // namespace ssdkern
