// Launches and dynamic shared memory. Nothing else knows that tests also compile the kernels for
// the CPU, against the cuda_runtime.h of tests/cuda_on_host.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/shim_utils.h>

#include <mutex>
#include <vector>

#include "../cpu/tensors.h"

#ifdef __CUDACC__
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#define SSDKERN_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(ssdkern, CUDA, m)
#define SSDKERN_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define SSDKERN_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(ssdkern, CPU, m)
#define SSDKERN_SHARED(name) \
  auto* name = reinterpret_cast<unsigned char*>(cuda_on_host::engine.shared.get())
#endif

namespace ssdkern {

#ifdef __CUDACC__
// The current stream of a tensor's device, which is made the current device.
class Stream {
 public:
  explicit Stream(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <auto Kernel, typename... Args>
  void launch(int64_t blocks, int threads, size_t shared, const Args&... args) const {
    STD_TORCH_CHECK(blocks <= 0x7fffffff, "want at most 2^31 - 1 blocks, got ", blocks);
    if (shared > 0) allow_shared<Kernel>();
    Kernel<<<static_cast<unsigned>(blocks), threads, shared, stream_>>>(args...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // Bytes of dynamic shared memory that a block can ask for.
  size_t shared_limit() const {
    int bytes = 0;
    STD_CUDA_CHECK(
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_));
    return bytes;
  }

  // Waits until the stream has written `value`.
  template <typename T>
  T read(const T* value) const {
    T out;
    STD_CUDA_CHECK(cudaMemcpyAsync(&out, value, sizeof(T), cudaMemcpyDeviceToHost, stream_));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return out;
  }

 private:
  // Raises what a kernel may ask for beyond the usual 48 KB to all that it leaves: once, as the
  // limit is the kernel's own, and one set for each launch would fail those of other threads.
  template <auto Kernel>
  void allow_shared() const {
    static std::vector<std::once_flag> done(device_count());
    std::call_once(done[device_], [this] {
      cudaFuncAttributes kernel;
      STD_CUDA_CHECK(cudaFuncGetAttributes(&kernel, Kernel));
      STD_CUDA_CHECK(cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          int(shared_limit() - kernel.sharedSizeBytes)));
    });
  }

  static int device_count() {
    int count = 0;
    STD_CUDA_CHECK(cudaGetDeviceCount(&count));
    return count;
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

inline bool on_device(const Tensor& tensor) { return tensor.is_cuda(); }
#else
class Stream {
 public:
  explicit Stream(const Tensor&) {}
  template <auto Kernel, typename... Args>
  void launch(int64_t blocks, int threads, size_t shared, const Args&... args) const {
    cuda_on_host::launch<Kernel>(static_cast<unsigned>(blocks), threads, shared, args...);
  }
  size_t shared_limit() const { return cuda_on_host::shared_limit(); }
  template <typename T>
  T read(const T* value) const {
    return *value;
  }
};

inline bool on_device(const Tensor& tensor) { return tensor.is_cpu(); }
#endif

template <typename... Tensors>
void check_device(const Tensors&... tensors) {
  const auto first = std::get<0>(std::tie(tensors...)).get_device_index();
  STD_TORCH_CHECK((on_device(tensors) && ...) && ((tensors.get_device_index() == first) && ...),
                  "want all tensors on one CUDA device");
}

// Contiguous, of dtype `type`, from an address that 16-byte loads can use.
inline Tensor packed(const Tensor& tensor, ScalarType type) {
  const Tensor out = as(tensor, type);
  const auto address = reinterpret_cast<uintptr_t>(out.const_data_ptr());
  return address % 16 ? torch::stable::clone(out) : out;
}

inline Tensor packed(const Tensor& tensor) { return packed(tensor, tensor.scalar_type()); }

// Arrays in one allocation: reserve them all, then allocate, then ask where they are.
class Scratch {
 public:
  template <typename T>
  struct Array {
    int64_t offset;
  };

  template <typename T>
  Array<T> reserve(int64_t count) {
    const int64_t offset = bytes_;
    bytes_ += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
    return {offset};
  }

  void allocate(const Tensor& like) {
    memory_ = torch::stable::new_empty(like, {bytes_}, ScalarType::Byte);
  }

  template <typename T>
  T* operator[](Array<T> array) {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(memory_.mutable_data_ptr()) +
                                array.offset);
  }

 private:
  int64_t bytes_ = 0;
  Tensor memory_;
};

}  // namespace ssdkern
