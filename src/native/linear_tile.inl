// The matrix unit: eight tiles of up to 16 rows of 64 bytes. With ARMILLARY_TILES 1 the instructions, with ARMILLARY_TILES 2 plain
// C++ that does the same, so that layout and indices are tested on machines without the unit.
//
// Tiles 0 to 3 are sums, 4 and 5 inputs, 6 and 7 weights. Sums 0 and 1 belong to inputs 4 and to weights 6 and 7, sums 2 and 3
// to inputs 5. With inputs of one tile only, sums 0 to 3 belong to four tiles of weights in turn.
#include <cstdint>
#include <cstring>

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Rows of inputs 4 and 5 (second may be 0: then all sums have `first` rows), and bytes of a row of inputs, of which tiles
// of weights have a quarter as many rows.
inline TileConfig tile_config(int first, int second, int input_bytes) {
  TileConfig c;
  for (int t = 0; t < 8; ++t) c.row_bytes[t] = 64;
  for (int t = 0; t < 4; ++t) c.rows[t] = uint8_t(t < 2 || !second ? first : second);
  c.rows[4] = uint8_t(first);
  c.rows[5] = uint8_t(second ? second : first);
  c.rows[6] = c.rows[7] = uint8_t(input_bytes / 4);
  c.row_bytes[4] = c.row_bytes[5] = uint16_t(input_bytes);
  return c;
}

#if ARMILLARY_TILES == 1

inline void tile_configure(const TileConfig& config) { _tile_loadconfig(&config); }
inline void tile_release() { _tile_release(); }

// GCC writes the numbers of tiles into the instruction's text, so they must be literals.
#define ARMILLARY_TILE_OF(t, operation) \
  if constexpr (T == t) operation;
#define ARMILLARY_EACH_TILE(operation) \
  ARMILLARY_TILE_OF(0, operation(0)) \
  ARMILLARY_TILE_OF(1, operation(1)) \
  ARMILLARY_TILE_OF(2, operation(2)) \
  ARMILLARY_TILE_OF(3, operation(3)) \
  ARMILLARY_TILE_OF(4, operation(4)) \
  ARMILLARY_TILE_OF(5, operation(5)) \
  ARMILLARY_TILE_OF(6, operation(6)) \
  ARMILLARY_TILE_OF(7, operation(7))
#define ARMILLARY_SUM_OF(operation, inputs, weights) \
  if constexpr (Inputs == inputs && Weights == weights) { \
    if constexpr (Sum == 0) operation(0, inputs, weights); \
    if constexpr (Sum == 1) operation(1, inputs, weights); \
    if constexpr (Sum == 2) operation(2, inputs, weights); \
    if constexpr (Sum == 3) operation(3, inputs, weights); \
  }
#define ARMILLARY_EACH_PRODUCT(operation) \
  static_assert(Sum < 4 && (Inputs == 4 || Inputs == 5) && (Weights == 6 || Weights == 7), "tiles have their places"); \
  ARMILLARY_SUM_OF(operation, 4, 6) \
  ARMILLARY_SUM_OF(operation, 4, 7) \
  ARMILLARY_SUM_OF(operation, 5, 6) \
  ARMILLARY_SUM_OF(operation, 5, 7)

template <int T>
inline void tile_zero() {
  ARMILLARY_EACH_TILE(_tile_zero)
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
#define ARMILLARY_LOAD(t) _tile_loadd(t, from, stride)
  ARMILLARY_EACH_TILE(ARMILLARY_LOAD)
#undef ARMILLARY_LOAD
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
#define ARMILLARY_STORE(t) _tile_stored(t, to, stride)
  ARMILLARY_EACH_TILE(ARMILLARY_STORE)
#undef ARMILLARY_STORE
}
template <int Sum, int Inputs, int Weights>
inline void tile_add_bf16() {
  ARMILLARY_EACH_PRODUCT(_tile_dpbf16ps)
}
template <int Sum, int Inputs, int Weights>
inline void tile_add_i8() {  // signed inputs, signed weights
  ARMILLARY_EACH_PRODUCT(_tile_dpbssd)
}
template <int Sum, int Inputs, int Weights>
inline void tile_add_u8() {  // signed inputs, unsigned weights
  ARMILLARY_EACH_PRODUCT(_tile_dpbsud)
}

