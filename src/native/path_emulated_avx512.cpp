// Stands in for the AVX-512 path in tests on machines without it: the same widths, layouts and indices in plain C++. Linear layers only.
#define ARMILLARY_PATH emulated_avx512
#define ARMILLARY_EMULATED 1
#define ARMILLARY_PORTABLE_LANES 16

#include "vec_portable.h"
#include "vec_math.h"
#include "vec_activation.h"

#include "linear.inl"

namespace armillary {

const Kernels& kernels_emulated_avx512() {
  static const Kernels table = [] {
    Kernels k;
    k.path = Path::avx512;
    emulated_avx512::fill_linear(k);
    return k;
  }();
  return table;
}

}  // namespace armillary
