// Compiles the loops of one file, SSDKERN_LOOPS, once per instruction set, each copy in its own
// namespace; SSDKERN_PICK(name) is the copy for this machine: the best it has, or the one that
// SSDKERN_ISA=v2|v3|v4 asks for in tests. Every other header comes before: only the code between
// the pragmas gets newer instructions, so no shared inline function can carry them to older
// machines.
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ssdkern {

enum class Isa { v2, v3, v4, none };

inline Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? Isa::v4 : v3 ? Isa::v3 : Isa::v2;
#else
  return Isa::v2;  // the only copy that is compiled: 16-byte registers
#endif
}

inline Isa find_isa() {
  const char* asked = std::getenv("SSDKERN_ISA");
  if (asked == nullptr || *asked == 0) return best_isa();
  const std::string name = asked;
  const Isa isa = name == "v2"   ? Isa::v2
                  : name == "v3" ? Isa::v3
                  : name == "v4" ? Isa::v4
                                 : Isa::none;
  if (isa <= best_isa()) return isa;
  throw std::invalid_argument("want SSDKERN_ISA to be one of v2, v3, v4 that runs here, got " +
                              name);
}

inline Isa isa() {
  static const Isa found = find_isa();
  return found;
}

}  // namespace ssdkern

#if defined(__x86_64__) && defined(__clang__)
#define SSDKERN_ISA_BEGIN(arch) \
  _Pragma(SSDKERN_TEXT(clang attribute push(__attribute__((target(arch))), apply_to = function)))
#define SSDKERN_ISA_END _Pragma("clang attribute pop")
#define SSDKERN_TEXT(...) #__VA_ARGS__
#elif defined(__x86_64__)
#define SSDKERN_ISA_BEGIN(arch) _Pragma("GCC push_options") _Pragma(SSDKERN_TEXT(GCC target(arch)))
#define SSDKERN_ISA_END _Pragma("GCC pop_options")
#define SSDKERN_TEXT(...) #__VA_ARGS__
#else
#define SSDKERN_ISA_BEGIN(arch)
#define SSDKERN_ISA_END
#endif

SSDKERN_ISA_BEGIN("arch=x86-64-v2")
#define SSDKERN_REGISTER 16
namespace ssdkern::v2 {
#include SSDKERN_LOOPS
}  // namespace ssdkern::v2
#undef SSDKERN_REGISTER
SSDKERN_ISA_END

#if defined(__x86_64__)
SSDKERN_ISA_BEGIN("arch=x86-64-v3")
#define SSDKERN_REGISTER 32
namespace ssdkern::v3 {
#include SSDKERN_LOOPS
}  // namespace ssdkern::v3
#undef SSDKERN_REGISTER
SSDKERN_ISA_END

SSDKERN_ISA_BEGIN("arch=x86-64-v4")
#define SSDKERN_REGISTER 64
namespace ssdkern::v4 {
#include SSDKERN_LOOPS
}  // namespace ssdkern::v4
#undef SSDKERN_REGISTER
SSDKERN_ISA_END

#define SSDKERN_PICK(...)                                           \
  (ssdkern::isa() == ssdkern::Isa::v4   ? &ssdkern::v4::__VA_ARGS__ \
   : ssdkern::isa() == ssdkern::Isa::v3 ? &ssdkern::v3::__VA_ARGS__ \
                                        : &ssdkern::v2::__VA_ARGS__)
#else
#define SSDKERN_PICK(...) (ssdkern::isa(), &ssdkern::v2::__VA_ARGS__)
#endif
