// Products of bfloat16 pairs in linear layers and attention; all else is what the path without them has.
#define ARMILLARY_PATH avx512_bf16
#define ARMILLARY_BASE avx512
#define ARMILLARY_BF16_PAIRS 1

#include "vec_avx512.h"

#include "path.inl"
