// Kernels with one fault each, which the emulation of CUDA on the CPU must find, and some without.
#include "device.cuh"

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

__global__ void global_race_kernel(int* out) {
  out[threadIdx.x] = 1;
  if (out[63 - threadIdx.x] == 1) out[threadIdx.x] = 2;
}

__global__ void blocks_write_alike_kernel(int* out) { out[threadIdx.x] = 1; }

__global__ void block_reads_another_kernel(int* out) {
  if (blockIdx.x == 0) out[threadIdx.x] = 1;
  if (blockIdx.x == 1 && out[threadIdx.x] == 1) atomicAdd(&out[63], 1);
}

__global__ void block_writes_what_was_read_kernel(int* out) {
  if (out[threadIdx.x] == 0 && blockIdx.x == 1) out[threadIdx.x] = 1;
}

__global__ void plain_beside_atomic_kernel(int* out) {
  atomicAdd(&out[0], 1);
  if (out[0] == 64) out[threadIdx.x] = 1;
}

// The block before says that it has written, but it wrote after its fence.
__global__ void early_fence_kernel(int* out) {
  __shared__ bool last;
  __threadfence();
  if (threadIdx.x < 2) out[2 + 2 * blockIdx.x + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&out[0], 1) == gridDim.x - 1;
  __syncthreads();
  if (last && threadIdx.x < 4) out[10 + threadIdx.x] = out[2 + threadIdx.x];
}

__global__ void sound_blocks_kernel(int* out) {
  __shared__ bool last;
  __shared__ int sum;
  if (threadIdx.x < 2) out[2 + 2 * blockIdx.x + threadIdx.x] = 1;
  if (threadIdx.x == 2 && load_relaxed(&out[1]) < 100) atomicAdd(&out[1], 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(&out[0], 1) == gridDim.x - 1;
    sum = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x < 4) atomicAdd(&sum, out[2 + threadIdx.x]);
  __syncthreads();
  int* const neighbours = out + 10;
  if (threadIdx.x < 32) {
    neighbours[threadIdx.x] = sum + threadIdx.x;
    __syncwarp();
    const int all = neighbours[0] + neighbours[31 - threadIdx.x];
    __syncwarp();
    if (threadIdx.x == 31) neighbours[0] = all;
  }
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
  FAULT(0, sound, 1);
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
  FAULT(12, global_race, 1);
  FAULT(13, blocks_write_alike, 2);
  FAULT(14, block_reads_another, 2);
  FAULT(15, block_writes_what_was_read, 2);
  FAULT(16, plain_beside_atomic, 1);
  FAULT(17, early_fence, 2);
  FAULT(18, sound_blocks, 2);
#undef FAULT
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(cuda_on_host, m) { m.def("run(Tensor like, int fault) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(cuda_on_host, CPU, m) { m.impl("run", TORCH_BOX(&run)); }

}  // namespace
}  // namespace ssdkern
