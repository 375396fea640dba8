#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace ssdkern {

// forcecast: any layout and number type comes in as the contiguous type named here.
template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

pybind11::tuple match_detections(const Array<double>& boxes, const Array<int64_t>& offsets,
                                 const Array<double>& gt_boxes, const Array<bool>& gt_ignore,
                                 const Array<int64_t>& gt_offsets, double iou_threshold,
                                 bool plus_one);

}  // namespace ssdkern
