// Compiles the loops of one file, SSDKERN_LOOPS, once per instruction set, each copy in its own
// namespace; SSDKERN_PICK(name) is the copy for this machine, or for SSDKERN_ISA=v2|v3|v4 in tests.
// Every other header comes before: only the code between the pragmas gets newer instructions. As in
// csrc/cpu/isa.h, but for a module without torch.
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__clang__)
#define SSDKERN_TEXT(...) #__VA_ARGS__
#define SSDKERN_ISA_BEGIN(arch) \
  _Pragma(SSDKERN_TEXT(clang attribute push(__attribute__((target(arch))), apply_to = function)))
#define SSDKERN_ISA_END _Pragma("clang attribute pop")
#elif defined(__x86_64__)
#define SSDKERN_TEXT(...) #__VA_ARGS__
#define SSDKERN_ISA_BEGIN(arch) _Pragma("GCC push_options") _Pragma(SSDKERN_TEXT(GCC target(arch)))
#define SSDKERN_ISA_END _Pragma("GCC pop_options")
#else
#define SSDKERN_ISA_BEGIN(arch)
#define SSDKERN_ISA_END
#endif

#if defined(__clang__)
#define SSDKERN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC has that from version 12
typedef int32_t ShuffleOrder __attribute__((vector_size(16)));
#define SSDKERN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ShuffleOrder{__VA_ARGS__})
#endif

namespace ssdkern {

inline int best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? 4 : v3 ? 3 : 2;
#else
  return 2;  // the only copy that is compiled
#endif
}

inline int find_isa() {
  const char* asked = std::getenv("SSDKERN_ISA");
  if (asked == nullptr || *asked == 0) return best_isa();
  const std::string name = asked;
  const int isa = name == "v2" ? 2 : name == "v3" ? 3 : name == "v4" ? 4 : 9;
  if (isa <= best_isa()) return isa;
  throw std::invalid_argument("want SSDKERN_ISA to be one of v2, v3, v4 that runs here, got " +
                              name);
}

inline int isa() {
  static const int found = find_isa();
  return found;
}

}  // namespace ssdkern

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

#define SSDKERN_PICK(name)                    \
  (ssdkern::isa() == 4   ? &ssdkern::v4::name \
   : ssdkern::isa() == 3 ? &ssdkern::v3::name \
                         : &ssdkern::v2::name)
#else
#define SSDKERN_PICK(name) (ssdkern::isa(), &ssdkern::v2::name)
#endif
