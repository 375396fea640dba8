// Boxes on sixteen lanes: sixteen boxes in columns, or four boxes as they lie in memory ("quads").
// Included by isa.h after vec_math.h.

template <typename S>
struct Sixteen {
  Vec<S> x1, y1, x2, y2, area;
};

template <typename S>
SSDKERN_INLINE Sixteen<S> load_boxes(const Columns<S>& boxes, int64_t i) {
  return {load(boxes.at(0) + i), load(boxes.at(1) + i), load(boxes.at(2) + i),
          load(boxes.at(3) + i), load(boxes.at(4) + i)};
}

template <typename S>
SSDKERN_INLINE Sixteen<S> splat_box(const S* box) {
  const Box<S> one{box[0], box[1], box[2], box[3]};
  return {splat(one.x1), splat(one.y1), splat(one.x2), splat(one.y2), splat(area(one))};
}

// IoU before its division.
template <typename S>
struct Overlap {
  Vec<S> inter, joint;
};

template <typename S>
SSDKERN_INLINE Overlap<S> overlap(const Sixteen<S>& a, const Sixteen<S>& b) {
  const auto zero = splat(S(0));
  const auto w = max(min(a.x2, b.x2) - max(a.x1, b.x1), zero);
  const auto h = max(min(a.y2, b.y2) - max(a.y1, b.y1), zero);
  const auto inter = w * h;
  return {inter, a.area + b.area - inter};
}

// Each quad (a, b, c, d) as (c, d, a, b).
template <typename S>
SSDKERN_INLINE Vec<S> swap_halves(Vec<S> a) {
#if SSDKERN_REGISTER == 64
  if constexpr (sizeof(S) == 4) {
    const auto all = reinterpret_cast<__m512>(a.r[0]);
    return {{reinterpret_cast<typename Native<S>::V>(_mm512_maskz_permute_ps(0xffff, all, 0x4e))}};
  }
#elif defined(__x86_64__)
  if constexpr (sizeof(S) == 4) {
    SSDKERN_EACH {
#if SSDKERN_REGISTER == 32
      const auto part = reinterpret_cast<__m256>(a.r[k]);
      a.r[k] = reinterpret_cast<typename Native<S>::V>(_mm256_permute_ps(part, 0x4e));
#else
      const auto part = reinterpret_cast<__m128>(a.r[k]);
      a.r[k] = reinterpret_cast<typename Native<S>::V>(_mm_shuffle_ps(part, part, 0x4e));
#endif
    }
    return a;
  }
#endif
  S lanes[kLanes], swapped[kLanes];
  store(lanes, a);
  for (int i = 0; i < kLanes; ++i) swapped[i] = lanes[i ^ 2];
  return load(swapped);
}

// (low, low, high, high) in each quad.
template <typename S>
SSDKERN_INLINE Vec<S> quad(S low, S high) {
  S lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i & 2 ? high : low;
  return load(lanes);
}

// The upper two lanes of each quad.
template <typename S>
SSDKERN_INLINE Ints<S> upper_half() {
  return quad(S(0), S(1)) != splat(S(0));
}

// Of four boxes: (cx, cy, cx, cy) and (w, h, w, h) as they are.
template <typename S>
struct CenterSize {
  Vec<S> center, size;
};

template <typename S>
SSDKERN_INLINE CenterSize<S> center_size(Vec<S> box) {
  const auto other = swap_halves(box);
  const auto size = (other - box) * quad(S(1), S(-1));
  return {(box + other) * splat(S(0.5)), size};
}

// Sizes of at least kMinSize; a NaN stays.
template <typename S>
SSDKERN_INLINE Vec<S> at_least_min(Vec<S> size) {
  return max(splat(S(kMinSize)), size);
}
