#define ARMILLARY_PATH avx2

#include "vec_avx2.h"

#include "path.inl"
