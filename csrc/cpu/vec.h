// Sixteen lanes of float or double, held in as many registers as the instruction set needs: the
// same arithmetic in the same order everywhere. Included by isa.h, once per instruction set.

#define SSDKERN_INLINE inline __attribute__((always_inline))
#define SSDKERN_EACH _Pragma("GCC unroll 16") for (int k = 0; k < Native<S>::kCount; ++k)

template <typename S>
struct Native;

template <>
struct Native<float> {
  typedef float V __attribute__((vector_size(SSDKERN_REGISTER)));
  typedef int32_t I __attribute__((vector_size(SSDKERN_REGISTER)));
  typedef uint32_t U __attribute__((vector_size(SSDKERN_REGISTER)));
  static constexpr int kWidth = SSDKERN_REGISTER / 4, kCount = kLanes / kWidth;
};

template <>
struct Native<double> {
  typedef double V __attribute__((vector_size(SSDKERN_REGISTER)));
  typedef int64_t I __attribute__((vector_size(SSDKERN_REGISTER)));
  typedef uint64_t U __attribute__((vector_size(SSDKERN_REGISTER)));
  static constexpr int kWidth = SSDKERN_REGISTER / 8, kCount = kLanes / kWidth;
};

template <typename S>
struct Vec {
  typename Native<S>::V r[Native<S>::kCount];
};

// All ones in the lanes where a comparison holds; also the integers beside a Vec<S>.
template <typename S>
struct Ints {
  typename Native<S>::I r[Native<S>::kCount];
};

template <typename S>
SSDKERN_INLINE Vec<S> splat(S value) {
  Vec<S> out;
  SSDKERN_EACH out.r[k] = value - typename Native<S>::V{};
  return out;
}

template <typename S>
SSDKERN_INLINE Ints<S> splat_int(int64_t value) {
  Ints<S> out;
  SSDKERN_EACH out.r[k] = LaneInt<S>(value) - typename Native<S>::I{};
  return out;
}

#define SSDKERN_BINARY(op)                                \
  template <typename S>                                   \
  SSDKERN_INLINE Vec<S> operator op(Vec<S> a, Vec<S> b) { \
    SSDKERN_EACH a.r[k] = a.r[k] op b.r[k];               \
    return a;                                             \
  }
SSDKERN_BINARY(+)
SSDKERN_BINARY(-)
SSDKERN_BINARY(*)
SSDKERN_BINARY(/)
#undef SSDKERN_BINARY

#define SSDKERN_COMPARE(op)                                \
  template <typename S>                                    \
  SSDKERN_INLINE Ints<S> operator op(Vec<S> a, Vec<S> b) { \
    Ints<S> out;                                           \
    SSDKERN_EACH out.r[k] = a.r[k] op b.r[k];              \
    return out;                                            \
  }
SSDKERN_COMPARE(<)
SSDKERN_COMPARE(>)
SSDKERN_COMPARE(>=)
SSDKERN_COMPARE(==)
SSDKERN_COMPARE(!=)
#undef SSDKERN_COMPARE

// Integers wrap: unsigned in between.
#define SSDKERN_INTEGER(op)                                              \
  template <typename S>                                                  \
  SSDKERN_INLINE Ints<S> operator op(Ints<S> a, Ints<S> b) {             \
    using U = typename Native<S>::U;                                     \
    SSDKERN_EACH a.r[k] = typename Native<S>::I(U(a.r[k]) op U(b.r[k])); \
    return a;                                                            \
  }
SSDKERN_INTEGER(+)
SSDKERN_INTEGER(-)
SSDKERN_INTEGER(&)
SSDKERN_INTEGER(|)
SSDKERN_INTEGER(^)
#undef SSDKERN_INTEGER

template <typename S>
SSDKERN_INLINE Ints<S> operator>=(Ints<S> a, Ints<S> b) {
  SSDKERN_EACH a.r[k] = a.r[k] >= b.r[k];
  return a;
}

template <typename S>
SSDKERN_INLINE Ints<S> shift_left(Ints<S> a, int count) {
  SSDKERN_EACH a.r[k] = a.r[k] << count;
  return a;
}

template <typename S>
SSDKERN_INLINE Ints<S> shift_right(Ints<S> a, int count) {  // arithmetic
  SSDKERN_EACH a.r[k] = a.r[k] >> count;
  return a;
}

// The second operand where either is NaN. GCC makes one instruction of such a choice, except where
// an operand is constant.
template <typename S>
SSDKERN_INLINE Vec<S> max(Vec<S> a, Vec<S> b) {
  SSDKERN_EACH a.r[k] = a.r[k] > b.r[k] ? a.r[k] : b.r[k];
  return a;
}

template <typename S>
SSDKERN_INLINE Vec<S> min(Vec<S> a, Vec<S> b) {
  SSDKERN_EACH a.r[k] = a.r[k] < b.r[k] ? a.r[k] : b.r[k];
  return a;
}

template <typename S>
SSDKERN_INLINE Vec<S> select(Ints<S> mask, Vec<S> yes, Vec<S> no) {
  SSDKERN_EACH yes.r[k] = mask.r[k] ? yes.r[k] : no.r[k];
  return yes;
}

template <typename S>
SSDKERN_INLINE Ints<S> select(Ints<S> mask, Ints<S> yes, Ints<S> no) {
  SSDKERN_EACH yes.r[k] = mask.r[k] ? yes.r[k] : no.r[k];
  return yes;
}

template <typename S>
SSDKERN_INLINE Ints<S> as_ints(Vec<S> a) {
  Ints<S> out;
  SSDKERN_EACH out.r[k] = reinterpret_cast<typename Native<S>::I>(a.r[k]);
  return out;
}