#undef ARMILLARY_TILE_OF
#undef ARMILLARY_EACH_TILE
#undef ARMILLARY_SUM_OF
#undef ARMILLARY_EACH_PRODUCT

#else

struct EmulatedTiles {
  TileConfig config;
  uint8_t data[8][16][64];
};
inline EmulatedTiles& tiles() {
  static thread_local EmulatedTiles t;
  return t;
}
inline void tile_configure(const TileConfig& config) {
  tiles().config = config;
  std::memset(tiles().data, 0, sizeof tiles().data);
}
inline void tile_release() {}
template <int T>
inline void tile_zero() {
  std::memset(tiles().data[T], 0, sizeof tiles().data[T]);
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  tile_zero<T>();
  for (int r = 0; r < tiles().config.rows[T]; ++r)
    std::memcpy(tiles().data[T][r], static_cast<const uint8_t*>(from) + r * stride, tiles().config.row_bytes[T]);
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < tiles().config.rows[T]; ++r)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, tiles().data[T][r], tiles().config.row_bytes[T]);
}
// sum[m][n] += the products of four bytes (two halves) of inputs[m] with those of weights[k][n], for all k.
template <int Sum, int Inputs, int Weights, class Product, class Number>
inline void tile_add(const Product& product, Number) {
  EmulatedTiles& t = tiles();
  for (int m = 0; m < t.config.rows[Sum]; ++m)
    for (int n = 0; n < t.config.row_bytes[Sum] / 4; ++n) {
      Number sum;
      std::memcpy(&sum, &t.data[Sum][m][4 * n], 4);
      for (int k = 0; k < t.config.row_bytes[Inputs] / 4; ++k)
        sum += product(&t.data[Inputs][m][4 * k], &t.data[Weights][k][4 * n]);
      std::memcpy(&t.data[Sum][m][4 * n], &sum, 4);
    }
}
template <int Sum, int Inputs, int Weights>
inline void tile_add_bf16() {
  tile_add<Sum, Inputs, Weights>(
      [](const uint8_t* a, const uint8_t* b) {
        uint16_t x[2], w[2];
        std::memcpy(x, a, 4);
        std::memcpy(w, b, 4);
        return from_bf16(x[0]) * from_bf16(w[0]) + from_bf16(x[1]) * from_bf16(w[1]);
      },
      0.f);
}
template <int Sum, int Inputs, int Weights>
inline void tile_add_i8() {
  tile_add<Sum, Inputs, Weights>(
      [](const uint8_t* a, const uint8_t* b) {
        int32_t sum = 0;
        for (int i = 0; i < 4; ++i) sum += int32_t(int8_t(a[i])) * int32_t(int8_t(b[i]));
        return sum;
      },
      int32_t(0));
}
template <int Sum, int Inputs, int Weights>
inline void tile_add_u8() {
  tile_add<Sum, Inputs, Weights>(
      [](const uint8_t* a, const uint8_t* b) {
        int32_t sum = 0;
        for (int i = 0; i < 4; ++i) sum += int32_t(int8_t(a[i])) * int32_t(b[i]);
        return sum;
      },
      int32_t(0));
}

#endif

// ---- weights on their way into tiles: one row of a tile, 16 outputs ---------------------------------------------------

#if ARMILLARY_TILES == 1

// 16 pairs of 8-bit weights as bfloat16, which holds all whole numbers up to 256.
inline void pairs_to_bf16(const uint8_t* pairs, uint8_t* to) {
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs))));
  const __m512 high =
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs + 16))));
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  std::memcpy(to, &both, 64);
}

