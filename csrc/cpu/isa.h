// Compiles the kernels of one file, SSDKERN_KERNELS, once per instruction set, each copy in its own
// namespace, and picks one at load. Every other header comes before: only the code between the
// pragmas gets newer instructions, so no shared inline function can carry them to older machines.
#include "dispatch.h"
#include "soa.h"

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
#include "vec.h"
#include "vec_boxes.h"
#include "vec_math.h"
#include SSDKERN_KERNELS
}  // namespace ssdkern::v2
#undef SSDKERN_REGISTER
SSDKERN_ISA_END

#if defined(__x86_64__)
SSDKERN_ISA_BEGIN("arch=x86-64-v3")
#define SSDKERN_REGISTER 32
namespace ssdkern::v3 {
#include "vec.h"
#include "vec_boxes.h"
#include "vec_math.h"
#include SSDKERN_KERNELS
}  // namespace ssdkern::v3
#undef SSDKERN_REGISTER
SSDKERN_ISA_END

SSDKERN_ISA_BEGIN("arch=x86-64-v4")
#define SSDKERN_REGISTER 64
namespace ssdkern::v4 {
#include "vec.h"
#include "vec_boxes.h"
#include "vec_math.h"
#include SSDKERN_KERNELS
}  // namespace ssdkern::v4
#undef SSDKERN_REGISTER
SSDKERN_ISA_END
#endif
