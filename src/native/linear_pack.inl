// Rows on their way into a packed matrix and out of it.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

// Values of a source row from input `first` on, as float32.
inline void read_values(const MatrixRows& from, int64_t row, int64_t first, int64_t count, float* values) {
  const int64_t at = row * from.stride + first;
  if (from.element == Element::f32) {
    std::memcpy(values, static_cast<const float*>(from.data) + at, size_t(count) * 4);
  } else if (from.element == Element::bf16) {
    const uint16_t* p = static_cast<const uint16_t*>(from.data) + at;
    for (int64_t i = 0; i < count; ++i) values[i] = from_bf16(p[i]);
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(from.data) + at;
    for (int64_t i = 0; i < count; ++i) values[i] = from_f16(p[i]);
  }
}

inline bool of_integers(const MatrixRows& from) { return from.element == Element::i8 || from.element == Element::i4; }

// Adding and taking away 1.5 * 2^23 leaves the nearest whole number, ties to even, of numbers below 2^22: in plain
// operations that compilers turn into vectors, and the same on every path.
inline float to_whole(float x) { return (x + 12582912.f) - 12582912.f; }

inline float size_of(float x) { return x < 0 ? -x : x; }

// The scale at which the largest value is the largest integer: NaN where a value is not finite, so that results are NaN too.
inline float scale_of_largest(float largest, bool finite, float integer) {
  return finite ? largest / integer : __builtin_nanf("");
}

// The largest size among values, and whether all are finite.
inline float largest_size(const float* values, int64_t count, bool& finite) {
  float largest = 0;
  uint32_t worst = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = to_bits(values[i]) & 0x7fffffffu;
    worst = bits > worst ? bits : worst;
  }
  finite = worst < 0x7f800000u;
  largest = from_bits(worst);
  return largest;
}

inline int8_t to_i8(float x) {
  const float whole = to_whole(x);
  return int8_t(whole > 127.f ? 127.f : whole < -127.f ? -127.f : whole);
}

// A 4-bit group: integers 0 to 15 that stand for (q - zero) * scale.
struct Group {
  float scale;
  float zero;
};

inline float to_nibble(float value, float inverse, float zero) {
  const float whole = to_whole(value * inverse) + zero;
  return whole > 15.f ? 15.f : whole < 0.f ? 0.f : whole;
}

// The squared error of a group at that scale; `fitted` is the scale that fits the same integers best.
inline float group_error(const float* values, int64_t count, float scale, float zero, float& fitted) {
  const float inverse = scale != 0 ? 1.f / scale : 0.f;
  // Sixteen sums side by side on every path, which compilers turn into vectors without a choice of order.
  float errors[16] = {}, products[16] = {}, squares[16] = {};
  for (int64_t first = 0; first < count; first += 16)
    for (int i = 0; i < 16; ++i) {
      const float value = values[first + i];
      const float q = to_nibble(value, inverse, zero) - zero;
      const float off = value - q * scale;
      errors[i] += off * off;
      products[i] += q * value;
      squares[i] += q * q;
    }
  float error = 0, product = 0, square = 0;
  for (int i = 0; i < 16; ++i) error += errors[i], product += products[i], square += squares[i];
  fitted = square > 0 ? product / square : scale;
  return error;
}

// Quantises a group to the nearest at a scale that the matrix can keep, chosen for the least squared error among a few: those at
// which the value furthest from zero just fits, somewhat less (which cuts that one value short and is finer for the others), and
// for each the scale that fits the integers found best. Symmetric groups have one integer more below zero than above, so the scale
// takes the sign that puts the furthest value on that side.
inline Group choose_group(const float* values, int64_t count, bool zero_points, Element kept) {
  bool finite;
  const float largest = largest_size(values, count, finite);
  if (!finite) return {__builtin_nanf(""), 8.f};
  if (largest == 0) return {0.f, 8.f};
  float low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
  const float reach = high > -low ? high : low;
  constexpr float kShares[] = {1.f, 0.93f, 0.86f, 0.79f};
  Group best = {0.f, 8.f};
  float least = __builtin_inff();
  for (float share : kShares) {
    float scale, zero = 8.f;
    if (zero_points) {
      scale = kept_scale(share * (high - low) / 15.f, kept);
      zero = scale > 0 ? to_whole(-low * share / scale) : 8.f;
    } else {
      scale = kept_scale(share * reach / -8.f, kept);
    }
    for (int fit = 0; fit < 2; ++fit) {
      float fitted;
      const float error = group_error(values, count, scale, zero, fitted);
      const bool better = error < least;
      if (better) least = error;
      if (better || best.scale == 0) best = {scale, zero};  // squares of numbers too large for that have no error to compare
      scale = kept_scale(fitted, kept);
    }
  }
  return best;
}

