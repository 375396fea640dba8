// CUDA kernels on the CPU: g++ compiles the .cu files of csrc/cuda against this header.
//
// The threads of a block are fibers of one CPU thread; a fiber runs until a barrier, a warp
// operation or its end, and which one runs next is shuffled. Found, and thrown as errors that name
// kernel, block and threads: barriers and warp operations that some threads never reach, or reach
// at another line or with another mask; values shuffled from lanes that take no part; launches
// outside of the limits of a GPU. Dynamic shared memory has the exact size that was asked for
// (AddressSanitizer sees what lies outside) and starts each block full of 0xff: NaN as a float, -1
// as an integer. Blocks run one after another, from a random one on, up or down. shadow.cpp finds
// reads of shared memory that nothing wrote, and races, those between blocks too.
#pragma once

#include <math.h>  // exp and log of float, without std::
#include <sys/mman.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "fiber.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

using cudaStream_t = void*;

namespace cuda_on_host {

inline size_t shared_limit() {
  const char* asked = std::getenv("CUDA_ON_HOST_SHARED");  // small in tests: the paths without it
  return asked ? std::strtoull(asked, nullptr, 10) : 227 << 10;
}

#ifdef CUDA_ON_HOST_SHADOW
void new_launch();
void new_block(char* shared, size_t bytes, unsigned threads);
void warp_met(unsigned warp, unsigned mask);
void block_met();
void fenced();
void atomic_access(const void* at, size_t bytes);
#else
inline void new_launch() {}
inline void new_block(char*, size_t, unsigned) {}
inline void warp_met(unsigned, unsigned) {}
inline void block_met() {}
inline void fenced() {}
inline void atomic_access(const void*, size_t) {}
#endif

struct Warp {
  unsigned waiting = 0, finished = 0;  // lanes
};

inline thread_local bool in_kernel = false;  // not in what emulates, nor on the host
[[gnu::no_sanitize_thread, gnu::noinline]] inline void set_in_kernel(bool is) { in_kernel = is; }

class Engine {
 public:
  Fiber* fiber = nullptr;  // the one that runs
  dim3 grid, block, block_index;
  std::unique_ptr<char[]> shared;

  template <typename Body>
  void run(const char* name, dim3 grid_size, dim3 block_size, size_t bytes, Body body) {
    const std::lock_guard lock(mutex_);
    kernel_ = name, grid = grid_size, block = block_size;
    count_ = block.x * block.y * block.z;
    const bool fits = grid.x - 1u < 0x7fffffffu && grid.y - 1u < 65535u && grid.z - 1u < 65535u &&
                      count_ - 1u < 1024u && bytes <= shared_limit();
    if (!fits) throw std::runtime_error(where() + "invalid configuration of the launch");
    if (!stacks_) stacks_ = map_stacks();
    shared.reset(new char[bytes]);
    body_ = [](void* call) { (*static_cast<Body*>(call))(); };
    call_ = &body;
    new_launch();
    const uint64_t plane = uint64_t(grid.x) * grid.y, blocks = plane * grid.z;
    const uint64_t start = random(unsigned(std::min<uint64_t>(blocks, ~0u))), up = random(2);
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t at = (start + (up ? i : blocks - i)) % blocks;
      block_index = {unsigned(at % grid.x), unsigned(at % plane / grid.x), unsigned(at / plane)};
      run_block(bytes);
    }
  }

  bool on_stack(const char* at) const { return at >= stacks_ && at < stacks_ + 1024 * kStack; }

  [[gnu::noinline]] uint64_t meet(Wait wait, unsigned mask, uint64_t value, unsigned source,
                                  Site site) {
    const Emulating now;
    Warp& warp = warps_[fiber->warp];
    if (!(mask >> fiber->lane & 1))
      fail("lane " + std::to_string(fiber->lane) + " is not in the " + "mask it names, " +
           at(site));
    fiber->wait = wait, fiber->mask = mask, fiber->value = value, fiber->source = source;
    fiber->site = site;
    warp.waiting |= 1u << fiber->lane;
    if (((warp.waiting | warp.finished) & mask) == mask) complete(fiber->warp, mask);
    return next();
  }