// 16 words of eight 4-bit weights, less their zero points, as four rows of pairs of bfloat16. offsets: 16 - zero in both halves
// of each 32 bits, so that what looks a value up is from 0 to 31.
struct NibbleOffsets {
  __m512i v;
};
inline NibbleOffsets nibble_offsets(const int8_t* zeros) {  // null: symmetric
  if (!zeros) return {_mm512_set1_epi16(8)};
  const __m512i zero = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  const __m512i both = _mm512_or_si512(zero, _mm512_slli_epi32(zero, 16));
  return {_mm512_sub_epi16(_mm512_set1_epi16(16), both)};
}
inline void nibbles_to_bf16(const uint8_t* words, NibbleOffsets offsets, uint8_t* to) {
  alignas(64) static constexpr uint16_t kValues[32] = {  // -16 to 15 as bfloat16
      0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130, 0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0,
      0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
      0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
  const __m512i values = _mm512_load_si512(kValues);
  const __m512i all = _mm512_loadu_si512(words);
  const __m512i mask = _mm512_set1_epi16(15);
  const auto row = [&](__m512i first, __m512i second, int index) {  // weights 2 index and 2 index + 1 at bits 0 and 16
    const __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaau, first, second);
    const __m512i place = _mm512_add_epi16(_mm512_and_si512(pair, mask), offsets.v);
    _mm512_storeu_si512(to + 64 * index, _mm512_permutexvar_epi16(place, values));
  };
  row(all, _mm512_slli_epi32(all, 8), 0);                          // bits 0 and 8
  row(_mm512_srli_epi32(all, 16), _mm512_srli_epi32(all, 8), 1);   // bits 16 and 24
  row(_mm512_srli_epi32(all, 4), _mm512_slli_epi32(all, 4), 2);    // bits 4 and 12
  row(_mm512_srli_epi32(all, 20), _mm512_srli_epi32(all, 12), 3);  // bits 20 and 28
}

// The same words as two rows of quads of bytes, 0 to 15.
inline void nibbles_to_bytes(const uint8_t* words, uint8_t* to) {
  const __m512i all = _mm512_loadu_si512(words), mask = _mm512_set1_epi8(15);
  _mm512_storeu_si512(to, _mm512_and_si512(all, mask));
  _mm512_storeu_si512(to + 64, _mm512_and_si512(_mm512_srli_epi32(all, 4), mask));
}

#else

inline void put_bf16(uint8_t* to, int index, float value) {
  const uint16_t narrow = to_bf16(value);
  std::memcpy(to + 2 * index, &narrow, 2);
}
inline void pairs_to_bf16(const uint8_t* pairs, uint8_t* to) {
  for (int i = 0; i < 32; ++i) put_bf16(to, i, float(int8_t(pairs[i])));
}
struct NibbleOffsets {
  float zero[16];
};
inline NibbleOffsets nibble_offsets(const int8_t* zeros) {
  NibbleOffsets offsets;
  for (int i = 0; i < 16; ++i) offsets.zero[i] = zeros ? float(zeros[i]) : 8.f;
  return offsets;
}
inline void nibbles_to_bf16(const uint8_t* words, const NibbleOffsets& offsets, uint8_t* to) {
  for (int lane = 0; lane < 16; ++lane) {
    uint32_t word;
    std::memcpy(&word, words + 4 * lane, 4);
    for (int i = 0; i < 8; ++i)
      put_bf16(to + 64 * (i / 2), 2 * lane + i % 2, float((word >> nibble_shift(i)) & 15u) - offsets.zero[lane]);
  }
}
inline void nibbles_to_bytes(const uint8_t* words, uint8_t* to) {
  for (int i = 0; i < 64; ++i) {
    to[i] = words[i] & 15u;
    to[64 + i] = uint8_t(words[i] >> 4);
  }
}

#endif

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
