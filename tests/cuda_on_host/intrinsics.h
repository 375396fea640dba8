// The device functions that the kernels use. Included by cuda_runtime.h.
#pragma once

#define threadIdx (cuda_on_host::engine.fiber->index)
#define blockIdx (cuda_on_host::engine.block_index)
#define blockDim (cuda_on_host::engine.block)
#define gridDim (cuda_on_host::engine.grid)
constexpr int warpSize = 32;

namespace cuda_on_host {

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles words of 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  return from_bits<T>(engine.meet(Wait::shuffle, mask, to_bits(value), source, site));
}

inline unsigned lane() { return engine.fiber->lane; }

// The last lane of the segment of `width` lanes that this lane is in.
inline unsigned segment_end(int width) { return lane() / width * width + width - 1; }

}  // namespace cuda_on_host

using CudaSite = cuda_on_host::Site;

inline void __syncthreads(CudaSite site = CudaSite::current()) {
  cuda_on_host::engine.meet_block(0, site);
}
inline int __syncthreads_count(int predicate, CudaSite site = CudaSite::current()) {
  return int(cuda_on_host::engine.meet_block(predicate != 0, site));
}
inline int __syncthreads_or(int predicate, CudaSite site = CudaSite::current()) {
  return cuda_on_host::engine.meet_block(predicate != 0, site) != 0;
}
inline void __syncwarp(unsigned mask = 0xffffffff, CudaSite site = CudaSite::current()) {
  cuda_on_host::engine.meet(cuda_on_host::Wait::sync, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CudaSite site = CudaSite::current()) {
  using cuda_on_host::Wait;
  return unsigned(cuda_on_host::engine.meet(Wait::ballot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, CudaSite site = CudaSite::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CudaSite site = CudaSite::current()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              CudaSite site = CudaSite::current()) {
  const unsigned from = cuda_on_host::lane() / width * width + unsigned(source) % unsigned(width);
  return cuda_on_host::shuffle(mask, value, from, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  CudaSite site = CudaSite::current()) {
  const unsigned from = cuda_on_host::lane() ^ unsigned(lanes);
  const bool inside = from <= cuda_on_host::segment_end(width);
  return cuda_on_host::shuffle(mask, value, inside ? from : cuda_on_host::lane(), site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   CudaSite site = CudaSite::current()) {
  const unsigned from = cuda_on_host::lane() + delta;
  const bool inside = from <= cuda_on_host::segment_end(width);
  return cuda_on_host::shuffle(mask, value, inside ? from : cuda_on_host::lane(), site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 CudaSite site = CudaSite::current()) {
  const bool inside = cuda_on_host::lane() % unsigned(width) >= delta;
  return cuda_on_host::shuffle(mask, value, cuda_on_host::lane() - (inside ? delta : 0), site);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value,
                                  CudaSite site = CudaSite::current()) {
  return unsigned(cuda_on_host::engine.meet(cuda_on_host::Wait::add, mask, value, 0, site));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value,
                                  CudaSite site = CudaSite::current()) {
  return unsigned(cuda_on_host::engine.meet(cuda_on_host::Wait::min, mask, value, 0, site));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value,
                                  CudaSite site = CudaSite::current()) {
  return unsigned(cuda_on_host::engine.meet(cuda_on_host::Wait::max, mask, value, 0, site));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value,
                                 CudaSite site = CudaSite::current()) {
  return unsigned(cuda_on_host::engine.meet(cuda_on_host::Wait::bit_or, mask, value, 0, site));
}

// Fibers run one at a time, so plain code is atomic; giving way before it mixes the order.
namespace cuda_on_host {
template <typename T, typename F>
[[gnu::no_sanitize_thread, gnu::noinline]] T atomic(T* at, F change) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
                std::is_same_v<T, unsigned long long>);
  if (engine.random(8) == 0) engine.yield();
  atomic_access(at, sizeof(T));
  const T old = *at;
  *at = change(old);
  return old;
}
}  // namespace cuda_on_host

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return cuda_on_host::atomic(at, [=](T old) { return T(old + value); });
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return cuda_on_host::atomic(at, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return cuda_on_host::atomic(at, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return cuda_on_host::atomic(at, [=](T old) { return T(old | value); });
}
template <typename T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
  return cuda_on_host::atomic(at, [=](T old) { return T(old & value); });
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return cuda_on_host::atomic(at, [=](T old) { return old == compare ? value : old; });
}
inline void __threadfence() { cuda_on_host::fenced(); }
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { cuda_on_host::engine.yield(); }

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
inline int __clzll(long long bits) {
  return std::countl_zero(static_cast<unsigned long long>(bits));
}
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
