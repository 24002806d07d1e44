// How a packed matrix lies in memory.
//
// Units of 64 packed rows follow each other. A unit is a head (scales of its rows, where they are one a row) and then blocks
// of up to 128 inputs, in 4-bit matrices one group; a block is a head (of that group, a scale a row in 32 or 16 bits, and a byte a
// row where there are zero points) and four strips of 16 rows; a strip holds, input after input, the weights of its 16 rows next
// to each other, `step` inputs of one row interleaved. A product reads a unit from its first byte to its last.
//
// The packed rows of a unit are 64 rows of the matrix, or of a paired matrix 32 gates and then their 32 partners.
#include "kernels.h"

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

constexpr int kUnit = 64;
constexpr int kStrip = 16;
constexpr int kStrips = kUnit / kStrip;
constexpr int64_t kBlock = 128;

inline int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// What a matrix is multiplied as.
enum class Method {
  f32, bf16, f16, i8, i4,                                 // in float32
  bf16_pairs,                                             // in pairs of bfloat16
  i8_pairs, i4_pairs,                                     // in integers, rows rounded to 16 bits
  i8_dot, i4_dot,                                         // and to 8
  bf16_tile, i8_tile, i4_tile, i8_dot_tile, i4_dot_tile,  // on the matrix unit
};

// Paths with instructions for products of 16-bit pairs, of which there are twice as many a cycle as of float32.
#if !defined(ARMILLARY_TILES) && (defined(ARMILLARY_AVX2) || defined(ARMILLARY_AVX512) || defined(ARMILLARY_EMULATED))
#define ARMILLARY_PAIRS 1
#endif

inline Method method_of(const MatrixShape& shape) {
#if defined(ARMILLARY_TILES)
  constexpr bool tiles = true;
#else
  constexpr bool tiles = false;
#endif
#if defined(ARMILLARY_PAIRS)
  constexpr bool pairs = true;
#else
  constexpr bool pairs = false;
#endif
#if defined(ARMILLARY_BF16_PAIRS)
  constexpr Method bf16 = Method::bf16_pairs;
#else
  constexpr Method bf16 = tiles ? Method::bf16_tile : Method::bf16;
#endif
  switch (shape.element) {
    case Element::bf16: return bf16;
    case Element::f16: return Method::f16;
    case Element::i8:
      if (shape.int8_activations) return tiles ? Method::i8_dot_tile : Method::i8_dot;
      return tiles ? Method::i8_tile : pairs ? Method::i8_pairs : Method::i8;
    case Element::i4:
      if (shape.int8_activations) return tiles ? Method::i4_dot_tile : Method::i4_dot;
      return tiles ? Method::i4_tile : pairs ? Method::i4_pairs : Method::i4;
    default: return Method::f32;
  }
}

struct Layout {
  int64_t in = 0;
  int64_t block = kBlock;      // inputs of a block
  int64_t step = 1;            // inputs of one row next to each other
  int64_t pad = 1;             // inputs are filled up with zeros to a multiple of this
  int64_t bits = 32;           // of a weight
  bool nibble_pairs = false;   // of a word of 4-bit weights, what stands 16 bits apart is a pair of neighbours
  int64_t head = 0;            // bytes before a unit's first block
  Element scales = Element::f32;  // of groups, as they are kept
  int64_t scales_bytes = 0;    // of a block's scales, which zero points follow
  int64_t block_head = 0;      // bytes before a block's first strip
  int64_t block_bytes = 0;     // of a whole block
  int64_t blocks = 0;
  int64_t unit_bytes = 0;

  int64_t inputs(int64_t index) const { return smaller(block, in - index * block); }
  int64_t strip_bytes(int64_t index) const { return round_up(inputs(index), pad) * kStrip * bits / 8; }
  int64_t offset(int64_t index) const { return head + index * block_bytes; }
  // Weight of input `k` of a block in row `lane` of a unit, counted in elements from the block's first strip.
  int64_t place(int64_t index, int64_t k, int lane) const {
    return (lane / kStrip) * round_up(inputs(index), pad) * kStrip + ((k / step) * kStrip + lane % kStrip) * step +
           k % step;
  }
};

constexpr int64_t kUnitFloats = kUnit * int64_t(sizeof(float));

inline int64_t scale_bytes(Element scales) { return scales == Element::f32 ? 4 : 2; }

// Inputs of one row that integer products take at once: see linear_dot.inl.
#if defined(__AVX512VNNI__) || defined(ARMILLARY_EMULATED)
#define ARMILLARY_QUADS 1
constexpr int64_t kDotStep = 4;
#else
constexpr int64_t kDotStep = 2;
#endif

inline Layout layout_of(const MatrixShape& shape) {
  Layout l;
  l.in = shape.in;
  switch (method_of(shape)) {
    case Method::f32: break;
    case Method::f16: l.bits = 16; break;
    case Method::bf16:
    case Method::bf16_pairs: l.bits = 16, l.step = l.pad = 2; break;
    case Method::bf16_tile: l.bits = 16, l.step = 2, l.pad = 32; break;
    case Method::i8: l.bits = 8, l.pad = 4, l.head = kUnitFloats; break;
    case Method::i8_pairs: l.bits = 8, l.step = 2, l.pad = 4, l.head = kUnitFloats; break;
    case Method::i8_tile: l.bits = 8, l.step = 2, l.pad = 32, l.head = kUnitFloats; break;
    case Method::i8_dot: l.bits = 8, l.step = kDotStep, l.pad = 4, l.head = 2 * kUnitFloats; break;
    case Method::i8_dot_tile: l.bits = 8, l.step = 4, l.pad = 64, l.head = 2 * kUnitFloats; break;
    case Method::i4:
    case Method::i4_pairs:
    case Method::i4_dot:
    case Method::i4_tile:
    case Method::i4_dot_tile:
      l.bits = 4, l.step = 8, l.pad = 8, l.block = shape.group;
      l.scales = shape.scales, l.scales_bytes = kUnit * scale_bytes(shape.scales);
      l.block_head = l.scales_bytes + (shape.zero_points ? kUnit : 0);
      l.nibble_pairs = method_of(shape) == Method::i4_pairs;
      break;
  }
  l.block_bytes = l.block_head + round_up(l.block, l.pad) * kUnit * l.bits / 8;
  l.blocks = (l.in + l.block - 1) / l.block;
  const int64_t last = l.blocks - 1;
  l.unit_bytes = round_up(l.offset(last) + l.block_head + kStrips * l.strip_bytes(last), 64);
  return l;
}

inline int64_t outputs_of(const MatrixShape& shape) { return shape.paired ? shape.out / 2 : shape.out; }
inline int64_t unit_outputs(const MatrixShape& shape) { return shape.paired ? kUnit / 2 : kUnit; }

inline int64_t matrix_units(const MatrixShape& shape) {
  return round_up(outputs_of(shape), unit_outputs(shape)) / unit_outputs(shape);
}

inline size_t matrix_bytes(const MatrixShape& shape) {
  return size_t(matrix_units(shape) * layout_of(shape).unit_bytes);
}

// Where a row of the matrix lies.
struct Place {
  int64_t unit;
  int lane;
};

inline Place place_of(const MatrixShape& shape, int64_t row) {
  if (!shape.paired) return {row / kUnit, int(row % kUnit)};
  const int64_t half = shape.out / 2;
  const int64_t output = row < half ? row : row - half;
  return {output / (kUnit / 2), int(output % (kUnit / 2)) + (row < half ? 0 : kUnit / 2)};
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
