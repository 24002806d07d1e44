// Rows of activations as products with packed matrices read them.
//
// Bfloat16 for products of it; for products of integers 16 bits with a scale a block of inputs, or 8 bits with a scale a row
// (8-bit matrices) or a group (4-bit matrices), all symmetric. Where a value is not finite, its scale is NaN, and so are the
// row's results.
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

inline bool of_bf16(Method method) {
  return method == Method::bf16_pairs || method == Method::bf16_tile || method == Method::i8_tile ||
         method == Method::i4_tile;
}

inline bool of_pairs(Method method) { return method == Method::i8_pairs || method == Method::i4_pairs; }

// Bytes before the inputs of a prepared row.
inline int64_t head_bytes_of(Method method, const Layout& l) {
  switch (method) {
    case Method::i8_dot:
    case Method::i8_dot_tile: return 64;
    case Method::i8_pairs:
    case Method::i4_pairs:
    case Method::i4_dot:
    case Method::i4_dot_tile: return l.blocks * int64_t(sizeof(BlockOfRow));
    default: return 0;
  }
}

// Inputs in a word of a row, where products read words.
inline int inputs_of_word(Method method) {
  switch (method) {
    case Method::bf16_pairs:
    case Method::i8_pairs:
    case Method::i4_pairs: return 2;
    case Method::i8_dot: return int(kDotStep);
    case Method::i4_dot: return 4;
    default: return 1;
  }
}

// Bytes of a prepared row, a multiple of 64; 0: products read x itself.
inline int64_t row_bytes_of(const MatrixShape& shape, const Layout& l) {
  const Method method = method_of(shape);
  const int64_t head = head_bytes_of(method, l), padded = round_up(shape.in, l.pad);
  switch (method) {
    case Method::bf16_pairs:
    case Method::bf16_tile:
    case Method::i8_tile:
    case Method::i4_tile: return round_up(shape.in, 32) * 2;
    case Method::i8_pairs:
    case Method::i4_pairs: return round_up(head + padded * 2, 64);
    case Method::i8_dot: return round_up(head + padded * 4 / kDotStep, 64);
    case Method::i4_dot:
    case Method::i8_dot_tile:
    case Method::i4_dot_tile: return round_up(head + padded, 64);
    default: return 0;
  }
}

inline size_t prepared_bytes(const MatrixShape& shape, int64_t rows) {
  return size_t(row_bytes_of(shape, layout_of(shape)) * rows);
}

// Values to integers of at most that size; returns the scale.
template <class T>
inline float quantise(const float* x, int64_t count, float integer, T* to) {
  bool finite;
  const float largest = largest_size(x, count, finite);
  const float scale = scale_of_largest(largest, finite, integer);
  const float inverse = finite && largest > 0 ? integer / largest : 0.f;
  if (!finite || !(inverse < __builtin_inff())) {  // of values so small that this is infinite nothing is left either
    std::memset(to, 0, size_t(count) * sizeof(T));
    return scale;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = T(to_whole(x[i] * inverse));
  return scale;
}

// Block by block, each with its scale; the last one is filled up with zeros.
template <class T>
inline void quantise_blocks(const Layout& l, const float* x, float integer, int64_t head_bytes, uint8_t* to) {
  T* inputs = reinterpret_cast<T*>(to + head_bytes);
  for (int64_t b = 0; b < l.blocks; ++b) {
    T* block = inputs + b * l.block;
    const int64_t count = l.inputs(b);
    BlockOfRow head = {quantise(x + b * l.block, count, integer, block), 0};
    for (int64_t i = 0; i < count; ++i) head.sum += block[i];
    for (int64_t i = count; i < round_up(count, l.pad); ++i) block[i] = 0;
    std::memcpy(to + b * int64_t(sizeof head), &head, sizeof head);
  }
}

inline void prepare_row(const MatrixShape& shape, const Layout& l, Method method, const float* x, uint8_t* to) {
  const int64_t in = shape.in;
  if (of_bf16(method)) {
    uint16_t* narrow = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < in; ++i) narrow[i] = to_bf16(x[i]);
    for (int64_t i = in; i < round_up(in, 32); ++i) narrow[i] = 0;
    return;
  }
  const int64_t head = head_bytes_of(method, l);
  if (of_pairs(method)) return quantise_blocks<int16_t>(l, x, 32767.f, head, to);
  if (method == Method::i4_dot || method == Method::i4_dot_tile) return quantise_blocks<int8_t>(l, x, 127.f, head, to);
  // 8-bit matrices: quantised in place of the bytes, then widened or moved from the end on where that is wanted.
  int8_t* bytes = reinterpret_cast<int8_t*>(to) + head;
  const int64_t padded = round_up(in, l.pad);
  const float scale = quantise(x, in, 127.f, bytes);
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
