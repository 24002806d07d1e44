// Stands in for the AMX path in tests on machines without it: the same widths, layouts and indices in plain C++. Linear layers only.
#define ARMILLARY_PATH emulated_amx
#define ARMILLARY_EMULATED 1
#define ARMILLARY_PORTABLE_LANES 16
#define ARMILLARY_TILES 2

#include "vec_portable.h"
#include "vec_math.h"
#include "vec_activation.h"

#include "linear.inl"

namespace armillary {

const Kernels& kernels_emulated_amx() {
  static const Kernels table = [] {
    Kernels k;
    k.path = Path::amx;
    emulated_amx::fill_linear(k);
    return k;
  }();
  return table;
}

}  // namespace armillary
