// Maximum and sum of exponentials of rows of logits, each read once by LANES lanes of a warp.
#pragma once

#include "coding.cuh"

namespace ssdkern {

template <typename S>
struct Softmax {
  S max, sum;  // of exp(x - max)
};

// Every lane of the row gets the result. Rows of more than LANES * ITEMS classes take several
// steps.
template <int LANES, int ITEMS, typename S, typename T>
__device__ Softmax<S> row_softmax(const T* row, int num_classes) {
  const int lane = threadIdx.x % LANES;
  S highest = -S(INFINITY), sum = 0;
  for (int base = 0; base < num_classes; base += LANES * ITEMS) {
    S x[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int c = base + i * LANES + lane;
      x[i] = c < num_classes ? S(row[c]) : -S(INFINITY);
    }
    S top = highest;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) top = higher(top, x[i]);
#pragma unroll
    for (int d = LANES / 2; d > 0; d /= 2) top = higher(top, __shfl_xor_sync(kAllLanes, top, d));
    const S from = top == -S(INFINITY) ? S(0) : top;
    S part = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) part += sum_exp(x[i] - from);
#pragma unroll
    for (int d = LANES / 2; d > 0; d /= 2) part += __shfl_xor_sync(kAllLanes, part, d);
    sum = sum * sum_exp(highest - from) + part;
    highest = top;
  }
  return {highest, sum};
}

// Calls launch(LANES, ITEMS), as constants, with what suits the number of classes: few shuffles for
// short rows, and enough loads in flight.
template <typename F>
void with_lanes(int64_t num_classes, F launch) {
  using std::integral_constant;
  if (num_classes <= 24) return launch(integral_constant<int, 8>(), integral_constant<int, 3>());
  if (num_classes <= 96) return launch(integral_constant<int, 16>(), integral_constant<int, 6>());
  launch(integral_constant<int, 32>(), integral_constant<int, 8>());
}

}  // namespace ssdkern
