#define ARMILLARY_PATH avx512_plain

#include "vec_avx512.h"

#include "path.inl"
