// The instruction set of this process: the best the machine has, or SSDKERN_ISA=v2|v3|v4 in tests.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
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
  return isa <= best_isa() ? isa : Isa::none;
}

inline Isa isa() {
  static const Isa found = find_isa();
  STD_TORCH_CHECK(found != Isa::none, "want SSDKERN_ISA to be one of v2, v3, v4 that runs here, ",
                  "got ", std::getenv("SSDKERN_ISA"));
  return found;
}

}  // namespace ssdkern

// The copy of a kernel that this machine runs: SSDKERN_PICK(box_iou_row<float>)(...).
#if defined(__x86_64__)
#define SSDKERN_PICK(...)                                           \
  (ssdkern::isa() == ssdkern::Isa::v4   ? &ssdkern::v4::__VA_ARGS__ \
   : ssdkern::isa() == ssdkern::Isa::v3 ? &ssdkern::v3::__VA_ARGS__ \
                                        : &ssdkern::v2::__VA_ARGS__)
#else
#define SSDKERN_PICK(...) (ssdkern::isa(), &ssdkern::v2::__VA_ARGS__)
#endif
