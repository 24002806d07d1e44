#include "bind.h"

namespace armillary {

const Kernels& kernels_named(const std::string& path) {
  for (Path found : available_paths())
    if (path == name(found)) return kernels(found);
  std::string known;
  for (Path found : available_paths()) known += std::string(known.empty() ? "" : ", ") + name(found);
  throw nb::value_error(("path must be one of " + known + ", given " + path).c_str());
}

}  // namespace armillary

NB_MODULE(_native, module) {
  using namespace armillary;
  // A server keeps its model to the end, out of the collector's sight, and the system takes its memory back.
  nb::set_leak_warnings(false);
  module.doc() = "Kernels in C++. Used through armillary.kernels.native.";
  // To be raised with every change of what Python may call, of arguments and of what they mean, together with INTERFACE in
  // armillary/kernels/native.py, which refuses an extension of another number.
  module.attr("interface") = 8;
  module.def(
      "paths",
      [] {
        std::vector<std::string> names;
        for (Path path : available_paths()) names.push_back(name(path));
        return names;
      },
      "Sets of kernels that this processor runs, slowest first.");
  bind_weight(module);
  bind_linear(module);
  bind_attention(module);
  bind_rows(module);
  bind_sampler(module);
  bind_program(module);
}
