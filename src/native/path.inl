// All kernels of one path, and their table. Included last, after ARMILLARY_PATH is named and its vectors are there.
#include "vec_math.h"
#include "vec_activation.h"

#include "linear.inl"
#if !defined(ARMILLARY_EMULATED)  // what stands in for another path in tests has linear layers only
#include "attention.inl"
#include "rows.inl"
#include "sampler.inl"
#define ARMILLARY_STANDS_FOR ARMILLARY_PATH
#endif

#define ARMILLARY_JOINED(a, b) a##b
#define ARMILLARY_TABLE(path) ARMILLARY_JOINED(kernels_, path)

namespace armillary {

const Kernels& ARMILLARY_TABLE(ARMILLARY_PATH)() {
  static const Kernels table = [] {
    Kernels k;
    k.path = Path::ARMILLARY_STANDS_FOR;
    ARMILLARY_PATH::fill_linear(k);
#if !defined(ARMILLARY_EMULATED)
    ARMILLARY_PATH::fill_attention(k);
    ARMILLARY_PATH::fill_rows(k);
    ARMILLARY_PATH::fill_sampler(k);
#endif
    return k;
  }();
  return table;
}

}  // namespace armillary
