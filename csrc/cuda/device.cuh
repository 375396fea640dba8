// What several kernels share: loads, and reductions over a warp.
#pragma once

#include "launch.cuh"

namespace ssdkern {

constexpr unsigned kAllLanes = 0xffffffff;

// What a streaming multiprocessor of any supported GPU holds, at least.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kThreadsOfSm = 1024;
#else
constexpr int kThreadsOfSm = 1536;
#endif

// One value that other threads may be writing meanwhile, by atomics.
template <typename T>
__device__ __forceinline__ T load_relaxed(const T* at) {
  return *static_cast<const volatile T*>(at);
}

// Four numbers that are loaded and stored by 8- or 16-byte accesses.
template <typename T>
struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Quad {
  T x, y, z, w;
};

template <typename S, typename T>
__device__ __forceinline__ Box<S> load_box(const T* boxes, int64_t i) {
  const Quad<T> q = reinterpret_cast<const Quad<T>*>(boxes)[i];
  return {S(q.x), S(q.y), S(q.z), S(q.w)};
}

template <typename T, typename S>
__device__ __forceinline__ void store_box(T* boxes, int64_t i, const Box<S>& box) {
  reinterpret_cast<Quad<T>*>(boxes)[i] = {T(box.x1), T(box.y1), T(box.x2), T(box.y2)};
}

// Rows of four numbers whose type is known when the kernel runs: for tensors that are read little.
struct AnyBoxes {
  const void* data;
  ScalarType type;

  AnyBoxes(const Tensor& tensor) : data(tensor.const_data_ptr()), type(tensor.scalar_type()) {}
};

template <typename S>
__device__ Box<S> load_box(const AnyBoxes& boxes, int64_t i) {
  switch (boxes.type) {
    case ScalarType::Double:
      return load_box<S>(static_cast<const double*>(boxes.data), i);
    case ScalarType::Half:
      return load_box<S>(static_cast<const Half*>(boxes.data), i);
    case ScalarType::BFloat16:
      return load_box<S>(static_cast<const BFloat16*>(boxes.data), i);
    default:
      return load_box<S>(static_cast<const float*>(boxes.data), i);
  }
}

template <typename S, typename F>
__device__ __forceinline__ S warp_reduce(S value, F combine) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, lanes));
  return value;
}

// The highest of values >= +0.
__device__ __forceinline__ unsigned warp_max(unsigned value) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  return warp_reduce(value, [](unsigned a, unsigned b) { return a > b ? a : b; });
#endif
}
__device__ __forceinline__ float warp_max(float value) {
  return __uint_as_float(warp_max(__float_as_uint(value)));
}
__device__ __forceinline__ double warp_max(double value) {
  return warp_reduce(value, [](double a, double b) { return a > b ? a : b; });
}

}  // namespace ssdkern
