// The list that greedy suppression grows.
#pragma once

#include <cmath>
#include <limits>

#include "soa.h"

namespace ssdkern {

template <typename S>
struct Kept {
  Columns<S> boxes;
  std::vector<int32_t> rows;  // where each kept box stands in the order of scores
  int64_t count = 0;

  explicit Kept(int64_t most) : rows(most) {
    boxes.stride = (most + 15) / 16 * 16;
    boxes.values.assign(5 * boxes.stride, std::numeric_limits<S>::quiet_NaN());
  }

  void add(const Columns<S>& from, int64_t row) {
    for (int column = 0; column < 5; ++column) boxes.at(column)[count] = from.at(column)[row];
    rows[count++] = int32_t(row);
  }
};

// The largest S that is no more than the threshold: an IoU of type S exceeds both or neither.
template <typename S>
S limit_of(double threshold) {
  const S limit = S(threshold);
  return double(limit) > threshold ? std::nextafter(limit, -std::numeric_limits<S>::infinity())
                                   : limit;
}

}  // namespace ssdkern
