// exp, log and half-precision loads on sixteen lanes. Included by isa.h after vec.h.

// 2^n * (1 + r + r^2 q(r)), |r| <= ln 2 / 2: within 2 ulp, 0 below -86.99, inf above 88.72.
SSDKERN_INLINE Vec<float> exp(Vec<float> x) {
  x = min(splat(89.0f), max(splat(-87.3f), x));  // a NaN stays
  const auto magic = splat(12582912.0f);         // 1.5 * 2^23: adding it rounds to an integer
  const auto shifted = x * splat(1.44269504f) + magic;
  const auto n = shifted - magic;
  const auto r = x - n * splat(0.693359375f) + n * splat(2.12194440e-4f);
  auto q = splat(0.00138137676f);
  q = q * r + splat(0.00836911798f);
  q = q * r + splat(0.0416684262f);
  q = q * r + splat(0.166665167f);
  q = q * r + splat(0.49999994f);
  const auto y = r * r * q + r + splat(1.0f);
  // twice y, times 2^(n - 1): so that n = 128 has an exponent
  const auto exponent = as_ints(shifted) - splat_int<float>(0x4b400000 - 126);
  return (y + y) * as_vec(shift_left(exponent, 23));
}

// e ln 2 + f - f^2 / 2 + f^3 p(f), f in [sqrt(1/2) - 1, sqrt(2) - 1]: within 2 ulp for normal x.
SSDKERN_INLINE Vec<float> log(Vec<float> x) {
  const auto offset = as_ints(x) - splat_int<float>(0x3f3504f3);
  Vec<float> e;
  for (int k = 0; k < Native<float>::kCount; ++k)
    e.r[k] = __builtin_convertvector(offset.r[k] >> 23, Native<float>::V);
  const auto mantissa = offset & splat_int<float>(0x007fffff);
  const auto f = as_vec(mantissa + splat_int<float>(0x3f3504f3)) - splat(1.0f);
  auto p = splat(-0.0763565153f);
  p = p * f + splat(0.127633259f);
  p = p * f + splat(-0.131605834f);
  p = p * f + splat(0.142015532f);
  p = p * f + splat(-0.166232988f);
  p = p * f + splat(0.200012341f);
  p = p * f + splat(-0.250008225f);
  p = p * f + splat(0.333333313f);
  const auto square = f * f;
  const auto tail = square * f * p - splat(2.12194440e-4f) * e - splat(0.5f) * square;
  const auto y = tail + f + splat(0.693359375f) * e;
  const auto infinity = splat(__builtin_inff());
  const auto special = select(x == splat(0.0f), splat(-__builtin_inff()),
                              select(x == infinity, infinity, splat(__builtin_nanf(""))));
  return select((x > splat(0.0f)) & (infinity > x), y, special);
}

// float64 is for checking gradients: the C library's.
inline Vec<double> exp(Vec<double> x) {
  for (auto& r : x.r)
    for (int i = 0; i < Native<double>::kWidth; ++i) r[i] = std::exp(r[i]);
  return x;
}

inline Vec<double> log(Vec<double> x) {
  for (auto& r : x.r)
    for (int i = 0; i < Native<double>::kWidth; ++i) r[i] = std::log(r[i]);
  return x;
}

template <typename T, typename S = Compute<T>>
SSDKERN_INLINE Vec<S> load_as(const T* from) {
  if constexpr (std::is_same_v<T, S>) {
    return load(from);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    uint16_t half[kLanes];
    int32_t wide[kLanes];
    __builtin_memcpy(half, from, sizeof(half));
    for (int i = 0; i < kLanes; ++i) wide[i] = int32_t(uint32_t(half[i]) << 16);
    return as_vec(load_ints<float>(wide));
  } else {
#if SSDKERN_REGISTER == 64
    const auto half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {{reinterpret_cast<Native<float>::V>(_mm512_maskz_cvtph_ps(0xffff, half))}};
#elif SSDKERN_REGISTER == 32
    const auto* half = reinterpret_cast<const __m128i*>(from);
    const auto low = _mm256_cvtph_ps(_mm_loadu_si128(half));
    const auto high = _mm256_cvtph_ps(_mm_loadu_si128(half + 1));
    return {{reinterpret_cast<Native<float>::V>(low), reinterpret_cast<Native<float>::V>(high)}};
#else
    float wide[kLanes];
    for (int i = 0; i < kLanes; ++i) wide[i] = float(from[i]);
    return load(wide);
#endif
  }
}

template <typename T, typename S = Compute<T>>
SSDKERN_INLINE Vec<S> load_part_as(const T* from, int count, S fill) {
  if constexpr (std::is_same_v<T, S>) {
    return load_part(from, count, fill);
  } else {
    if (count >= kLanes) return load_as(from);
    T lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? from[i] : T(fill);
    return load_as(lanes);
  }
}

template <typename T, typename S>
SSDKERN_INLINE void store_as(T* to, Vec<S> a) {
  if constexpr (std::is_same_v<T, S>) {
    store(to, a);
  } else {
    S lanes[kLanes];
    store(lanes, a);
    for (int i = 0; i < kLanes; ++i) to[i] = T(lanes[i]);
  }
}

template <typename T, typename S>
SSDKERN_INLINE void store_part_as(T* to, Vec<S> a, int count) {
  if constexpr (std::is_same_v<T, S>) {
    store_part(to, a, count);
  } else {
    T lanes[kLanes];
    store_as(lanes, a);
    std::copy_n(lanes, std::min(count, kLanes), to);
  }
}
