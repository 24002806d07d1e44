#define ARMILLARY_PATH portable

#include "vec_portable.h"
#include "vec_math.h"
#include "vec_activation.h"

#include "attention.inl"
#include "linear.inl"
#include "rows.inl"
#include "sampler.inl"

namespace armillary {

const Kernels& kernels_portable() {
  static const Kernels table = [] {
    Kernels k;
    k.path = Path::portable;
    portable::fill_linear(k);
    portable::fill_attention(k);
    portable::fill_rows(k);
    portable::fill_sampler(k);
    return k;
  }();
  return table;
}

}  // namespace armillary
