// Conversions between torch tensors and the kernels' plain pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../boxes.h"
#include "../checks.h"

namespace ssdkern {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What values of dtype T are computed in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline Tensor as(const Tensor& tensor, ScalarType type) {
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor
                                                                : torch::stable::to(tensor, type));
}

// float64 where any of the tensors is, else float32.
template <typename... Tensors>
ScalarType compute_type(const Tensors&... tensors) {
  return ((tensors.scalar_type() == ScalarType::Double) || ...) ? ScalarType::Double
                                                                : ScalarType::Float;
}

// Calls f(S{}) with S the type that `type` (Float or Double) names.
template <typename F>
auto with_compute(ScalarType type, F f) {
  return type == ScalarType::Double ? f(double{}) : f(float{});
}

// Calls f(T{}) with T the element type of a floating-point tensor.
template <typename F>
auto with_float(const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename S>
constexpr ScalarType scalar_type_of() {
  return std::is_same_v<S, double> ? ScalarType::Double : ScalarType::Float;
}

// gt_offsets as int32, checked to rise from 0 to the number of rows or less.
inline Tensor packed_offsets(const Tensor& gt_offsets, int64_t rows) {
  const ScalarType type = gt_offsets.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Long,
                  "want gt_offsets of dtype int32 or int64, got ", type);
  STD_TORCH_CHECK(gt_offsets.dim() == 1 && gt_offsets.size(0) >= 1, "want gt_offsets [B+1], got ",
                  shape(gt_offsets));
  const Tensor offsets = as(gt_offsets, ScalarType::Int);
  const int32_t* at = data<int32_t>(offsets);
  const int64_t last = offsets.size(0) - 1;
  STD_TORCH_CHECK(at[0] == 0 && at[last] <= rows && std::is_sorted(at, at + last + 1),
                  "want gt_offsets rising from 0 to at most the ", rows, " rows of gt_boxes, got ",
                  at[0], " to ", at[last]);
  return offsets;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f(row, prior, count) in parallel on blocks of `count` rows of [images, priors, ...], each
// within one image, `row` counted over all images. The blocks do not depend on the threads.
template <typename F>
void for_each_row_block(int64_t images, int64_t priors, F f) {
  constexpr int64_t kBlock = 1024, kGrain = 4;
  const int64_t blocks = ceil_div(priors, kBlock);
  torch::stable::parallel_for(0, images * blocks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, prior = task % blocks * kBlock;
      f(image * priors + prior, prior, std::min(kBlock, priors - prior));
    }
  });
}

}  // namespace ssdkern
