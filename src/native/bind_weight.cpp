#include <cmath>
#include <cstdio>

#include "bind.h"
#include "numbers.h"

namespace armillary {
namespace {

MatrixShape shape_of(int64_t out, int64_t in, int element, int group, bool zero_points, bool paired,
                     bool int8_activations, int scales) {
  require(out > 0 && in > 0, "a matrix must have rows and columns, given " + std::to_string(out) + " x " +
                                 std::to_string(in));
  require(out <= kMostNumbers && in <= kMostNumbers / out,
          "a matrix must have at most 2^48 numbers, given " + std::to_string(out) + " x " + std::to_string(in));
  require(element >= 0 && element <= 4, "element must be from 0 to 4, given " + std::to_string(element));
  const bool grouped = element == int(Element::i4);
  require(grouped ? (group == 32 || group == 64 || group == 128) && in % group == 0 : group == 0,
          "group must be 32, 64 or 128 and divide the " + std::to_string(in) +
              " inputs of a 4-bit matrix, and be 0 for others, given " + std::to_string(group));
  // Sums of products of bytes are kept in 32 bits.
  require(!int8_activations || in <= 131072,
          "int8_activations must be of at most 131072 inputs, given " + std::to_string(in));
  require(grouped || !zero_points, "zero_points must be those of a 4-bit matrix");
  require(scales == 0 || (grouped && (scales == int(Element::f16) || scales == int(Element::bf16))),
          "scales must be 0, or of a 4-bit matrix also 1 (bfloat16) or 2 (float16), given " + std::to_string(scales));
  require(!int8_activations || element >= int(Element::i8), "int8_activations must multiply an 8- or 4-bit matrix");
  require(!paired || out % 2 == 0, "a paired matrix must have an even number of rows, given " + std::to_string(out));
  MatrixShape shape;
  shape.out = out;
  shape.in = in;
  shape.element = Element(element);
  shape.group = group;
  shape.scales = Element(scales);
  shape.zero_points = zero_points;
  shape.paired = paired;
  shape.int8_activations = int8_activations;
  return shape;
}

// Matrices alone may also be packed for an emulated path, which no program runs.
const Kernels& kernels_of_matrices(const std::string& path) {
  const Kernels* emulated = emulated_kernels(path);
  return emulated ? *emulated : kernels_named(path);
}

std::string plainly(float number) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", double(number));
  return text;
}

// Whether a scale is a number of that format. NaN is, of all.
bool kept(float scale, Element scales) {
  return scale != scale || scale == kept_scale(scale, scales);
}

using Rows = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;

void pack(Weight& weight, Rows rows, int64_t first, std::optional<ConstFloats> scales, std::optional<ConstFloats> zeros) {
  const MatrixShape& shape = weight.matrix.shape;
  const int64_t count = int64_t(rows.shape(0));
  require(int64_t(rows.shape(1)) == shape.in, "rows must be " + std::to_string(shape.in) + " wide, given " +
                                                  std::to_string(rows.shape(1)));
  require(first >= 0 && first <= shape.out - count, "rows must lie within the matrix's " + std::to_string(shape.out));
  require(rows.shape(1) == 1 || rows.stride(1) == 1, "a row must be contiguous");
  MatrixRows source;
  source.data = rows.data();
  source.element = element_of(rows.dtype(), "rows", true);
  source.stride = rows.stride(0);
  const bool integers = source.element == Element::i8;
  const bool grouped = shape.element == Element::i4;
  require(!integers || shape.element == Element::i8 || grouped, "integer rows must go into an 8- or 4-bit matrix");
  require(integers == scales.has_value(), "scales must be given with integer rows, and only with them");
  require(zeros.has_value() == (integers && shape.zero_points),
          "zeros must be given with integer rows of a matrix with zero points, and only then");
  const int64_t each = grouped ? shape.in / shape.group : 1;
  if (scales) {
    require(int64_t(scales->size()) == count * each, "scales must have one number a row or group");
    for (size_t i = 0; i < scales->size(); ++i)
      require(kept(scales->data()[i], shape.scales),
              "scales must be numbers of the format that the matrix keeps them in, given " + plainly(scales->data()[i]));
    source.scales = scales->data();
  }
  if (zeros) {
    require(int64_t(zeros->size()) == count * each, "zeros must have one number a group");
    for (size_t i = 0; i < zeros->size(); ++i) {
      const float zero = zeros->data()[i];
      require(zero >= 0 && zero <= 16 && zero == std::floor(zero),
              "zeros must be whole numbers from 0 to 16, given " + plainly(zero));
    }
    source.zeros = zeros->data();
  }
  if (integers && grouped) source.element = Element::i4;
  nb::gil_scoped_release free;
  weight.kernels->matrix_pack(weight.matrix, source, first, count);
}

}  // namespace

void bind_weight(nb::module_& module) {
  module.def(
      "weight_bytes",
      [](const std::string& path, int64_t out, int64_t in, int element, int group, bool zero_points, bool paired,
         bool int8_activations, int scales) {
        return kernels_of_matrices(path).matrix_bytes(
            shape_of(out, in, element, group, zero_points, paired, int8_activations, scales));
      },
      nb::arg("path"), nb::arg("out"), nb::arg("in_"), nb::arg("element"), nb::arg("group") = 0,
      nb::arg("zero_points") = false, nb::arg("paired") = false, nb::arg("int8_activations") = false, nb::arg("scales") = 0,
      "Bytes of memory that a packed matrix [out, in] takes. scales: the element that groups' scales are kept in.");
  nb::class_<Weight>(module, "Weight", "A matrix [out, in], packed for one path, in memory that the caller brings.")
      .def(
          "__init__",
          [](Weight* self, const std::string& path, Bytes memory, int64_t out, int64_t in, int element, int group,
             bool zero_points, bool paired, bool int8_activations, int scales) {
            const Kernels& kernels = kernels_of_matrices(path);
            const MatrixShape shape = shape_of(out, in, element, group, zero_points, paired, int8_activations, scales);
            require(memory.size() == kernels.matrix_bytes(shape), "memory must have weight_bytes(...) bytes, given " +
                                                                      std::to_string(memory.size()));
            require(reinterpret_cast<uintptr_t>(memory.data()) % 64 == 0, "memory must be aligned to 64 bytes");
            new (self) Weight{&kernels, Matrix{shape, memory.data()}, memory};
          },
          nb::arg("path"), nb::arg("memory").noconvert(), nb::arg("out"), nb::arg("in_"), nb::arg("element"), nb::arg("group") = 0,
          nb::arg("zero_points") = false, nb::arg("paired") = false, nb::arg("int8_activations") = false, nb::arg("scales") = 0)
      .def("pack", &pack, nb::arg("rows"), nb::arg("first") = 0, nb::arg("scales") = nb::none(),
           nb::arg("zeros") = nb::none(),
           "Packs rows [count, in] as rows first, first + 1, ... Values are quantised on the way; int8 rows are kept as they "
           "are, with scales [count] or [count, in / group] and zeros likewise.")
      .def(
          "rows",
          [](const Weight& self, Ints which, Floats out) {
            const int64_t count = int64_t(which.size());
            require(int64_t(out.size()) == count * self.matrix.shape.in, "out must be [rows, in]");
            require_below(which.data(), count, self.matrix.shape.out, "rows");
            self.kernels->matrix_rows(self.matrix, which.data(), count, out.data(), self.matrix.shape.in);
          },
          nb::arg("which"), nb::arg("out").noconvert(), "The values that products are made with, as float32 [len(which), in].");
}

}  // namespace armillary
