#define ARMILLARY_PATH avx2

#include "vec_avx2.h"
#include "vec_math.h"
#include "vec_activation.h"

#include "attention.inl"
#include "linear.inl"
#include "rows.inl"
#include "sampler.inl"

namespace armillary {

const Kernels& kernels_avx2() {
  static const Kernels table = [] {
    Kernels k;
    k.path = Path::avx2;
    avx2::fill_linear(k);
    avx2::fill_attention(k);
    avx2::fill_rows(k);
    avx2::fill_sampler(k);
    return k;
  }();
  return table;
}

}  // namespace armillary
