#define ARMILLARY_PATH portable

#include "vec_portable.h"

#include "path.inl"
