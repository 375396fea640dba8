// Sums over a block, in an order that depends on nothing but its size.
#pragma once

#include "device.cuh"

namespace ssdkern {

// Every thread gets the result; `parts` is shared memory for one value of each warp.
template <typename S, typename F>
__device__ S block_reduce(S value, S* parts, F combine) {
  const int warps = blockDim.x / 32;
  value = warp_reduce(value, combine);
  __syncthreads();  // the last result has been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[0];
  for (int warp = 1; warp < warps; ++warp) value = combine(value, parts[warp]);
  return value;
}

template <typename S>
__device__ S block_sum(S value, S* parts) {
  return block_reduce(value, parts, [](S a, S b) { return a + b; });
}

}  // namespace ssdkern
