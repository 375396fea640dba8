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
  S part;   // an intersection needs a little more than this of the areas' sum; 0: unknown

  explicit Limit(double threshold) : bound(S(threshold)), part(0) {
    if (!(double(bound) > threshold)) bound = std::nextafter(bound, S(INFINITY));
    if (!(double(bound) > threshold)) bound = S(NAN);  // of NaN and infinity: nothing exceeds them
    if (bound > S(1e-30) && bound < 2) part = S(bound / (1.0 + bound) * (1 - 1e-6));
  }

  __device__ __forceinline__ S share(S area) const { return part * area; }

  // Bits of COUNT boxes: those that may exceed the limit with `box`. None other does, as
  // i / (a + b - i) < t where i < t / (1 + t) * (a + b), and where an intersection or a share is
  // NaN so is the IoU. An intersection that is 0 for a negative height comes out lower. Numbers too
  // small to be normal are multiples of one unit: two roundings up do not reach the next.
  template <int COUNT = 32>
  __device__ __forceinline__ unsigned suspects(const Box<S>& box, S own, const Box<S>* others,
                                               const S* shares) const {
    constexpr unsigned kAll = ~0u >> (32 - COUNT);
    if (part == 0) return kAll;
    unsigned below = 0;
#pragma unroll
    for (int i = COUNT - 1; i >= 0; --i) {
      const Box<S> other = others[i];
      const S width = fmin(box.x2, other.x2) - fmax(box.x1, other.x1);
      const S height = fmin(box.y2, other.y2) - fmax(box.y1, other.y1);
      const S excess = fmax(width, S(0)) * height - (own + shares[i]);
      below = below << 1 | unsigned(signbit(excess));
    }
    return ~below & kAll;
  }

  __device__ __forceinline__ bool exceeded(S inter, S area_a, S area_b) const {
    const S joint = area_a + area_b - inter, limit = bound * joint;
    if (part > 0 && limit > S(1e-30)) {  // the margins cover all rounding, also in the division
      if (inter < limit * S(1 - 1e-6)) return false;
      if (inter > limit * S(1 + 1e-6)) return true;
    }
    return inter / joint >= bound;
  }
};

}  // namespace ssdkern
