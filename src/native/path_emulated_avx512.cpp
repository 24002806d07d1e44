// Stands in for the AVX-512 path in tests on machines without it: the same widths, layouts and indices in plain C++. Linear layers only.
#define ARMILLARY_PATH emulated_avx512
#define ARMILLARY_STANDS_FOR avx512
#define ARMILLARY_EMULATED 1
#define ARMILLARY_PORTABLE_LANES 16

#include "vec_portable.h"

#include "path.inl"
