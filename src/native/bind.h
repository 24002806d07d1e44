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

// ValueError(message) unless `holds`. What is checked for each element of something builds its message only when it must:
// in a step of small kernels, strings that nobody reads would be seen.
inline void require(bool holds, const char* message) {
  if (!holds) throw nb::value_error(message);
}
inline void require(bool holds, const std::string& message) { require(holds, message.c_str()); }

// Numbers of something, all from 0 to below `count`.
inline void require_below(const int64_t* numbers, int64_t size, int64_t count, const char* what) {
  for (int64_t i = 0; i < size; ++i)
    if (numbers[i] < 0 || numbers[i] >= count)
      require(false, std::string(what) + " must be from 0 to " + std::to_string(count - 1) + ", given " +
                         std::to_string(numbers[i]));
}

// Bounds that sums and products of these numbers stay far below 2^63 under.
constexpr int64_t kMostPositions = int64_t(1) << 31;  // and blocks
constexpr int64_t kMostNumbers = int64_t(1) << 48;    // of a matrix
constexpr int kMostHeads = 1 << 16;
constexpr int kMostInBlock = 1 << 20;

// How many threads a team has: more are a mistake that the system would pay for.
inline int checked_threads(int threads) {
  require(threads >= 1 && threads <= 1024, "threads must be from 1 to 1024, given " + std::to_string(threads));
  return threads;
}

inline Activation activation_of(int number) {
  require(number >= 0 && number <= 3, "activation must be from 0 to 3, given " + std::to_string(number));
  return Activation(number);
}

// The number format of an array of float32, bfloat16 or float16, or, where `bytes` are taken too, of int8. Numbers of uint16
// are the bits of bfloat16, which numpy does not have.
inline Element element_of(const nb::dlpack::dtype& type, const char* what, bool bytes = false) {
  const bool narrow = type.bits == 16 && type.lanes == 1;
  if (type == nb::dtype<float>()) return Element::f32;
  if (bytes && type == nb::dtype<int8_t>()) return Element::i8;
  if (narrow && type.code == uint8_t(nb::dlpack::dtype_code::Bfloat)) return Element::bf16;
  if (type == nb::dtype<uint16_t>()) return Element::bf16;
  require(narrow && type.code == uint8_t(nb::dlpack::dtype_code::Float),
          std::string(what) + (bytes ? " must be float32, bfloat16, float16 or int8" : " must be float32, bfloat16 or float16"));
  return Element::f16;
}

// The shape of a layer's keys and values, which have no memory yet.
inline KvLayer kv_layer(int element, int kv_heads, int head_dim, int block_size) {
  require(element >= int(Element::f32) && element <= int(Element::i8), "element must be f32, bf16, f16 or i8");
  require(kv_heads > 0 && kv_heads <= kMostHeads, "kv_heads must be from 1 to 65536, given " + std::to_string(kv_heads));
  require(head_dim > 0 && head_dim <= 512, "head_dim must be from 1 to 512, given " + std::to_string(head_dim));
  require(block_size > 0 && block_size <= kMostInBlock,
          "block_size must be from 1 to 1048576, given " + std::to_string(block_size));
  KvLayer layer;
  layer.element = Element(element);
  layer.kv_heads = kv_heads;
  layer.head_dim = head_dim;
  layer.block_size = block_size;
  return layer;
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
