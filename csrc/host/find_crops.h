#pragma once

#include "match_detections.h"

namespace ssdkern {

pybind11::array_t<double> find_crops(const Array<double>& boxes, const Array<double>& draws,
                                     double min_scale);

}  // namespace ssdkern
