#define ARMILLARY_PATH avx512

#include "vec_avx512.h"
#include "vec_math.h"
#include "vec_activation.h"

#include "attention.inl"
#include "linear.inl"
#include "rows.inl"
#include "sampler.inl"

namespace armillary {

const Kernels& kernels_avx512() {
  static const Kernels table = [] {
    Kernels k;
    k.path = Path::avx512;
    avx512::fill_linear(k);
    avx512::fill_attention(k);
    avx512::fill_rows(k);
    avx512::fill_sampler(k);
    return k;
  }();
  return table;
}

}  // namespace armillary
