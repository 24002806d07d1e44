#include "bind.h"

namespace armillary {

void bind_attention(nb::module_& module) { (void)module; }

}  // namespace armillary
