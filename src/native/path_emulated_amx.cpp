// Stands in for the AMX path in tests on machines without it: the same widths, layouts and indices in plain C++. Linear
// layers and attention.
#define ARMILLARY_PATH emulated_amx
#define ARMILLARY_STANDS_FOR amx
#define ARMILLARY_EMULATED 1
#define ARMILLARY_PORTABLE_LANES 16
#define ARMILLARY_TILES 2

#include "vec_portable.h"

#include "path.inl"
