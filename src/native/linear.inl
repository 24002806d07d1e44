// Linear layers over packed matrices. See linear_layout.inl for the memory, linear_float.inl for the order of additions.
#include "kernels.h"

#include "linear_layout.inl"
#include "linear_lanes.inl"

#include "linear_epilogue.inl"
#include "linear_float.inl"
#include "linear_pack.inl"

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

// Rows that pass all units together: as many as keep their inputs in the second-level cache, while the matrix is read
// once for them all.
inline int64_t rows_at_once(const MatrixShape& shape, int64_t rows) {
  constexpr int64_t kInputs = 96 * 1024, kLeast = 24, kMost = 96;
  int64_t count = kInputs / shape.in;
  count = count < kLeast ? kLeast : count > kMost ? kMost : count;
  return smaller(rows, count / kMostRows * kMostRows);
}

inline size_t prepared_bytes(const MatrixShape& shape, int64_t rows) { return 0; }

inline void prepare(const MatrixShape& shape, const float* x, int64_t x_stride, int64_t rows, void* prepared,
                    int64_t begin, int64_t end) {}

// Scratch: the sums of the rows at once, then a widened block.
inline size_t sums_bytes(const MatrixShape& shape, int64_t rows) {
  return size_t(rows_at_once(shape, rows) * kUnitFloats);
}

inline size_t linear_scratch_bytes(const MatrixShape& shape, int64_t rows) {
  return sums_bytes(shape, rows) + size_t(layout_of(shape).block * kUnitFloats);
}

inline void linear(const Matrix& matrix, const float* x, int64_t x_stride, const void* prepared, int64_t rows, float* y,
                   int64_t y_stride, const Epilogue& epilogue, int64_t begin, int64_t end, uint8_t* scratch) {
  const MatrixShape& shape = matrix.shape;
  const Layout layout = layout_of(shape);
  const Method method = method_of(shape);
  const int64_t most = rows_at_once(shape, rows);
  float* sums = reinterpret_cast<float*>(scratch);
  float* wide = reinterpret_cast<float*>(scratch + sums_bytes(shape, rows));
  for (int64_t row = 0; row < rows; row += most) {
    const int64_t count = smaller(most, rows - row);
    const float* from = x + row * x_stride;
    Epilogue mine = epilogue;
    if (mine.residual) mine.residual += row * mine.residual_stride;
    for (int64_t unit = begin; unit < end; ++unit) {
      const uint8_t* data = matrix.data + unit * layout.unit_bytes;
      const int64_t used = outputs_of(shape) - unit * kUnit;  // of a unit that is not paired
      const int strips = shape.paired ? kStrips : int(smaller(kStrips, (used + kStrip - 1) / kStrip));
      const float* scales = nullptr;
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
          scales = reinterpret_cast<const float*>(data);
          break;
        case Method::i4:
          if (shape.zero_points)
            multiply_unit<InI4Zeros, InI4AsF32>(layout, data, strips, from, x_stride, count, sums, wide);
          else
            multiply_unit<InI4, InI4AsF32>(layout, data, strips, from, x_stride, count, sums, wide);
          break;
        default: break;
      }
      finish(shape, unit, sums, scales, count, y + row * y_stride, y_stride, mine);
    }
  }
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
