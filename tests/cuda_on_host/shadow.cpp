// Follows every access to memory, and throws on a read of shared memory that no thread of the block
// wrote and on a race: two threads at one byte, one of them writing, with nothing between that
// orders them. In a block that is __syncthreads, or __syncwarp within a warp: shuffles and votes
// order nothing, as in CUDA. Between blocks it is a __threadfence of the one after its access and
// of the other before; which came first they must tell each other by atomics, which is not looked
// at. Atomics, and reads of what is volatile, do not race with each other.
//
// The kernels are compiled with -fsanitize=thread, for its calls of the functions below at each
// load and store; this file is not, and libtsan is not linked. Static shared memory lies in the
// library's .bss, which kernels use for nothing else. All that is neither that nor a stack is
// global memory.
#include <algorithm>
#include <unordered_map>

#include "cuda_runtime.h"

extern "C" {
extern char __bss_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace cuda_on_host {
namespace {

// Times are numbers of barriers: of blocks, counted on from block to block, and of warps.
struct Access {
  unsigned block_time = 0, warp_time = 0;
  unsigned short thread = 0;
  bool atomic = false;
  bool operator==(const Access&) const = default;
};

struct Byte {
  Access write, read;      // the last ones
  unsigned lanes = 0;      // of the warp of `read`: have read, not ordered before it
  bool by_warps = false;   // several warps have
  bool elsewhere = false;  // blocks before this one have
  bool operator==(const Byte&) const = default;
};

struct Fence {
  unsigned block_begin;  // when its block began
  Access at;
};

class Shadow {
 public:
  void new_launch() {
    launch_ = now_ + 1;
    global_.clear();
    fences_.clear();
    page_ = nullptr;
  }

  void new_block(char* shared, size_t bytes, unsigned threads) {
    dynamic_ = shared, dynamic_bytes_ = bytes;
    shared_.resize(bytes + (_end - __bss_start));
    first_ = ++now_;
    warps_.assign((threads + 31) / 32, {});
  }

  void block_met() { ++now_; }

  void warp_met(unsigned index, unsigned lanes) {
    WarpTime& warp = warps_[index];
    ++warp.now;
    for (unsigned a = lanes; a; a &= a - 1)
      for (unsigned b = lanes; b; b &= b - 1)
        warp.met[std::countr_zero(a)][std::countr_zero(b)] = warp.now;
  }

  void fence() {
    fences_.push_back({first_, here(false)});
    ++warps_[engine.fiber->warp].now;
  }

  void access(const void* at, size_t size, bool write, bool atomic) {
    const auto* begin = static_cast<const char*>(at);
    if (begin >= dynamic_ && begin < dynamic_ + dynamic_bytes_) {
      access_shared(begin - dynamic_, size, write, atomic);
    } else if (begin >= __bss_start && begin < _end) {
      const bool own = within(begin, &engine, sizeof(engine)) || within(begin, this, sizeof(*this));
      if (!own) access_shared(dynamic_bytes_ + (begin - __bss_start), size, write, atomic);
    } else if (!engine.on_stack(begin)) {
      const auto address = reinterpret_cast<uintptr_t>(begin);
      each(
          size, [&](size_t i) -> Byte& { return global(address + i); },
          [&](Byte& byte) {
            check_elsewhere(byte, write, atomic);
            check(byte, write, atomic);
          });
    }
  }

 private:
  static constexpr uintptr_t kPage = 4096;

  struct WarpTime {
    unsigned now = 1;
    unsigned met[32][32] = {};
  };

  static bool within(const char* at, const void* object, size_t bytes) {
    const auto* begin = static_cast<const char*>(object);
    return at >= begin && at < begin + bytes;
  }

  static std::string describe(unsigned thread) { return "thread " + std::to_string(thread); }
  static std::string describe() { return describe(engine.fiber->id); }

  Access here(bool atomic) const {
    const unsigned thread = engine.fiber->id;
    return {now_, warps_[thread / 32].now, static_cast<unsigned short>(thread), atomic};
  }

  Byte& global(uintptr_t address) {
    if (!page_ || address / kPage != page_number_) {
      auto& page = global_[page_number_ = address / kPage];
      if (!page) page.reset(new Byte[kPage]);
      page_ = page.get();
    }
    return page_[address % kPage];
  }

  void access_shared(size_t index, size_t size, bool write, bool atomic) {
    each(
        std::min(size, shared_.size() - index),
        [&](size_t i) -> Byte& { return shared_[index + i]; },
        [&](Byte& byte) {
          if (byte.write.block_time < first_ && (!write || atomic))
            engine.fail(describe() + " reads shared memory that nothing wrote");
          check(byte, write, atomic);
        });
  }

  // The bytes of an access, mostly all alike.
  template <typename At, typename Check>
  static void each(size_t size, At at, Check check) {
    Byte before, after;
    for (size_t i = 0; i < size; ++i) {
      Byte& byte = at(i);
      if (i == 0 || byte != before) before = byte, check(byte), after = byte;
      byte = after;
    }
  }

  // Against the threads of this block.
  void check(Byte& byte, bool write, bool atomic) {
    const unsigned thread = engine.fiber->id;
    if (races(byte.write, thread, atomic))
      engine.fail(describe(thread) + (write ? " writes" : " reads") + " what " +
                  describe(byte.write.thread) + " wrote, with no barrier between");
    const bool again = byte.read.block_time == now_;
    const unsigned unordered = again ? unordered_readers(byte, thread) : 0;
    if (write && !(byte.read.atomic && atomic) && ((again && byte.by_warps) || unordered))
      engine.fail(describe(thread) + " writes what " + describe(byte.read.thread) +
                  " read, with no barrier between");
    if (write) {
      byte.write = here(atomic);
      byte.read = {};
      return;
    }
    if (of_another(byte.read) && !byte.read.atomic) byte.elsewhere = true;
    const bool plain = again && !byte.read.atomic, same = byte.read.thread / 32 == thread / 32;
    byte.by_warps = again && (byte.by_warps || !same);
    byte.lanes = (same ? unordered : 0) | 1u << thread % 32;
    byte.read = here(atomic && !plain);
  }

  // Against the blocks that ran before this one; they might as well have run beside it.
  void check_elsewhere(const Byte& byte, bool write, bool atomic) {
    const bool wrote = of_another(byte.write) && !(byte.write.atomic && atomic);
    const bool read = byte.elsewhere || (of_another(byte.read) && !byte.read.atomic);
    if (wrote && !(published(byte.write) && acquired()))
      engine.fail(describe() + (write ? " writes" : " reads") + " what another block wrote");
    if (write && read) engine.fail(describe() + " writes what another block read");
  }

  bool of_another(const Access& access) const {
    return access.block_time >= launch_ && access.block_time < first_;
  }

  bool published(const Access& write) const {
    return std::ranges::any_of(fences_, [&](const Fence& fence) {
      return fence.block_begin <= write.block_time && before(write, fence.at);
    });
  }

  bool acquired() const {
    return std::ranges::any_of(fences_, [&](const Fence& fence) {
      return fence.block_begin == first_ && before(fence.at, here(false));
    });
  }

  // In one block, by a barrier of it or by being one thread's.
  static bool before(const Access& one, const Access& other) {
    return one.block_time < other.block_time ||
           (one.block_time == other.block_time && one.thread == other.thread &&
            one.warp_time <= other.warp_time);
  }

  bool races(const Access& write, unsigned thread, bool atomic) const {
    return write.block_time == now_ && !(write.atomic && atomic) && !ordered(write, thread);
  }

  bool ordered(const Access& one, unsigned thread) const {
    if (one.thread == thread) return true;
    if (one.thread / 32 != thread / 32) return false;
    return warps_[thread / 32].met[one.thread % 32][thread % 32] > one.warp_time;
  }

  unsigned unordered_readers(const Byte& byte, unsigned thread) const {
    const unsigned first = byte.read.thread / 32 * 32;
    unsigned lanes = byte.lanes;
    if (thread / 32 == first / 32) lanes &= ~(1u << thread % 32);
    if (byte.read.warp_time == warps_[first / 32].now) return lanes;  // no barrier of it since
    Access one = byte.read;
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
      one.thread = first + std::countr_zero(rest);
      if (ordered(one, thread)) lanes &= ~(rest & -rest);
    }
    return lanes;
  }

  const char* dynamic_ = nullptr;
  size_t dynamic_bytes_ = 0;
  std::vector<Byte> shared_;
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> global_;  // of this launch
  Byte* page_ = nullptr;                                           // the last one
  uintptr_t page_number_ = 0;
  std::vector<Fence> fences_;
  std::vector<WarpTime> warps_;
  unsigned now_ = 1, first_ = 1, launch_ = 1;  // launch_, first_: when the launch and block began
};

Shadow shadow;

void plain_access(const void* at, size_t bytes, bool write, bool is_volatile = false) {
  if (in_kernel) shadow.access(at, bytes, write, is_volatile);
}

}  // namespace

void new_launch() { shadow.new_launch(); }
void new_block(char* shared, size_t bytes, unsigned threads) {
  shadow.new_block(shared, bytes, threads);
}
void block_met() { shadow.block_met(); }
void warp_met(unsigned warp, unsigned lanes) { shadow.warp_met(warp, lanes); }
void fenced() { shadow.fence(); }
void atomic_access(const void* at, size_t bytes) { shadow.access(at, bytes, true, true); }

}  // namespace cuda_on_host

