#define ARMILLARY_PATH avx512

#include "vec_avx512.h"

#include "path.inl"
