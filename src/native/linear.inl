// Linear layers over packed matrices. See linear_layout.inl for the memory, linear_float.inl for the order of additions.
#include "kernels.h"

#include "linear_layout.inl"
#include "linear_lanes.inl"
#include "linear_epilogue.inl"
#include "linear_float.inl"
#include "linear_pack.inl"

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
  constexpr int64_t kInputs = 96 * 1024, kLeast = 24, kMost = 96, kMultiple = 12;
#endif
  int64_t count = kInputs / shape.in;
  count = count < kLeast ? kLeast : count > kMost ? kMost : count;
  return smaller(rows, count / kMultiple * kMultiple);
}

// Scratch of a product: the sums of a unit; what weights are widened to; for 4-bit tiles the sums of a group.
struct Scratch {
  size_t sums;
  size_t wide;
  size_t group;

  Scratch(const MatrixShape& shape, const Layout& l, int64_t rows) : sums(0), wide(0), group(0) {
    const Method method = method_of(shape);
    const bool widened = method == Method::f16 || method == Method::i8 || method == Method::i4;
    sums = size_t(rows_at_once(shape, rows) * kUnitFloats);
    if (widened && rows > kMostRows) wide = size_t(l.block * kUnitFloats);
#if defined(ARMILLARY_TILES)
    wide += size_t(tile_scratch_bytes(method));
    if (method == Method::i4_tile || method == Method::i4_dot_tile) group = sums;
#endif
  }
};

inline size_t linear_scratch_bytes(const MatrixShape& shape, int64_t rows) {
  const Scratch scratch(shape, layout_of(shape), rows);
  return scratch.sums + scratch.wide + scratch.group;
}

inline void linear(const Matrix& matrix, const float* x, int64_t x_stride, const void* prepared, int64_t rows, float* y,
                   int64_t y_stride, const Epilogue& epilogue, int64_t begin, int64_t end, uint8_t* scratch) {
  const MatrixShape& shape = matrix.shape;
  const Layout layout = layout_of(shape);
  const Method method = method_of(shape);
  const Scratch parts(shape, layout, rows);
  const int64_t most = rows_at_once(shape, rows), row_bytes = row_bytes_of(shape, layout);
  float* sums = reinterpret_cast<float*>(scratch);
  float* wide = reinterpret_cast<float*>(scratch + parts.sums);
  [[maybe_unused]] int configured = -1;  // what the tiles were last configured for
  for (int64_t row = 0; row < rows; row += most) {
    const int64_t count = smaller(most, rows - row);
    const float* from = x + row * x_stride;
    const uint8_t* ready = static_cast<const uint8_t*>(prepared) + row * row_bytes;
    Epilogue mine = epilogue;
    if (mine.residual) mine.residual += row * mine.residual_stride;
    for (int64_t unit = begin; unit < end; ++unit) {
      const uint8_t* data = matrix.data + unit * layout.unit_bytes;
      const int64_t used = outputs_of(shape) - unit * kUnit;  // of a unit that is not paired
      const int strips = shape.paired ? kStrips : int(smaller(kStrips, (used + kStrip - 1) / kStrip));
      switch (method) {
        case Method::f32:
          multiply_unit<InF32, InF32>(layout, data, strips, from, x_stride, count, sums, wide);
          break;
        case Method::bf16:
          multiply_unit<InBf16, InBf16>(layout, data, strips, from, x_stride, count, sums, wide);
          break;
        case Method::f16:
          multiply_unit<InF16, InF32>(layout, data, strips, from, x_stride, count, sums, wide);
          break;
        case Method::i8:
          multiply_unit<InI8, InF32>(layout, data, strips, from, x_stride, count, sums, wide);
          break;
        case Method::i4:
          if (shape.zero_points)
            multiply_unit<InI4Zeros, InI4AsF32>(layout, data, strips, from, x_stride, count, sums, wide);
          else
            multiply_unit<InI4, InI4AsF32>(layout, data, strips, from, x_stride, count, sums, wide);
          break;
        case Method::i8_dot: multiply_unit_i8(layout, data, strips, ready, row_bytes, count, sums); break;
        case Method::i4_dot:
          multiply_unit_i4(layout, data, strips, ready, row_bytes, count, shape.zero_points, sums);
          break;
        default:
#if defined(ARMILLARY_TILES)
          multiply_unit_tiles(shape, method, layout, data, ready, row_bytes, count, sums, reinterpret_cast<uint8_t*>(wide),
                              reinterpret_cast<float*>(scratch + parts.sums + parts.wide), configured);
          if (method == Method::i8_dot_tile) scale_rows(data, ready, row_bytes, count, false, sums);
#endif
          break;
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
