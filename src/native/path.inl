// All kernels of one path, and their table. Included last, after ARMILLARY_PATH is named and its vectors are there.
//
// With ARMILLARY_BASE, another path that the same processors run, only linear layers and attention are this path's own, and all
// else in its table is the other's. What stands in for another path in tests has linear layers and, where those of bfloat16 are
// that path's own, attention.
#include "vec_math.h"
#include "vec_activation.h"

#if defined(ARMILLARY_BF16_PAIRS) || defined(ARMILLARY_TILES)
#define ARMILLARY_PAIRED_ATTENTION 1
#include "vec_pairs.h"
#endif

#include "linear.inl"
#if defined(ARMILLARY_PAIRED_ATTENTION) || !defined(ARMILLARY_EMULATED)
#include "attention.inl"
#endif
#if !defined(ARMILLARY_EMULATED)
#define ARMILLARY_STANDS_FOR ARMILLARY_PATH
#if !defined(ARMILLARY_BASE)
#include "rows.inl"
#include "sampler.inl"
#endif
#endif

#define ARMILLARY_JOINED(a, b) a##b
#define ARMILLARY_TABLE(path) ARMILLARY_JOINED(kernels_, path)

namespace armillary {

#if defined(ARMILLARY_BASE)
const Kernels& ARMILLARY_TABLE(ARMILLARY_BASE)();
#endif

const Kernels& ARMILLARY_TABLE(ARMILLARY_PATH)() {
  static const Kernels table = [] {
#if defined(ARMILLARY_BASE)
    Kernels k = ARMILLARY_TABLE(ARMILLARY_BASE)();
#else
    Kernels k;
#endif
    k.path = Path::ARMILLARY_STANDS_FOR;
    ARMILLARY_PATH::fill_linear(k);
#if defined(ARMILLARY_PAIRED_ATTENTION) || !defined(ARMILLARY_EMULATED)
    ARMILLARY_PATH::fill_attention(k);
#endif
#if !defined(ARMILLARY_EMULATED) && !defined(ARMILLARY_BASE)
    ARMILLARY_PATH::fill_rows(k);
    ARMILLARY_PATH::fill_sampler(k);
#endif
    return k;
  }();
  return table;
}

}  // namespace armillary
