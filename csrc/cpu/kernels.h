// Included by ../isa.h, once per instruction set.
#include "vec.h"
#include "vec_boxes.h"
#include "vec_math.h"
#include SSDKERN_KERNELS
