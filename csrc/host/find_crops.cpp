#include "find_crops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace ssdkern {
namespace {

using Box = std::array<double, 4>;  // xyxy

constexpr double kMinIou[] = {0.1, 0.3, 0.5, 0.7, 0.9, 0.0};  // the last takes any crop
constexpr int64_t kSamplers = 6;

// Trial i of `count`: its four draws lie `count` apart.
Box make_crop(const double* draws, int64_t count, double min_scale) {
  const double scale = min_scale + (1 - min_scale) * draws[0], square = scale * scale;
  const double ratio = std::min(std::max(0.5 + 1.5 * draws[count], square), 1 / square);
  const double root = std::sqrt(ratio);
  const double width = std::min(scale * root, 1.0), height = std::min(scale / root, 1.0);
  const double left = draws[2 * count] * (1 - width), top = draws[3 * count] * (1 - height);
  return {left, top, left + width, top + height};
}

double iou(const Box& a, const Box& b) {
  const double width = std::max(std::min(a[2], b[2]) - std::max(a[0], b[0]), 0.0);
  const double height = std::max(std::min(a[3], b[3]) - std::max(a[1], b[1]), 0.0);
  const double overlap = width * height;
  return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap);
}

}  // namespace

py::array_t<double> find_crops(const Array<double>& boxes, const Array<double>& draws,
                               double min_scale) {
  if (boxes.ndim() != 2 || boxes.shape(1) != 4)
    throw std::invalid_argument("want boxes [N, 4], got " + std::to_string(boxes.ndim()) +
                                " dimensions");
  if (draws.ndim() != 2 || draws.shape(0) != 4 || draws.shape(1) % kSamplers != 0)
    throw std::invalid_argument("want draws [4, a multiple of 6], got " +
                                std::to_string(draws.ndim()) + " dimensions");
  const auto* all = reinterpret_cast<const Box*>(boxes.data());
  const int64_t num_boxes = boxes.shape(0), count = draws.shape(1), trials = count / kSamplers;
  const double* from = draws.data();
  std::vector<Box> found;
  {
    py::gil_scoped_release release;
    for (int64_t sampler = 0; sampler < kSamplers; ++sampler) {
      for (int64_t trial = sampler * trials; trial < (sampler + 1) * trials; ++trial) {
        const Box crop = make_crop(from + trial, count, min_scale);
        const bool fits = std::any_of(all, all + num_boxes, [&](const Box& box) {
          return iou(crop, box) >= kMinIou[sampler];
        });
        if (!fits) continue;
        found.push_back(crop);
        break;
      }
    }
  }
  py::array_t<double> result({int64_t(found.size()), int64_t{4}});
  std::copy_n(reinterpret_cast<const double*>(found.data()), 4 * found.size(),
              result.mutable_data());
  return result;
}

}  // namespace ssdkern
