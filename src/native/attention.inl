#include "kernels.h"

namespace armillary {
namespace ARMILLARY_PATH {

inline void fill_attention(Kernels& k) { (void)k; }

}  // namespace ARMILLARY_PATH
}  // namespace armillary