// Where the parts of a unit and block are that one row writes or reads.
struct RowPlace {
  uint8_t* unit;
  int lane;
  float* row_scale() const { return reinterpret_cast<float*>(unit) + lane; }
  int32_t* row_sum() const { return reinterpret_cast<int32_t*>(unit + kUnitFloats) + lane; }
  uint8_t* group_scale(const Layout& l, int64_t b) const { return unit + l.offset(b) + lane * scale_bytes(l.scales); }
  uint8_t* group_zero(const Layout& l, int64_t b) const { return unit + l.offset(b) + l.scales_bytes + lane; }
  uint8_t* strips(const Layout& l, int64_t b) const { return unit + l.offset(b) + l.block_head; }
};

inline void put_scale(uint8_t* to, Element kept, float scale) {
  if (kept == Element::f32) {
    std::memcpy(to, &scale, 4);
    return;
  }
  const uint16_t narrow = kept == Element::f16 ? to_f16(scale) : to_bf16(scale);
  std::memcpy(to, &narrow, 2);
}

inline float get_scale(const uint8_t* from, Element kept) {
  float scale;
  uint16_t narrow;
  std::memcpy(&narrow, from, 2);
  if (kept == Element::f16) return from_f16(narrow);
  if (kept == Element::bf16) return from_bf16(narrow);
  std::memcpy(&scale, from, 4);
  return scale;
}

inline RowPlace row_place(const Matrix& matrix, const Layout& layout, const Place& place) {
  return {matrix.data + place.unit * layout.unit_bytes, place.lane};
}

// One row's elements of a block, `count` of them a multiple of `step`.
template <int step, class T>
inline void put_steps(T* to, const T* values, int64_t count) {
  for (int64_t k = 0; k < count; k += step, to += kStrip * step)
    for (int i = 0; i < step; ++i) to[i] = values[k + i];
}

template <class T>
inline void put_row(uint8_t* strips, const Layout& l, int64_t b, int lane, const T* values) {
  const int64_t count = round_up(l.inputs(b), l.pad);
  T* to = reinterpret_cast<T*>(strips) + l.place(b, 0, lane);
  switch (l.step) {
    case 1: put_steps<1>(to, values, count); break;
    case 2: put_steps<2>(to, values, count); break;
    default: put_steps<4>(to, values, count); break;
  }
}

template <class T>
inline T get(const uint8_t* strips, const Layout& l, int64_t b, int64_t k, int lane) {
  T value;
  std::memcpy(&value, strips + l.place(b, k, lane) * int64_t(sizeof(T)), sizeof(T));
  return value;
}

inline void put_nibbles(uint8_t* strips, const Layout& l, int64_t b, int lane, const uint8_t* nibbles) {
  for (int64_t k = 0; k < l.inputs(b); k += 8) {
    uint32_t word = 0;
    for (int i = 0; i < 8; ++i) word |= uint32_t(nibbles[k + i]) << nibble_shift(i, l.nibble_pairs);
    std::memcpy(strips + l.place(b, k, lane) / 2, &word, 4);
  }
}

inline uint8_t get_nibble(const uint8_t* strips, const Layout& l, int64_t b, int64_t k, int lane) {
  uint32_t word;
  std::memcpy(&word, strips + l.place(b, k - k % 8, lane) / 2, 4);
  return uint8_t((word >> nibble_shift(int(k % 8), l.nibble_pairs)) & 15u);
}

// One block of one row. `row` of the source, -1: there is none, and the place is filled with zeros. `scale`: of 8-bit rows.
inline void pack_block(const Matrix& matrix, const Layout& l, const MatrixRows& from, int64_t row, const RowPlace& to,
                       int64_t b, float scale) {
  const int64_t first = b * l.block, count = l.inputs(b), padded = round_up(count, l.pad);
  uint8_t* strips = to.strips(l, b);
  float values[256] = {};
  const bool integers = of_integers(from);
  if (row >= 0 && !integers) read_values(from, row, first, count, values);
  const int8_t* given =
      row >= 0 && integers ? static_cast<const int8_t*>(from.data) + row * from.stride + first : nullptr;
  switch (matrix.shape.element) {
    case Element::f32: put_row(strips, l, b, to.lane, values); break;
    case Element::bf16:
    case Element::f16: {
      uint16_t narrow[256];
      if (matrix.shape.element == Element::bf16)
        for (int64_t k = 0; k < padded; ++k) narrow[k] = to_bf16(values[k]);
      else
        for (int64_t k = 0; k < padded; ++k) narrow[k] = to_f16(values[k]);
      put_row(strips, l, b, to.lane, narrow);
      break;
    }
    case Element::i8: {
      int8_t bytes[256] = {};
      if (given) {
        std::memcpy(bytes, given, size_t(count));
      } else if (scale > 0 && 1.f / scale < __builtin_inff()) {
        const float inverse = 1.f / scale;
        for (int64_t k = 0; k < count; ++k) bytes[k] = to_i8(values[k] * inverse);
      }
      put_row(strips, l, b, to.lane, bytes);
      if (matrix.shape.int8_activations) {  // taken off where activations are moved by 128: see linear_dot.inl
        int32_t sum = 0;
        for (int64_t k = 0; k < count; ++k) sum += bytes[k];
        *to.row_sum() = (b ? *to.row_sum() : 0) - 128 * sum;
      }
      break;
    }
    case Element::i4: {
      uint8_t nibbles[256] = {};
      const bool zero_points = matrix.shape.zero_points;
      Group group = {0.f, 8.f};
      if (given) {
        const int64_t at = row * (l.in / l.block) + b;
        group = {from.scales[at], zero_points ? from.zeros[at] : 0.f};
        // Symmetric integers are -8 to 7, those with zero points 0 to 15.
        for (int64_t k = 0; k < count; ++k) nibbles[k] = uint8_t((given[k] + (zero_points ? 0 : 8)) & 15);
      } else if (row >= 0) {
        group = choose_group(values, count, zero_points, l.scales);
        const float inverse = 1.f / group.scale;
        const bool usable = size_of(inverse) < __builtin_inff();  // not so of scales that are 0, NaN or hardly more than 0
        for (int64_t k = 0; k < count; ++k)
          nibbles[k] = usable ? uint8_t(to_nibble(values[k], inverse, group.zero)) : uint8_t(8);
      }
      put_scale(to.group_scale(l, b), l.scales, group.scale);
      if (zero_points) *to.group_zero(l, b) = uint8_t(group.zero);
      put_nibbles(strips, l, b, to.lane, nibbles);
      break;
    }
  }
}