  [[gnu::noinline]] uint64_t meet_block(uint64_t value, Site site) {
    const Emulating now;
    fiber->wait = Wait::block, fiber->value = value, fiber->site = site;
    ++at_barrier_;
    open_barrier();
    return next();
  }

  [[gnu::noinline]] void yield() {
    const Emulating now;
    if (++idle_ > 100'000'000) fail("threads spin without end");
    ready_.push_back(fiber);
    next();
  }

  [[noreturn]] void fail(const std::string& what) {
    set_in_kernel(false);
    error_ = where() + what;
    switch_stack(&fiber->stack_pointer, main_);
    std::abort();
  }

  unsigned random(unsigned below) {
    seed_ = seed_ * 6364136223846793005u + 1442695040888963407u;
    return unsigned(seed_ >> 33) % below;
  }

  static std::string at(const Site& site) {
    const std::string file = site.file_name();
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
  }

 private:
  static constexpr size_t kStack = 64 << 10;

  struct Emulating {
    Emulating() { set_in_kernel(false); }
    ~Emulating() { set_in_kernel(true); }
  };

  static char* map_stacks() {
    void* at = mmap(nullptr, kStack * 1024, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(at);
  }

  void run_block(size_t bytes) {
    std::memset(shared.get(), 0xff, bytes);
    new_block(shared.get(), bytes, count_);
    fibers_.assign(count_, Fiber());
    warps_.assign((count_ + 31) / 32, Warp());
    for (unsigned id = 0; id < count_; ++id) {
      Fiber& fiber = fibers_[id];
      fiber.id = id, fiber.lane = id % 32, fiber.warp = id / 32;
      fiber.index = {id % block.x, id / block.x % block.y, id / block.x / block.y};
      char* const top = stacks_ + (id + 1) * kStack;
      unpoison(top - kStack, kStack);
      fiber.stack_pointer = new_stack(top, &Engine::enter);
    }
    for (unsigned lane = count_; lane % 32; ++lane) warps_.back().finished |= 1u << lane % 32;
    ready_.clear(), head_ = 0, finished_ = 0, at_barrier_ = 0, idle_ = 0, error_.clear();
    release([](const Fiber&) { return true; }, 0, count_);
    fiber = take();
    switch_stack(&main_, fiber->stack_pointer);
    fiber = nullptr;
    if (error_.empty() && finished_ < count_) error_ = where() + describe_deadlock();
    if (!error_.empty()) throw std::runtime_error(error_);
  }

  static void enter();

  void finish() {
    set_in_kernel(false);
    fiber->finished = true;
    ++finished_;
    Warp& warp = warps_[fiber->warp];
    warp.finished |= 1u << fiber->lane;
    const unsigned first = fiber->id / 32 * 32;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(warp.waiting >> lane & 1)) continue;
      const unsigned mask = fibers_[first + lane].mask;
      if (((warp.waiting | warp.finished) & mask) == mask) complete(fiber->warp, mask);
    }
    open_barrier();
    fiber = take();
    void* forget;
    switch_stack(&forget, fiber ? fiber->stack_pointer : main_);
    std::abort();
  }

  Fiber* take() { return head_ < ready_.size() ? ready_[head_++] : nullptr; }

  uint64_t next() {
    Fiber* const self = fiber;
    if (head_ > 4096) ready_.erase(ready_.begin(), ready_.begin() + head_), head_ = 0;
    fiber = take();
    if (fiber != self) switch_stack(&self->stack_pointer, fiber ? fiber->stack_pointer : main_);
    return self->result;
  }

  // Fibers of [begin, end) that wait as `wanted` become ready, from a random one on, up or down.
  template <typename Wanted>
  void release(Wanted wanted, unsigned begin, unsigned end) {
    const unsigned count = end - begin, start = random(count), up = random(2);
    for (unsigned i = 0; i < count; ++i) {
      Fiber& one = fibers_[begin + (start + (up ? i : count - i)) % count];
      if (!wanted(one)) continue;
      one.wait = Wait::none;
      ready_.push_back(&one);
    }
    idle_ = 0;
  }

  void open_barrier() {
    if (at_barrier_ == 0 || at_barrier_ + finished_ < count_) return;
    const Fiber* first = nullptr;
    uint64_t sum = 0;
    for (const Fiber& one : fibers_) {
      if (one.wait != Wait::block) continue;
      if (!first) first = &one;
      if (one.site.line() != first->site.line()) fail("divergent barrier: " + describe_deadlock());
      sum += one.value;
    }
    for (Fiber& one : fibers_) one.result = one.wait == Wait::block ? sum : one.result;
    at_barrier_ = 0;
    block_met();
    release([](const Fiber& one) { return one.wait == Wait::block; }, 0, count_);
  }

  void complete(unsigned index, unsigned mask) {
    Warp& warp = warps_[index];
    const unsigned first = index * 32, lanes = mask & warp.waiting;
    const Fiber& one = fibers_[first + std::countr_zero(lanes)];
    uint64_t all = one.wait == Wait::bit_and || one.wait == Wait::min ? ~uint64_t(0) : 0;
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
      const unsigned lane = std::countr_zero(rest);
      const Fiber& other = fibers_[first + lane];
      const bool same =
          other.mask == mask && other.wait == one.wait && other.site.line() == one.site.line();
      if (!same) fail("divergent warp operation: " + describe_deadlock());
      const uint64_t value = other.value;
      switch (one.wait) {
        case Wait::ballot:
          all |= uint64_t(value != 0) << lane;
          break;
        case Wait::add:
          all += value;
          break;
        case Wait::min:
          all = value < all ? value : all;
          break;
        case Wait::max:
          all = value > all ? value : all;
          break;
        case Wait::bit_and:
          all &= value;
          break;
        case Wait::bit_or:
          all |= value;
          break;
        default:
          break;
      }
    }
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
      Fiber& other = fibers_[first + std::countr_zero(rest)];
      if (one.wait == Wait::shuffle && !(lanes >> other.source & 1))
        fail("lane " + std::to_string(other.lane) + " shuffles from lane " +
             std::to_string(other.source) + ", which takes no part, " + at(other.site));
      other.result = one.wait == Wait::shuffle ? fibers_[first + other.source].value : all;
    }
    warp.waiting &= ~lanes;
    if (one.wait == Wait::sync) warp_met(index, lanes);
    const auto met = [lanes](const Fiber& other) { return lanes >> other.lane & 1; };
    release(met, first, std::min(first + 32, count_));
  }

  std::string where() const {
    const auto text = [](dim3 at) {
      return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " +
             std::to_string(at.z) + ")";
    };
    const std::string call = kernel_;  // "... [with auto Kernel = NAME; ...]"
    const size_t begin = call.find("Kernel = ") + 9;
    return call.substr(begin, call.find(';', begin) - begin) + " block " + text(block_index) +
           " of " + text(grid) + ", " + std::to_string(count_) + " threads: ";
  }

  // Runs of threads that are at the same place.
  std::string describe_deadlock() const {
    const auto place = [](const Fiber& one) {
      if (one.finished) return std::string("have returned");
      if (one.wait == Wait::none) return std::string("run");
      const char* what = one.wait == Wait::block ? "wait for the block at " : "wait for lanes at ";
      return what + at(one.site);
    };
    std::string text;
    for (unsigned begin = 0, end; begin < count_; begin = end) {
      const std::string here = place(fibers_[begin]);
      for (end = begin + 1; end < count_ && place(fibers_[end]) == here;) ++end;
      text += (begin ? "; threads " : "threads ") + std::to_string(begin) + "-" +
              std::to_string(end - 1) + " " + here;
    }
    return text;
  }

  std::mutex mutex_;
  const char* kernel_ = "";
  unsigned count_ = 0, finished_ = 0, at_barrier_ = 0;
  uint64_t seed_ = 1, idle_ = 0;
  char* stacks_ = nullptr;
  void* main_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* call_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<Fiber*> ready_;
  size_t head_ = 0;
  std::string error_;
};

inline Engine engine;

[[gnu::no_sanitize_address]] inline void Engine::enter() {
  set_in_kernel(true);
  engine.body_(engine.call_);
  engine.finish();
}

template <auto Kernel, typename... Args>
void launch(dim3 grid, dim3 block, size_t shared, Args... args) {
  engine.run(__PRETTY_FUNCTION__, grid, block, shared, [&] { Kernel(args...); });
}

}  // namespace cuda_on_host

#include "intrinsics.h"
