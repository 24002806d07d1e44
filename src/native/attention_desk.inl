// What one thread of attention works in.
#pragma once
#include "attention_softmax.inl"

namespace armillary {
namespace ARMILLARY_PATH {

inline int most_rows(const AttentionShape& shape) {
  const int group = shape.heads / shape.kv_heads;
  return group > kTileRows ? group : kTileRows;
}

// Floats that a piece's keys and values need in the copies that are made of them.
inline int64_t key_floats(const AttentionShape& shape) { return int64_t(kWide) * padded_width(shape.head_dim); }
inline int64_t value_floats(const AttentionShape& shape) {
  const int64_t paired = kBf16InPairs ? (int64_t(shape.head_dim) + 63) / 64 * 64 * (kPiece / 2) : 0;
  return paired > kPiece * kBroad ? paired : kPiece * kBroad;
}

// What one thread works in.
struct Desk {
  float *query, *keys, *values, *scores, *state, *top, *total, *piece_top, *piece_total, *keep, *add;
  float *key_scales, *value_scales;
  float *weights;                   // int8 and pairs: [rows][kPiece] of 16 bits
  float *query_step, *weight_step;  // int8: what a row's queries, and its weights, are multiples of
  int32_t *first, *last;  // visible positions of the piece at hand, row by row
  int64_t width;          // floats from row to row of the state

  Desk(const AttentionShape& shape, uint8_t* memory) {
    const int64_t rows = most_rows(shape);
    width = padded_width(shape.head_dim);
    uint8_t* at = memory;
    for (float** array : {&query, &keys, &values, &scores, &state, &top, &total, &piece_top, &piece_total, &keep, &add,
                          &key_scales, &value_scales, &query_step, &weight_step, &weights}) {
      *array = reinterpret_cast<float*>(at);
      int64_t count = rows;
      if (array == &query) count = rows * width;
      if (array == &keys) count = key_floats(shape);
      if (array == &values) count = value_floats(shape);
      if (array == &scores) count = rows * kPiece;
      if (array == &state) count = rows * width;
      if (array == &weights) count = rows * kPiece / 2;
      if (array == &key_scales || array == &value_scales) count = kPiece;
      at += (size_t(count) * 4 + 63) / 64 * 64;
    }
    first = reinterpret_cast<int32_t*>(at);
    last = first + rows;
  }

  static size_t bytes(const AttentionShape& shape) {
    const size_t rows = size_t(most_rows(shape));
    const size_t width = size_t(padded_width(shape.head_dim));
    const size_t floats = rows * width + size_t(key_floats(shape) + value_floats(shape)) + rows * kPiece + rows * width +
                          rows * kPiece / 2 + 10 * rows + 2 * kPiece;
    return (floats * 4 + 18 * 64 + 63) / 64 * 64;
  }
};

// Positions [base, end) of a table that are read next, if any: table is null where nothing is.
struct Next {
  const int64_t* table;
  int32_t head;
  int64_t base, end;
};

}  // namespace ARMILLARY_PATH
}  // namespace armillary
