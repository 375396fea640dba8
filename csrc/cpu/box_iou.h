// Included by isa.h, once per instruction set.

// IoU of `box` with boxes [begin, end); `begin` is a multiple of 16.
template <typename S>
void box_iou_row(const S* box, const Columns<S>& boxes, int64_t begin, int64_t end, S* out) {
  const auto a = splat_box(box);
  const auto zero = splat(S(0));
  for (int64_t i = begin; i < end; i += kLanes) {
    const auto [inter, joint] = overlap(a, load_boxes(boxes, i));
    // nothing overlaps, as mostly: 0 without the division; 0 / 0 and NaN take it
    const bool apart = bits((inter == zero) & (joint > zero)) == 0xffff;
    const auto iou = apart ? zero : inter / joint;
    store_part(out + i, iou, int(std::min<int64_t>(kLanes, end - i)));
  }
}

// Adds grad * d iou(a, b) / d a to four sums.
template <typename S>
SSDKERN_INLINE void accumulate_grad(const Sixteen<S>& a, const Sixteen<S>& b, Vec<S> grad,
                                    Vec<S> (&sums)[4]) {
  const auto zero = splat(S(0)), half = splat(S(0.5)), one = splat(S(1));
  const auto dx = min(a.x2, b.x2) - max(a.x1, b.x1), dy = min(a.y2, b.y2) - max(a.y1, b.y1);
  const auto w = max(dx, zero), h = max(dy, zero);
  const auto inter = w * h;
  const auto joint = a.area + b.area - inter;
  grad = grad / joint;  // not over its square, which leaves the range of float before this does
  const auto by_area = zero - grad * (inter / joint), by_inter = grad - by_area;
  // of equal coordinates, minimum and maximum give each half; clamp passes nothing at 0
  const auto by_w = select(dx > zero, by_inter * h, zero);
  const auto by_h = select(dy > zero, by_inter * w, zero);
  const auto share = [&](Vec<S> mine, Vec<S> other) {
    return select(mine > other, one, select(mine == other, half, zero));
  };
  const auto width = a.x2 - a.x1, height = a.y2 - a.y1;
  sums[0] = sums[0] - by_w * share(a.x1, b.x1) - by_area * height;
  sums[1] = sums[1] - by_h * share(a.y1, b.y1) - by_area * width;
  sums[2] = sums[2] + by_w * share(b.x2, a.x2) + by_area * height;
  sums[3] = sums[3] + by_h * share(b.y2, a.y2) + by_area * width;
}

// Gradient of a row of the matrix in the row's box: four numbers.
template <typename S>
void box_iou_row_backward(const S* box, const Columns<S>& boxes, const S* grad, S* out) {
  const auto a = splat_box(box);
  Vec<S> sums[4] = {splat(S(0)), splat(S(0)), splat(S(0)), splat(S(0))};
  for (int64_t i = 0; i < boxes.count; i += kLanes) {
    const int count = int(std::min<int64_t>(kLanes, boxes.count - i));
    accumulate_grad(a, load_boxes(boxes, i), load_part(grad + i, count, S(0)), sums);
  }
  for (int c = 0; c < 4; ++c) out[c] = sum(sums[c]);
}

// Gradient of 16 columns of the matrix in their own boxes [begin, begin + 16).
template <typename S>
void box_iou_columns_backward(const S* rows, int64_t n, const Columns<S>& boxes, int64_t begin,
                              const S* grad, S* out) {
  const auto a = load_boxes(boxes, begin);
  const int count = int(std::min<int64_t>(kLanes, boxes.count - begin));
  Vec<S> sums[4] = {splat(S(0)), splat(S(0)), splat(S(0)), splat(S(0))};
  for (int64_t i = 0; i < n; ++i) {
    const auto part = load_part(grad + i * boxes.count + begin, count, S(0));
    accumulate_grad(a, splat_box(rows + 4 * i), part, sums);
  }
  for (int c = 0; c < 4; ++c) {
    S lanes[kLanes];
    store(lanes, sums[c]);
    for (int i = 0; i < count; ++i) out[4 * (begin + i) + c] = lanes[i];
  }
}
