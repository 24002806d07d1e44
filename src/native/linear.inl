// Linear layers over packed matrices. See linear_layout.inl for the memory, linear_float.inl for the order of additions.
#include "kernels.h"

#include "linear_layout.inl"
#include "linear_lanes.inl"
#include "linear_words.inl"
#include "linear_epilogue.inl"
#include "linear_float.inl"
#include "linear_pack.inl"

#include "linear_integers.inl"

#include "linear_runs.inl"

#include "linear_dot.inl"
#include "linear_prepare.inl"
#if defined(ARMILLARY_TILES)
#include "linear_tile.inl"

#include "linear_tiles.inl"
#endif

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

// Rows that pass all units together: as many as keep their inputs in the second-level cache, while the matrix is read
// once for them all. Tiles are so quick that only many rows keep the memory from being what they wait for.
inline int64_t rows_at_once(const MatrixShape& shape, int64_t rows) {
#if defined(ARMILLARY_TILES)
  constexpr int64_t kInputs = 512 * 1024, kLeast = 256, kMost = 512, kMultiple = 32;
#else
  constexpr int64_t kInputs = 96 * 1024, kLeast = 48, kMost = 96, kMultiple = 12;
#endif
  int64_t count = kInputs / shape.in;
  count = count < kLeast ? kLeast : count > kMost ? kMost : count;
  return smaller(rows, count / kMultiple * kMultiple);
}

inline bool reads_words(Method method) { return method <= Method::i4_dot; }

// Words of a row.
inline int64_t words_of(const Layout& l, Method method) {
  const int inputs = inputs_of_word(method);
  return inputs == 1 ? l.in : round_up(l.in, l.pad) / inputs;
}

// Scratch of a product: the sums of a unit; rows in tiles; what weights are widened to; on the matrix unit, the sums of a 4-bit
// group.
struct Scratch {
  size_t sums;
  size_t words;
  size_t wide;
  size_t group;

  Scratch(const MatrixShape& shape, const Layout& l, int64_t rows) : sums(0), words(0), wide(0), group(0) {
    const Method method = method_of(shape);
    const int64_t most = rows_at_once(shape, rows);
    sums = size_t(most * kUnitFloats);
    if (reads_words(method) && rows > 1) words = size_t(round_up(most * words_of(l, method) * 4, 64));
    if (reads_words(method) && rows >= kMostRows) wide = size_t(l.block * kUnitFloats);
#if defined(ARMILLARY_TILES)
    wide += size_t(tile_scratch_bytes(method));
    if (method == Method::i4_tile || method == Method::i4_dot_tile) group = sums;
#endif
  }
};

inline size_t linear_scratch_bytes(const MatrixShape& shape, int64_t rows) {
  const Scratch scratch(shape, layout_of(shape), rows);
  return scratch.sums + scratch.words + scratch.wide + scratch.group;
}

