#include "bind.h"

namespace armillary {

void bind_rows(nb::module_& module) { (void)module; }

}  // namespace armillary