template <typename S>
SSDKERN_INLINE Vec<S> as_vec(Ints<S> a) {
  Vec<S> out;
  SSDKERN_EACH out.r[k] = reinterpret_cast<typename Native<S>::V>(a.r[k]);
  return out;
}

// One bit per lane of a mask, lane 0 lowest.
template <typename S>
SSDKERN_INLINE uint32_t bits(Ints<S> mask) {
  uint32_t out = 0;
  SSDKERN_EACH {
#if SSDKERN_REGISTER == 64
    const auto m = reinterpret_cast<__m512i>(mask.r[k]);
    const uint32_t part = sizeof(S) == 4 ? _mm512_movepi32_mask(m) : _mm512_movepi64_mask(m);
#elif SSDKERN_REGISTER == 32
    const uint32_t part = sizeof(S) == 4 ? _mm256_movemask_ps(reinterpret_cast<__m256>(mask.r[k]))
                                         : _mm256_movemask_pd(reinterpret_cast<__m256d>(mask.r[k]));
#elif defined(__x86_64__)
    const uint32_t part = sizeof(S) == 4 ? _mm_movemask_ps(reinterpret_cast<__m128>(mask.r[k]))
                                         : _mm_movemask_pd(reinterpret_cast<__m128d>(mask.r[k]));
#else
    uint32_t part = 0;
    for (int i = 0; i < Native<S>::kWidth; ++i) part |= uint32_t(mask.r[k][i] & 1) << i;
#endif
    out |= part << (k * Native<S>::kWidth);
  }
  return out;
}

// Register by register: GCC copies larger structs through the stack.
template <typename S>
SSDKERN_INLINE Vec<S> load(const S* from) {
  Vec<S> out;
  SSDKERN_EACH __builtin_memcpy(&out.r[k], from + k * Native<S>::kWidth, SSDKERN_REGISTER);
  return out;
}

template <typename S>
SSDKERN_INLINE void store(S* to, Vec<S> a) {
  SSDKERN_EACH __builtin_memcpy(to + k * Native<S>::kWidth, &a.r[k], SSDKERN_REGISTER);
}

template <typename S>
SSDKERN_INLINE Ints<S> load_ints(const LaneInt<S>* from) {
  Ints<S> out;
  SSDKERN_EACH __builtin_memcpy(&out.r[k], from + k * Native<S>::kWidth, SSDKERN_REGISTER);
  return out;
}

template <typename S>
SSDKERN_INLINE void store_ints(LaneInt<S>* to, Ints<S> a) {
  SSDKERN_EACH __builtin_memcpy(to + k * Native<S>::kWidth, &a.r[k], SSDKERN_REGISTER);
}

// The first `count` lanes, the rest `fill`; never touches memory past the end.
template <typename S>
SSDKERN_INLINE Vec<S> load_part(const S* from, int count, S fill) {
  if (count >= kLanes) return load(from);
#if SSDKERN_REGISTER == 64
  if constexpr (sizeof(S) == 4) {
    const __mmask16 mask = (1u << count) - 1;
    return {{reinterpret_cast<typename Native<S>::V>(
        _mm512_mask_loadu_ps(_mm512_set1_ps(fill), mask, from))}};
  }
#elif SSDKERN_REGISTER == 32
  if constexpr (sizeof(S) == 4) {
    Vec<S> out;
    for (int k = 0; k < 2; ++k) {
      const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8 * k), lane);
      out.r[k] = reinterpret_cast<typename Native<S>::V>(_mm256_blendv_ps(
          _mm256_set1_ps(fill), _mm256_maskload_ps(from + 8 * k, mask), (__m256)mask));
    }
    return out;
  }
#endif
  S lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? from[i] : fill;
  return load(lanes);
}

template <typename S>
SSDKERN_INLINE void store_part(S* to, Vec<S> a, int count) {
  if (count >= kLanes) return store(to, a);
  S lanes[kLanes];
  store(lanes, a);
  for (int i = 0; i < count; ++i) to[i] = lanes[i];
}

template <int step, typename S, size_t... lane>
SSDKERN_INLINE typename Native<S>::V rotate(typename Native<S>::V v, std::index_sequence<lane...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(v, v, int((lane + step) % sizeof...(lane))...);
#else
  const typename Native<S>::I from = {LaneInt<S>((lane + step) % sizeof...(lane))...};
  return __builtin_shuffle(v, from);
#endif
}

template <int step, typename S, typename F>
SSDKERN_INLINE void fold(Vec<S>& a, F combine) {
  constexpr int kWidth = Native<S>::kWidth;
  if constexpr (step >= kWidth) {
    for (int k = 0; k < step / kWidth; ++k) a.r[k] = combine(a.r[k], a.r[k + step / kWidth]);
  } else {
    a.r[0] = combine(a.r[0], rotate<step, S>(a.r[0], std::make_index_sequence<kWidth>()));
  }
}

// Lane l with l + 8, then + 4, + 2, + 1: the same tree on every instruction set.
template <typename S, typename F>
SSDKERN_INLINE S reduce(Vec<S> a, F combine) {
  fold<8>(a, combine);
  fold<4>(a, combine);
  fold<2>(a, combine);
  fold<1>(a, combine);
  return a.r[0][0];
}

template <typename S>
SSDKERN_INLINE S sum(Vec<S> a) {
  return reduce(a, [](auto x, auto y) { return x + y; });
}

template <typename S>
SSDKERN_INLINE S highest(Vec<S> a) {
  return reduce(a, [](auto x, auto y) { return x > y ? x : y; });
}