// The reference counts of host code.
extern "C" int __tsan_atomic32_fetch_add(volatile int* at, int value, int) {
  const int old = *at;
  *at = old + value;
  return old;
}

#define SHADOW(name, ...) extern "C" void __tsan_##name(__VA_ARGS__)
#define SHADOW_OF(kind, size, write, is_volatile) \
  SHADOW(kind##size, void* at) { cuda_on_host::plain_access(at, size, write, is_volatile); }
#define SHADOW_SIZE(size)                               \
  SHADOW_OF(read, size, false, false)                   \
  SHADOW_OF(write, size, true, false)                   \
  SHADOW_OF(unaligned_read, size, false, false)         \
  SHADOW_OF(unaligned_write, size, true, false)         \
  SHADOW_OF(volatile_read, size, false, true)           \
  SHADOW_OF(volatile_write, size, true, true)           \
  SHADOW_OF(unaligned_volatile_read, size, false, true) \
  SHADOW_OF(unaligned_volatile_write, size, true, true)
SHADOW_SIZE(1)
SHADOW_SIZE(2)
SHADOW_SIZE(4)
SHADOW_SIZE(8)
SHADOW_SIZE(16)
SHADOW(read_range, void* at, size_t bytes) { cuda_on_host::plain_access(at, bytes, false); }
SHADOW(write_range, void* at, size_t bytes) { cuda_on_host::plain_access(at, bytes, true); }
SHADOW(init) {}
SHADOW(vptr_update, void**, void*) {}
