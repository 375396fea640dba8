#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>

namespace ssdkern {

using Rectangle = std::array<int64_t, 4>;  // xyxy

// What happens to the levels of a pixel, in this order.
struct Distortion {
  float shift;   // added to all channels
  float before;  // factor on all channels
  float depth;   // factor on S of HSV
  float turn;    // of H, in sixths of a circle, at most 1 either way
  float after;   // factor on all channels
};

pybind11::array_t<uint8_t> render(const pybind11::array_t<uint8_t>& pixels, const Rectangle& source,
                                  const Rectangle& target, int64_t size,
                                  const std::string& interpolation,
                                  const std::array<float, 5>& distortion,
                                  const std::array<bool, 2>& flips,
                                  const std::array<uint8_t, 3>& fill);

pybind11::array_t<uint8_t> arrow_pixels(const pybind11::capsule& array, int64_t height,
                                        int64_t width);

}  // namespace ssdkern
