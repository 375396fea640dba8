// Boxes as five arrays: x1, y1, x2, y2, area.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "../boxes.h"

namespace ssdkern {

constexpr int kLanes = 16;  // numbers that a kernel works on at once

// An integer as wide as S, so that it fits the same lane.
template <typename S>
using LaneInt = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;

// Padded to a multiple of 16 boxes, by default with NaN, which overlaps nothing.
template <typename S>
struct Columns {
  std::vector<S> values;
  int64_t count = 0, stride = 0;

  Columns() = default;
  Columns(const S* boxes, int64_t n, Box<S> padding = nowhere())
      : values(5 * ((n + 15) / 16 * 16)), count(n), stride((n + 15) / 16 * 16) {
    const S pad[] = {padding.x1, padding.y1, padding.x2, padding.y2, area(padding)};
    for (int column = 0; column < 5; ++column)
      for (int64_t i = n; i < stride; ++i) at(column)[i] = pad[column];
    S *x1 = at(0), *y1 = at(1), *x2 = at(2), *y2 = at(3), *areas = at(4);
    for (int64_t i = 0; i < n; ++i) {
      x1[i] = boxes[4 * i];
      y1[i] = boxes[4 * i + 1];
      x2[i] = boxes[4 * i + 2];
      y2[i] = boxes[4 * i + 3];
    }
    for (int64_t i = 0; i < n; ++i) areas[i] = (x2[i] - x1[i]) * (y2[i] - y1[i]);
  }

  static Box<S> nowhere() {
    const S nan = S(__builtin_nan(""));
    return {nan, nan, nan, nan};
  }

  S* at(int column) { return values.data() + column * stride; }
  const S* at(int column) const { return values.data() + column * stride; }
};

}  // namespace ssdkern
