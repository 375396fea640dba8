// Included by isa.h, once per instruction set.

// Whether the IoU of `box` with any kept box from `begin` (a multiple of 16) on exceeds `limit`.
// For limit >= 0 the division is needed only where inter >= limit * joint: rounding is monotone, so
// that no quotient above the limit fails this.
template <typename S>
SSDKERN_INLINE bool is_covered(const Sixteen<S>& box, const Kept<S>& kept, int64_t begin, S limit) {
  const auto bound = splat(limit);
  for (int64_t i = begin; i < kept.count; i += kLanes) {
    const auto [inter, joint] = overlap(box, load_boxes(kept.boxes, i));
    if (limit >= S(0) && bits(inter >= bound * joint) == 0) continue;
    if (bits(inter / joint > bound)) return true;
  }
  return false;
}

template <typename S>
SSDKERN_INLINE Sixteen<S> splat_row(const Columns<S>& boxes, int64_t i) {
  const S box[] = {boxes.at(0)[i], boxes.at(1)[i], boxes.at(2)[i], boxes.at(3)[i]};
  return splat_box(box);
}

// covered[i]: whether box begin + i falls to a kept one.
template <typename S>
void mark_covered(const Columns<S>& boxes, int64_t begin, int64_t end, const Kept<S>& kept, S limit,
                  bool* covered) {
  for (int64_t i = begin; i < end; ++i)
    covered[i - begin] = is_covered(splat_row(boxes, i), kept, 0, limit);
}

// Adds to `kept` the boxes begin..end, in order of score, that fall to none kept from `first` on.
template <typename S>
void keep_uncovered(const Columns<S>& boxes, int64_t begin, int64_t end, const bool* covered,
                    int64_t first, S limit, int64_t most, Kept<S>& kept) {
  for (int64_t i = begin; i < end && kept.count < most; ++i) {
    if (covered && covered[i - begin]) continue;
    if (!is_covered(splat_row(boxes, i), kept, first / kLanes * kLanes, limit)) kept.add(boxes, i);
  }
}
