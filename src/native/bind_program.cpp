#include "bind.h"

namespace armillary {

void bind_program(nb::module_& module) { (void)module; }

}  // namespace armillary
