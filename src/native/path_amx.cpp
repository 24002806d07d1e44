#define ARMILLARY_PATH amx
#define ARMILLARY_TILES 1

#include "vec_avx512.h"

#include "path.inl"
