// Greedy suppression, shared by all ops that end in it; defined in nms.cpp.
#pragma once

#include "kept.h"
#include "order.h"
#include "tensors.h"

namespace ssdkern {

// Of boxes in descending order of score, those that overlap no kept one by more than the threshold;
// at most `most`. Runs in parallel where the set is large.
template <typename S>
Kept<S> suppress(const Columns<S>& boxes, double iou_threshold, int64_t most);

// The boxes that the keys name, in their order.
template <typename S>
Columns<S> gather(const S* boxes, const std::vector<Key<S>>& keys) {
  std::vector<S> rows(4 * keys.size());
  for (size_t i = 0; i < keys.size(); ++i)
    std::copy_n(boxes + 4 * int64_t(index_of<S>(keys[i])), 4, rows.data() + 4 * i);
  return Columns<S>(rows.data(), keys.size());
}

}  // namespace ssdkern
