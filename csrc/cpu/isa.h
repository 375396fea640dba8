// SSDKERN_KERNELS, the kernels of one op on the vectors of vec.h, once per instruction set.
#include <cmath>

#include "soa.h"
#define SSDKERN_LOOPS "cpu/kernels.h"
#include "../isa.h"
