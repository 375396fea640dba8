// Follows every access to shared memory, and throws on a read of what no thread of the block wrote
// and on a race: two threads at one byte, one of them writing, with neither __syncthreads nor
// (within a warp) __syncwarp between them. Shuffles and votes order nothing, as in CUDA.
//
// The kernels are compiled with -fsanitize=thread, for its calls of the functions below at each
// load and store; this file is not, and libtsan is not linked. Static shared memory lies in the
// library's .bss, which kernels use for nothing else.
#include "cuda_runtime.h"

extern "C" {
extern char __bss_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace cuda_on_host {
namespace {

struct Byte {
  unsigned written = 0, read = 0;      // when: number of block barriers passed
  unsigned wrote_at = 0, read_at = 0;  // when: number of warp barriers passed
  unsigned short writer = 0, reader = 0;
  bool atomic = false, by_many = false;
};

class Shadow {
 public:
  void new_block(char* shared, size_t bytes, unsigned threads) {
    dynamic_ = shared, dynamic_bytes_ = bytes;
    bytes_.resize(bytes + (_end - __bss_start));
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

  void access(const void* at, size_t size, bool write, bool atomic) {
    const auto* begin = static_cast<const char*>(at);
    size_t index;
    if (begin >= dynamic_ && begin < dynamic_ + dynamic_bytes_) {
      index = begin - dynamic_;
    } else if (begin >= __bss_start && begin < _end && !within(begin, &engine, sizeof(engine)) &&
               !within(begin, this, sizeof(*this))) {
      index = dynamic_bytes_ + (begin - __bss_start);
    } else {
      return;
    }
    const unsigned thread = engine.fiber->id;
    for (size_t i = index; i < index + size && i < bytes_.size(); ++i) {
      Byte& byte = bytes_[i];
      if (byte.written < first_ && (!write || atomic))
        engine.fail(describe(thread) + " reads shared memory that nothing wrote");
      const bool both = atomic && byte.atomic;
      if (byte.written == now_ && !both && !ordered(byte.writer, thread, byte.wrote_at))
        engine.fail(describe(thread) + (write ? " writes" : " reads") + " what " +
                    describe(byte.writer) + " wrote, with no barrier between");
      if (write && byte.read == now_ &&
          (byte.by_many || !ordered(byte.reader, thread, byte.read_at)))
        engine.fail(describe(thread) + " writes what " + describe(byte.reader) +
                    " read, with no barrier between");
      const unsigned time = warps_[thread / 32].now;
      if (write) {
        byte.written = now_, byte.wrote_at = time, byte.writer = thread, byte.atomic = atomic;
        byte.read = 0;
      } else {
        const bool again = byte.read == now_ && byte.reader != thread;
        byte.by_many = again && (byte.by_many || !ordered(byte.reader, thread, byte.read_at));
        byte.read = now_, byte.read_at = time, byte.reader = thread;
      }
    }
  }

 private:
  struct WarpTime {
    unsigned now = 1;
    unsigned met[32][32] = {};
  };

  static bool within(const char* at, const void* object, size_t bytes) {
    const auto* begin = static_cast<const char*>(object);
    return at >= begin && at < begin + bytes;
  }

  static std::string describe(unsigned thread) { return "thread " + std::to_string(thread); }

  bool ordered(unsigned before, unsigned after, unsigned time) const {
    if (before == after) return true;
    if (before / 32 != after / 32) return false;
    return warps_[after / 32].met[before % 32][after % 32] > time;
  }

  const char* dynamic_ = nullptr;
  size_t dynamic_bytes_ = 0;
  std::vector<Byte> bytes_;
  std::vector<WarpTime> warps_;
  unsigned now_ = 1, first_ = 1;
};

Shadow shadow;

void plain_access(const void* at, size_t bytes, bool write) {
  if (engine.fiber) shadow.access(at, bytes, write, false);
}

}  // namespace

void new_block(char* shared, size_t bytes, unsigned threads) {
  shadow.new_block(shared, bytes, threads);
}
void block_met() { shadow.block_met(); }
void warp_met(unsigned warp, unsigned lanes) { shadow.warp_met(warp, lanes); }
void atomic_access(const void* at, size_t bytes) { shadow.access(at, bytes, true, true); }

}  // namespace cuda_on_host

// The reference counts of host code.
extern "C" int __tsan_atomic32_fetch_add(volatile int* at, int value, int) {
  const int old = *at;
  *at = old + value;
  return old;
}

#define SHADOW(name, ...) extern "C" void __tsan_##name(__VA_ARGS__)
#define SHADOW_SIZE(size)                                                                 \
  SHADOW(read##size, void* at) { cuda_on_host::plain_access(at, size, false); }           \
  SHADOW(write##size, void* at) { cuda_on_host::plain_access(at, size, true); }           \
  SHADOW(unaligned_read##size, void* at) { cuda_on_host::plain_access(at, size, false); } \
  SHADOW(unaligned_write##size, void* at) { cuda_on_host::plain_access(at, size, true); }
SHADOW_SIZE(1)
SHADOW_SIZE(2)
SHADOW_SIZE(4)
SHADOW_SIZE(8)
SHADOW_SIZE(16)
SHADOW(read_range, void* at, size_t bytes) { cuda_on_host::plain_access(at, bytes, false); }
SHADOW(write_range, void* at, size_t bytes) { cuda_on_host::plain_access(at, bytes, true); }
SHADOW(init) {}
SHADOW(vptr_update, void**, void*) {}
