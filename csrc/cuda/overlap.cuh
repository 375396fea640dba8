// IoU of boxes, and whether it exceeds a threshold, mostly without the division.
#pragma once

#include <cmath>

#include "device.cuh"

namespace ssdkern {

// As in boxes.h, in fewer instructions. fmin and fmax drop a NaN, but a box with a NaN, or with a
// side from inf to inf, has an area that is NaN: the IoU comes out the same.
template <typename S>
__device__ __forceinline__ S overlap(const Box<S>& a, const Box<S>& b) {
  const S width = fmin(a.x2, b.x2) - fmax(a.x1, b.x1);
  const S height = fmin(a.y2, b.y2) - fmax(a.y1, b.y1);
  return fmax(width, S(0)) * fmax(height, S(0));
}

// `iou > threshold` with the IoU rounded to S and compared in float64, as torchvision's CPU code.
template <typename S>
struct Limit {
  S bound;  // the lowest S above the threshold

  explicit Limit(double threshold) : bound(S(threshold)) {
    if (!(double(bound) > threshold)) bound = std::nextafter(bound, S(INFINITY));
    if (!(double(bound) > threshold)) bound = S(NAN);  // of NaN and infinity: nothing exceeds them
  }

  __device__ __forceinline__ bool exceeded(S inter, S area_a, S area_b) const {
    const S joint = area_a + area_b - inter, limit = bound * joint;
    if (limit > S(1e-30)) {  // the margins cover all rounding, here and in the division
      if (inter < limit * S(1 - 1e-6)) return false;
      if (inter > limit * S(1 + 1e-6)) return true;
    }
    return inter / joint >= bound;
  }
};

}  // namespace ssdkern
