// The loops over one output row, in float. Included by isa.h, once per instruction set, so that the
// compiler vectorises each copy for its own registers: the same arithmetic in the same order.

typedef float Pixel __attribute__((vector_size(16)));  // red, green, blue and a fourth unused
typedef float Level __attribute__((vector_size(SSDKERN_REGISTER)));
typedef int32_t Whole __attribute__((vector_size(SSDKERN_REGISTER)));

// Four of the eight numbers of two pixels.
template <int... kOrder>
inline Pixel shuffle(Pixel a, Pixel b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kOrder...);
#else  // GCC has that from version 12
  typedef int32_t Order __attribute__((vector_size(16)));
  return __builtin_shuffle(a, b, Order{kOrder...});
#endif
}

template <int kTaps, bool kFirst>
inline void add_rows(const uint8_t* __restrict from, int64_t stride,
                     const float* __restrict weights, int64_t count, float* __restrict out) {
  float weight[kTaps];
  for (int k = 0; k < kTaps; ++k) weight[k] = weights[k];
  for (int64_t i = 0; i < count; ++i) {
    float sum = kFirst ? 0 : out[i];
#pragma GCC unroll 4
    for (int k = 0; k < kTaps; ++k) sum += weight[k] * float(int32_t(from[k * stride + i]));
    out[i] = sum;
  }
}

template <bool kFirst>
inline void add_some_rows(const uint8_t* from, int64_t stride, const float* weights, int64_t taps,
                          int64_t count, float* out) {
  switch (taps) {
    case 1:
      return add_rows<1, kFirst>(from, stride, weights, count, out);
    case 2:
      return add_rows<2, kFirst>(from, stride, weights, count, out);
    case 3:
      return add_rows<3, kFirst>(from, stride, weights, count, out);
    default:
      return add_rows<4, kFirst>(from, stride, weights, count, out);
  }
}

// One row of channels from `taps` rows above each other.
inline void blend_rows(const uint8_t* from, int64_t stride, const float* weights, int64_t taps,
                       int64_t count, float* out) {
  add_some_rows<true>(from, stride, weights, taps, count, out);
  for (int64_t k = 4; k < taps; k += 4)
    add_some_rows<false>(from + k * stride, stride, weights + k, taps - k, count, out);
}

// Pixels of kStride floats, the last followed by a float more that may be read, to three planes
// `count` apart, four pixels at a time.
template <int kStride>
inline void blend_columns(const float* row, const Taps& taps, int64_t count, float* planes) {
  const int64_t *first = taps.first.data(), width = taps.width;
  const float* weights = taps.weights.data();
  for (int64_t i = 0; i < count; i += 4, weights += 4 * width) {
    Pixel sum[4];
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      const float* from = row + first[i + p] * kStride;
      sum[p] = Pixel{};
      for (int64_t k = 0; k < width; ++k) {
        Pixel pixel;
        __builtin_memcpy(&pixel, from + k * kStride, sizeof pixel);
        sum[p] += weights[p * width + k] * pixel;
      }
    }
    const Pixel low = shuffle<0, 4, 1, 5>(sum[0], sum[1]);
    const Pixel high = shuffle<0, 4, 1, 5>(sum[2], sum[3]);
    const Pixel red = shuffle<0, 1, 4, 5>(low, high);
    const Pixel green = shuffle<2, 3, 6, 7>(low, high);
    const Pixel last = shuffle<2, 6, 2, 6>(sum[0], sum[1]);
    const Pixel blue = shuffle<0, 1, 4, 5>(last, shuffle<2, 6, 2, 6>(sum[2], sum[3]));
    __builtin_memcpy(planes + i, &red, sizeof red);
    __builtin_memcpy(planes + count + i, &green, sizeof green);
    __builtin_memcpy(planes + 2 * count + i, &blue, sizeof blue);
  }
}

inline Level least(Level a, Level b) { return a < b ? a : b; }
inline Level most(Level a, Level b) { return a > b ? a : b; }
inline Level clip(Level x, float high) { return least(most(x, Level{}), high - Level{}); }
inline Level size_of(Level x) { return most(x, -x); }

// S times `depth`, but at most 1, and H turned.
inline void shift_hsv(Level (&rgb)[3], float depth, float turn) {
  const Level red = rgb[0], green = rgb[1], blue = rgb[2], none = {};
  const Level value = most(most(red, green), blue);
  const Level chroma = value - least(least(red, green), blue);
  const Level unit = 1.0f / (chroma > 0.0f ? chroma : none + 1.0f);
  Level hue = (green - blue) * unit;
  hue = green == value ? (blue - red) * unit + 2.0f : hue;
  hue = blue == value ? (red - green) * unit + 4.0f : hue;
  // red wins ties: there the other formulas agree with it up to whole turns
  hue += turn;
  hue += hue < 0.0f ? none + 6.0f : none;
  const Level strong = least(chroma * depth, value), rest = value - strong;
  rgb[0] = clip(size_of(hue - 3.0f) - 1.0f, 1) * strong + rest;
  rgb[1] = clip(2.0f - size_of(hue - 2.0f), 1) * strong + rest;
  rgb[2] = clip(2.0f - size_of(hue - 4.0f), 1) * strong + rest;
}

// Three planes `count` apart, in place: whole levels in other colours.
template <bool kHsv>
inline void distort(const Distortion& distortion, int64_t count, float* planes) {
  constexpr int64_t kWidth = SSDKERN_REGISTER / 4;
  const auto [shift, before, depth, turn, after] = distortion;
  for (int64_t i = 0; i < count; i += kWidth) {
    Level rgb[3];
#pragma GCC unroll 3
    for (int c = 0; c < 3; ++c) {
      __builtin_memcpy(&rgb[c], planes + c * count + i, sizeof(Level));
      rgb[c] = clip(clip(clip(rgb[c], 255) + shift, 255) * before, 255);
    }
    if (kHsv) shift_hsv(rgb, depth, turn);
#pragma GCC unroll 3
    for (int c = 0; c < 3; ++c) {
      const Whole level = __builtin_convertvector(clip(rgb[c] * after, 255) + 0.5f, Whole);
      __builtin_memcpy(planes + c * count + i, &level, sizeof level);
    }
  }
}

inline void narrow(const float* planes, int64_t count, uint8_t* __restrict out) {
  const auto* levels = reinterpret_cast<const int32_t*>(planes);
  for (int64_t i = 0; i < count; ++i) out[i] = uint8_t(levels[i]);
}

// `from` is the first of the source rows that this output row needs.
inline void render_row(const RowJob& job, const uint8_t* from, const float* weights, int64_t taps) {
  blend_rows(from, job.stride, weights, taps, job.channels * job.inputs, job.blended);
  const auto blend = job.channels == 3 ? blend_columns<3> : blend_columns<4>;
  blend(job.blended, *job.columns, job.padded, job.planes);
  const Distortion& distortion = job.distortion;
  const bool hsv = distortion.depth != 1 || distortion.turn != 0;
  (hsv ? distort<true> : distort<false>)(distortion, job.padded, job.planes);
  narrow(job.planes, 3 * job.padded, job.levels);
}
