// Kernels with one fault each, which the emulation of CUDA on the CPU must find, and some without.
#include "launch.cuh"

namespace ssdkern {
namespace {

__global__ void divergent_barrier_kernel(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void missed_barrier_kernel(int* out) {
  if (threadIdx.x == 5) __syncwarp();
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x >= 32) __syncwarp(0x3);
  out[threadIdx.x] = 1;
}

__global__ void absent_lane_kernel(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xffff, out[threadIdx.x], 20);
}

__global__ void wrong_mask_kernel(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __ballot_sync(0xff, 1);
}

__global__ void unwritten_kernel(int* out) {
  SSDKERN_SHARED(memory);
  int* shared = reinterpret_cast<int*>(memory);
  if (threadIdx.x < 40) shared[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void unwritten_static_kernel(int* out) {
  __shared__ int shared[64];
  if (blockIdx.x == 0) shared[threadIdx.x] = 1;  // the next block has its own
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void race_kernel(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void shuffle_orders_nothing_kernel(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = threadIdx.x;
  const int next = __shfl_xor_sync(0xffffffff, int(threadIdx.x), 1);
  out[threadIdx.x] = shared[next];
}

__global__ void write_after_read_kernel(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared[63 - threadIdx.x];
  shared[threadIdx.x] = 0;
}

__global__ void outside_kernel(int* out) {
  SSDKERN_SHARED(memory);
  memory[threadIdx.x * 4 + 4] = 1;  // the last thread's byte
  out[threadIdx.x] = 1;
}

__global__ void sound_kernel(int* out) {
  SSDKERN_SHARED(memory);
  __shared__ int count;
  int* shared = reinterpret_cast<int*>(memory);
  if (threadIdx.x == 0) count = 0;
  shared[threadIdx.x] = threadIdx.x;
  __syncwarp();
  const int neighbour = shared[threadIdx.x ^ 1];
  __syncthreads();
  atomicAdd(&count, 1);
  __syncthreads();
  if (threadIdx.x >= 50) return;  // later barriers do not wait for threads that have returned
  const int in_warp = __reduce_add_sync(threadIdx.x < 32 ? 0xffffffff : 0x3ffff, 1);
  const int all = __syncthreads_count(1);
  out[threadIdx.x] = neighbour + 100 * count + 10000 * in_warp + 1000000 * all;
}

Tensor run(const Tensor& like, int64_t fault) {
  Tensor out = torch::stable::new_zeros(like, {64}, ScalarType::Int);
  const Stream stream(out);
  int* const to = data<int>(out);
  const auto call = [&](auto kernel, int64_t blocks) {
    stream.launch<decltype(kernel)::value>(blocks, 64, 64 * sizeof(int), to);
  };
#define FAULT(number, name, blocks) \
  if (fault == number) call(std::integral_constant<void (*)(int*), name##_kernel>(), blocks)
  FAULT(0, sound, 2);
  FAULT(1, divergent_barrier, 1);
  FAULT(2, missed_barrier, 1);
  FAULT(3, absent_lane, 1);
  FAULT(4, wrong_mask, 1);
  FAULT(5, unwritten, 1);
  FAULT(6, unwritten_static, 2);
  FAULT(7, race, 1);
  FAULT(8, shuffle_orders_nothing, 1);
  FAULT(9, write_after_read, 1);
  FAULT(10, outside, 1);
  FAULT(11, sound, 0);
#undef FAULT
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(cuda_on_host, m) { m.def("run(Tensor like, int fault) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(cuda_on_host, CPU, m) { m.impl("run", TORCH_BOX(&run)); }

}  // namespace
}  // namespace ssdkern
