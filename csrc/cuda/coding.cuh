// Boxes to offsets and back, in the reference's order of operations.
#pragma once

#include "device.cuh"

namespace ssdkern {

// exp of x <= 0, for sums of exp(x - max), where what is small weighs little: float's is within 3
// ulp at 0, loses one ulp for each unit of |x|, and is 0 below 2^-126.
__device__ __forceinline__ float sum_exp(float x) {
  float y = x * 1.44269504f;
#ifdef __CUDA_ARCH__
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(y));  // one instruction; __expf and exp2f take four
  return y;
#else
  return exp2(y);
#endif
}
__device__ __forceinline__ double sum_exp(double x) { return exp(x); }

template <typename S>
struct Side {
  S center, size;
};

template <typename S>
__device__ __forceinline__ Side<S> side(S low, S high) {
  const S size = high - low;
  return {(low + high) / 2, size < S(kMinSize) ? S(kMinSize) : size};
}

template <typename S>
__device__ Box<S> encode(const Box<S>& box, const Box<S>& prior, const Variances& variances) {
  const S center = S(variances.center), size = S(variances.size);
  const Side<S> x = side(box.x1, box.x2), y = side(box.y1, box.y2);
  const Side<S> px = side(prior.x1, prior.x2), py = side(prior.y1, prior.y2);
  return {(x.center - px.center) / px.size / center, (y.center - py.center) / py.size / center,
          log(x.size / px.size) / size, log(y.size / py.size) / size};
}

template <typename S>
__device__ Box<S> decode(const Box<S>& offsets, const Box<S>& prior, const Variances& variances,
                         double max_log_scale) {
  const S center = S(variances.center), size = S(variances.size), bound = S(max_log_scale);
  const Side<S> px = side(prior.x1, prior.x2), py = side(prior.y1, prior.y2);
  const S x = offsets.x1 * center * px.size + px.center;
  const S y = offsets.y1 * center * py.size + py.center;
  const S w = offsets.x2 * size, h = offsets.y2 * size;
  const S half_w = exp(w > bound ? bound : w) * px.size / 2;
  const S half_h = exp(h > bound ? bound : h) * py.size / 2;
  return {x - half_w, y - half_h, x + half_w, y + half_h};
}

// Rows to code, and their priors, as a kernel sees them.
template <typename T, typename S>
struct CodedRows {
  const T* rows;
  const S* priors;
  int64_t count, num_priors;
  Variances variances;

  __device__ Box<S> row(int64_t i) const { return load_box<S>(rows, i); }
  __device__ Box<S> prior(int64_t i) const { return load_box<S>(priors, i % num_priors); }
};

// The tensors of encode_boxes or decode_boxes: rows [B, P, 4], priors [P, 4].
struct Coded {
  ScalarType type;
  Tensor rows, priors;
  Variances variances;

  Coded(const Tensor& given, const char* name, const Tensor& given_priors, Variances variances)
      : type(compute_type(given, given_priors)), variances(variances) {
    check_device(given, given_priors);
    check_coding(given, name, given_priors);
    rows = type == ScalarType::Double ? packed(given, type) : packed(given);
    priors = packed(given_priors, type);
  }

  Tensor gradient(const Tensor& grad) const {
    check_device(rows, grad);
    check_floats(grad, "grad", {rows.size(0), rows.size(1), 4});
    return packed(grad, type);
  }

  // The results of f(stream, rows, out), for each row four numbers.
  template <typename F>
  Tensor run(F f) const {
    Tensor out = torch::stable::new_empty(rows, rows.sizes(), type);
    if (out.numel() == 0) return out;
    const Stream stream(rows);
    with_float(rows, [&](auto element) {
      using T = decltype(element);
      using S = Compute<T>;
      f(stream,
        CodedRows<T, S>{data<T>(rows), data<S>(priors), out.numel() / 4, priors.size(0), variances},
        data<S>(out));
    });
    return out;
  }
};

}  // namespace ssdkern