inline float row_scale(const Matrix& matrix, const MatrixRows& from, int64_t row) {
  if (matrix.shape.element != Element::i8 || row < 0) return 0;
  if (of_integers(from)) return from.scales[row];
  float largest = 0;
  bool finite = true;
  float values[256];
  for (int64_t first = 0; first < matrix.shape.in; first += 256) {
    const int64_t count = smaller(256, matrix.shape.in - first);
    bool here;
    read_values(from, row, first, count, values);
    const float size = largest_size(values, count, here);
    finite = finite && here;
    largest = size > largest ? size : largest;
  }
  return scale_of_largest(largest, finite, 127.f);
}

// Rows of one unit at consecutive lanes; block by block, so that what they write is still in the cache for the next.
// row: of the source; with `missing`, places without a row.
inline void pack_run(const Matrix& matrix, const Layout& l, const MatrixRows& from, int64_t row, const Place& place,
                     int count, bool missing) {
  float scales[kUnit];
  for (int i = 0; i < count; ++i) {
    scales[i] = row_scale(matrix, from, missing ? -1 : row + i);
    if (matrix.shape.element == Element::i8) *row_place(matrix, l, {place.unit, place.lane + i}).row_scale() = scales[i];
  }
  for (int64_t b = 0; b < l.blocks; ++b)
    for (int i = 0; i < count; ++i)
      pack_block(matrix, l, from, missing ? -1 : row + i, row_place(matrix, l, {place.unit, place.lane + i}), b, scales[i]);
}

inline void matrix_pack(const Matrix& matrix, const MatrixRows& from, int64_t first, int64_t count) {
  const Layout l = layout_of(matrix.shape);
  const int64_t half = matrix.shape.paired ? matrix.shape.out / 2 : matrix.shape.out;
  const int lanes = int(unit_outputs(matrix.shape));
  for (int64_t row = first; row < first + count;) {
    const Place place = place_of(matrix.shape, row);
    const int start = place.lane % lanes;
    const int64_t part_end = row < half ? half : matrix.shape.out;  // of the gates, or of their partners
    const int run = int(smaller(lanes - start, smaller(first + count, part_end) - row));
    pack_run(matrix, l, from, row - first, place, run, false);
    row += run;
    // Whoever packs the last row also fills the unit up.
    if (row == part_end && start + run < lanes)
      pack_run(matrix, l, from, 0, {place.unit, place.lane + run}, lanes - start - run, true);
  }
}

inline void matrix_rows(const Matrix& matrix, const int64_t* rows, int64_t count, float* out, int64_t out_stride) {
  const Layout l = layout_of(matrix.shape);
  for (int64_t r = 0; r < count; ++r) {
    const RowPlace at = row_place(matrix, l, place_of(matrix.shape, rows[r]));
    float* to = out + r * out_stride;
    for (int64_t b = 0; b < l.blocks; ++b, to += l.block) {
      const uint8_t* strips = at.strips(l, b);
      for (int64_t k = 0; k < l.inputs(b); ++k) {
        switch (matrix.shape.element) {
          case Element::f32: to[k] = get<float>(strips, l, b, k, at.lane); break;
          case Element::bf16: to[k] = from_bf16(get<uint16_t>(strips, l, b, k, at.lane)); break;
          case Element::f16: to[k] = from_f16(get<uint16_t>(strips, l, b, k, at.lane)); break;
          case Element::i8: to[k] = float(get<int8_t>(strips, l, b, k, at.lane)) * *at.row_scale(); break;
          case Element::i4: {
            const float zero = matrix.shape.zero_points ? float(*at.group_zero(l, b)) : 8.f;
            to[k] = (float(get_nibble(strips, l, b, k, at.lane)) - zero) * get_scale(at.group_scale(l, b), l.scales);
            break;
          }
        }
      }
    }
  }
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
