// The threads of a block: stacks of their own, and the switch from one to another.
// Included by cuda_runtime.h.
#pragma once

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <cstdint>
#include <source_location>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_host {

using Site = std::source_location;
enum class Wait { none, block, shuffle, ballot, sync, add, min, max, bit_and, bit_or };

struct Fiber {
  void* stack_pointer = nullptr;
  dim3 index;
  unsigned id = 0, lane = 0, warp = 0;
  Wait wait = Wait::none;
  bool finished = false;
  unsigned mask = 0;    // of the lanes that a warp operation names
  unsigned source = 0;  // the lane that a shuffle reads
  uint64_t value = 0, result = 0;
  Site site;
};

// System V: six registers are the callee's.
#if defined(__x86_64__)
[[gnu::naked, gnu::noinline]] static void switch_stack(void** /*save*/, void* /*load*/) {
  __asm__ volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
inline void* new_stack(char* top, void (*entry)()) {
  auto** frame = reinterpret_cast<void**>(top) - 2;  // entry finds the stack as after a call
  *frame = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--frame = nullptr;
  return frame;
}
#else
inline void switch_stack(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}
inline void* new_stack(char* top, void (*entry)()) {
  auto* context = reinterpret_cast<ucontext_t*>(top - sizeof(ucontext_t) - 64);
  getcontext(context);
  context->uc_stack.ss_sp = top - (48 << 10);
  context->uc_stack.ss_size = (48 << 10) - sizeof(ucontext_t) - 128;
  makecontext(context, entry, 0);
  return context;
}
#endif

// A fiber that ended left its last frames behind.
inline void unpoison([[maybe_unused]] char* stack, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, bytes);
#endif
}

}  // namespace cuda_on_host
