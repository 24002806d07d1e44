#define ARMILLARY_PATH amx
#define ARMILLARY_TILES 1
#include "vec_avx512.h"
#include "vec_math.h"
#include "vec_activation.h"

#include "attention.inl"
#include "linear.inl"
#include "rows.inl"
#include "sampler.inl"

namespace armillary {

const Kernels& kernels_amx() {
  static const Kernels table = [] {
    Kernels k;
    k.path = Path::amx;
    amx::fill_linear(k);
    amx::fill_attention(k);
    amx::fill_rows(k);
    amx::fill_sampler(k);
    return k;
  }();
  return table;
}

}  // namespace armillary
