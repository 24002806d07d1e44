// Rows of activations as products with packed matrices read them.
//
// Bfloat16 for tiles of it; for products of integers 8 bits, symmetric, with a scale a row (8-bit matrices) or a scale and the
// sum of the integers a group (4-bit matrices). A row with a value that is not finite (of 4-bit matrices: such a group)
// gets the scale NaN, and its results are NaN.
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

inline bool of_bf16_tiles(Method method) {
  return method == Method::bf16_tile || method == Method::i8_tile || method == Method::i4_tile;
}

// Bytes of a prepared row, a multiple of 64; 0: products read x itself.
inline int64_t row_bytes_of(const MatrixShape& shape, const Layout& l) {
  switch (method_of(shape)) {
    case Method::bf16_tile:
    case Method::i8_tile:
    case Method::i4_tile: return round_up(shape.in, 32) * 2;
    case Method::i8_dot: return 64 + round_up(round_up(shape.in, 4) * (kDotStep == 4 ? 1 : 2), 64);
    case Method::i8_dot_tile: return 64 + round_up(shape.in, 64);
    case Method::i4_dot:
    case Method::i4_dot_tile: return round_up(l.blocks * int64_t(sizeof(GroupOfRow)) + shape.in, 64);
    default: return 0;
  }
}

inline size_t prepared_bytes(const MatrixShape& shape, int64_t rows) {
  return size_t(row_bytes_of(shape, layout_of(shape)) * rows);
}

// Values to bytes -127 to 127; returns the scale.
inline float quantise(const float* x, int64_t count, int8_t* to) {
  bool finite;
  const float largest = largest_size(x, count, finite);
  const float scale = scale_of_largest(largest, finite);
  const float inverse = finite && largest > 0 ? 127.f / largest : 0.f;
  if (!finite || !(inverse < __builtin_inff())) {  // of values so small that this is infinite nothing is left either
    std::memset(to, 0, size_t(count));
    return scale;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = int8_t(to_whole(x[i] * inverse));
  return scale;
}

inline void prepare_row(const MatrixShape& shape, const Layout& l, Method method, const float* x, uint8_t* to) {
  const int64_t in = shape.in;
  if (of_bf16_tiles(method)) {
    uint16_t* narrow = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < in; ++i) narrow[i] = to_bf16(x[i]);
    for (int64_t i = in; i < round_up(in, 32); ++i) narrow[i] = 0;
    return;
  }
  if (method == Method::i4_dot || method == Method::i4_dot_tile) {
    int8_t* bytes = reinterpret_cast<int8_t*>(to) + l.blocks * int64_t(sizeof(GroupOfRow));
    for (int64_t b = 0; b < l.blocks; ++b) {
      int8_t* group = bytes + b * l.block;
      const float scale = quantise(x + b * l.block, l.block, group);
      int32_t sum = 0;
      for (int64_t i = 0; i < l.block; ++i) sum += group[i];
      const GroupOfRow head = {scale, float(sum)};
      std::memcpy(to + b * int64_t(sizeof head), &head, sizeof head);
    }
    return;
  }
  // 8-bit matrices: quantised in place of the bytes, then widened or moved from the end on where that is wanted.
  int8_t* bytes = reinterpret_cast<int8_t*>(to) + 64;
  const int64_t padded = round_up(in, method == Method::i8_dot_tile ? 64 : 4);
  const float scale = quantise(x, in, bytes);
  std::memset(bytes + in, 0, size_t(padded - in));
  std::memset(to, 0, 64);
  std::memcpy(to, &scale, 4);
  if (method == Method::i8_dot_tile) return;
  if (kDotStep == 4) {
    for (int64_t i = 0; i < padded; ++i) bytes[i] = int8_t(uint8_t(bytes[i]) ^ 0x80u);  // plus 128
    return;
  }
  for (int64_t i = padded - 1; i >= 0; --i) {
    const int16_t wide = bytes[i];
    std::memcpy(bytes + 2 * i, &wide, 2);
  }
}

inline void prepare(const MatrixShape& shape, const float* x, int64_t x_stride, int64_t rows, void* prepared,
                    int64_t begin, int64_t end) {
  const Layout l = layout_of(shape);
  const Method method = method_of(shape);
  const int64_t row_bytes = row_bytes_of(shape, l);
  if (!row_bytes) return;
  for (int64_t row = begin; row < end; ++row)
    prepare_row(shape, l, method, x + row * x_stride, static_cast<uint8_t*>(prepared) + row * row_bytes);
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
