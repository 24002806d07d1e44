// What the binding files share: arrays as plain pointers, and the table of a path by its name.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace nb = nanobind;

namespace armillary {

// Arrays of any framework, in memory that the processor can address; C order.
using Floats = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using ConstFloats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int64_t, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;

// The table of the path of that name; ValueError where this build or this processor does not have it.
const Kernels& kernels_named(const std::string& path);

// ValueError(message) unless `holds`.
inline void require(bool holds, const std::string& message) {
  if (!holds) throw nb::value_error(message.c_str());
}

// A packed matrix in memory that Python owns.
struct Weight {
  const Kernels* kernels;
  Matrix matrix;
  Bytes memory;
};

void bind_weight(nb::module_& module);
void bind_linear(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_rows(nb::module_& module);
void bind_sampler(nb::module_& module);
void bind_program(nb::module_& module);

}  // namespace armillary
