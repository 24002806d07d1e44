#include "kernels.h"

namespace armillary {

const Kernels& kernels_portable();
const Kernels& kernels_emulated_avx512();
const Kernels& kernels_emulated_avx512_bf16();
const Kernels& kernels_emulated_amx();
#if ARMILLARY_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512_plain();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512_bf16();
const Kernels& kernels_amx();
#endif

const Kernels& kernels(Path path) {
#if ARMILLARY_X86
  switch (path) {
    case Path::avx2: return kernels_avx2();
    case Path::avx512_plain: return kernels_avx512_plain();
    case Path::avx512: return kernels_avx512();
    case Path::avx512_bf16: return kernels_avx512_bf16();
    case Path::amx: return kernels_amx();
    default: break;
  }
#else
  (void)path;
#endif
  return kernels_portable();
}

const Kernels* emulated_kernels(const std::string& name) {
  if (name == "emulated_avx512") return &kernels_emulated_avx512();
  if (name == "emulated_avx512_bf16") return &kernels_emulated_avx512_bf16();
  if (name == "emulated_amx") return &kernels_emulated_amx();
  return nullptr;
}

}  // namespace armillary