inline void linear(const Matrix& matrix, const float* x, int64_t x_stride, const void* prepared, int64_t rows, float* y,
                   int64_t y_stride, const Epilogue& epilogue, int64_t begin, int64_t end, uint8_t* scratch) {
  const MatrixShape& shape = matrix.shape;
  const Layout layout = layout_of(shape);
  const Method method = method_of(shape);
  const Scratch parts(shape, layout, rows);
  const int64_t most = rows_at_once(shape, rows), row_bytes = row_bytes_of(shape, layout);
  const int64_t row_words = words_of(layout, method), head_bytes = head_bytes_of(method, layout);
  [[maybe_unused]] const int per_word = inputs_of_word(method);
  float* sums = reinterpret_cast<float*>(scratch);
  uint8_t* wide = scratch + parts.sums + parts.words;
  float* wide_floats = reinterpret_cast<float*>(wide);
  [[maybe_unused]] int configured = -1;  // what the matrix tiles were last configured for
  for (int64_t row = 0; row < rows; row += most) {
    const int64_t count = smaller(most, rows - row);
    const RowTiles tiles(count);
    const uint8_t* ready = static_cast<const uint8_t*>(prepared) + row * row_bytes;
    const uint8_t* inputs = row_bytes ? ready + head_bytes : reinterpret_cast<const uint8_t*>(x + row * x_stride);
    if (reads_words(method) && count > 1) {
      uint32_t* packed = reinterpret_cast<uint32_t*>(scratch + parts.sums);
      pack_words(tiles, inputs, row_bytes ? row_bytes : x_stride * int64_t(sizeof(float)), row_words, packed);
      inputs = reinterpret_cast<const uint8_t*>(packed);
    }
    const float* floats = reinterpret_cast<const float*>(inputs);
    [[maybe_unused]] const uint32_t* words = reinterpret_cast<const uint32_t*>(inputs);
    Epilogue mine = epilogue;
    if (mine.residual) mine.residual += row * mine.residual_stride;
    for (int64_t unit = begin; unit < end; ++unit) {
      const uint8_t* data = matrix.data + unit * layout.unit_bytes;
      const int64_t used = outputs_of(shape) - unit * kUnit;  // of a unit that is not paired
      const int strips = shape.paired ? kStrips : int(smaller(kStrips, (used + kStrip - 1) / kStrip));
      switch (method) {
        case Method::f32: multiply_unit<InF32, InF32>(layout, data, strips, tiles, floats, sums, wide_floats); break;
        case Method::bf16: multiply_unit<InBf16, InBf16>(layout, data, strips, tiles, floats, sums, wide_floats); break;
        case Method::f16: multiply_unit<InF16, InF16Wide>(layout, data, strips, tiles, floats, sums, wide_floats); break;
#if defined(ARMILLARY_TILES)
        default:
          multiply_unit_tiles(shape, method, layout, data, ready, row_bytes, count, sums, wide,
                              reinterpret_cast<float*>(wide + parts.wide), configured);
          if (method == Method::i8_dot_tile) scale_rows(data, ready, row_bytes, count, false, sums);
          break;
#else
#if defined(ARMILLARY_BF16_PAIRS)
        case Method::bf16_pairs:
          multiply_unit_dots<InBf16Pairs, InBf16Pairs, Sums::chained>(layout, data, strips, tiles, words, per_word, ready,
                                                                      row_bytes, false, sums, wide);
          break;
#endif
        case Method::i8_dot:
          multiply_unit_dots<InBytes, InBytes, Sums::whole>(layout, data, strips, tiles, words, per_word, ready,
                                                                row_bytes, false, sums, wide);
          scale_rows(data, ready, row_bytes, count, kDotStep == 4, sums);
          break;
        case Method::i4_dot:
          multiply_unit_dots<InNibbleQuads, InWide<InNibbleQuads, Quads>, Sums::grouped>(
              layout, data, strips, tiles, words, per_word, ready, row_bytes, shape.zero_points, sums, wide);
          break;
#if defined(ARMILLARY_PAIRS)
        case Method::i8_pairs:
          multiply_unit_dots<InBytePairs, InBytePairs, Sums::scaled>(layout, data, strips, tiles, words, per_word, ready,
                                                                         row_bytes, false, sums, wide);
          break;
        default:
          multiply_unit_dots<InNibblePairs, InWide<InNibblePairs, Pairs>, Sums::grouped>(
              layout, data, strips, tiles, words, per_word, ready, row_bytes, shape.zero_points, sums, wide);
          break;
#else
        case Method::i8: multiply_unit<InI8, InF32>(layout, data, strips, tiles, floats, sums, wide_floats); break;
        default:
          if (shape.zero_points)
            multiply_unit<InI4Zeros, InI4AsF32>(layout, data, strips, tiles, floats, sums, wide_floats);
          else
            multiply_unit<InI4, InI4AsF32>(layout, data, strips, tiles, floats, sums, wide_floats);
          break;
#endif
#endif
      }
      const float* scales = shape.element == Element::i8 ? reinterpret_cast<const float*>(data) : nullptr;
      finish(shape, unit, sums, scales, count, y + row * y_stride, y_stride, mine);
    }
  }
#if defined(ARMILLARY_TILES)
  if (configured >= 0) tile_release();
#endif
}

}  // namespace packed

inline void fill_linear(Kernels& k) {
  k.matrix_bytes = packed::matrix_bytes;
  k.matrix_pack = packed::matrix_pack;
  k.matrix_rows = packed::matrix_rows;
  k.matrix_units = packed::matrix_units;
  k.prepared_bytes = packed::prepared_bytes;
  k.prepare = packed::prepare;
  k.linear = packed::linear;
  k.linear_scratch_bytes = packed::linear_scratch_bytes;
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
