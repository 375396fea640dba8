// torch_parallel_for on plain threads: ThreadSanitizer knows these, and not the barriers of the
// OpenMP runtime inside torch, after which it would see races everywhere. Linked into that build
// alone, so that our kernels call it in place of torch's.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <thread>
#include <vector>

AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size, ParallelFunc func,
                                  void* ctx) {
  constexpr int64_t kThreads = 4;
  thread_local bool inside = false;
  const int64_t share = std::max((end - begin + kThreads - 1) / kThreads, grain_size);
  if (inside || share >= end - begin) {
    if (begin < end) func(begin, end, ctx);
    return AOTI_TORCH_SUCCESS;
  }
  std::vector<std::thread> threads;
  for (int64_t from = begin; from < end; from += share)
    threads.emplace_back([=] {
      inside = true;
      func(from, std::min(from + share, end), ctx);
    });
  for (auto& thread : threads) thread.join();
  return AOTI_TORCH_SUCCESS;
}
