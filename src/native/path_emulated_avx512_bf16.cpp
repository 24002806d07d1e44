// Stands in for the path of AVX512-BF16 in tests on machines without it, in plain C++. Linear layers and
// attention.
#define ARMILLARY_PATH emulated_avx512_bf16
#define ARMILLARY_STANDS_FOR avx512_bf16
#define ARMILLARY_EMULATED 1
#define ARMILLARY_PORTABLE_LANES 16
#define ARMILLARY_BF16_PAIRS 1

#include "vec_portable.h"

#include "path.inl"
