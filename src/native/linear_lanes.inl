// Narrow weights as vectors of float32: sixteen or eight lanes of 32-bit words that hold several weights of one row each.
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

// The bit at which weight `i` of a word of eight 4-bit weights stands: the lower nibbles of the word's four bytes are weights
// 0 to 3 and the upper ones 4 to 7, for products of bytes; or in pairs 16 bits apart, for products of those.
constexpr int nibble_shift(int i, bool pairs = false) {
  if (pairs) return 4 * (i / 2) + 16 * (i % 2);
  return i < 4 ? 8 * i : 8 * (i - 4) + 4;
}

#if defined(ARMILLARY_AVX512)

struct Words {
  __m512i v;
  static Words load(const void* p) { return {_mm512_loadu_si512(p)}; }
  Vec lower_half() const { return {_mm512_castsi512_ps(_mm512_slli_epi32(v, 16))}; }
  Vec upper_half() const { return {_mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(int(0xffff0000u))))}; }
  Vec nibble(int i) const {
    const __m512i low = _mm512_and_si512(_mm512_srli_epi32(v, unsigned(nibble_shift(i))), _mm512_set1_epi32(15));
    return {_mm512_cvtepi32_ps(low)};
  }
};
inline Vec load_f16(const void* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

#elif defined(ARMILLARY_AVX2)

struct Words {
  __m256i v;
  static Words load(const void* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  Vec lower_half() const { return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16))}; }
  Vec upper_half() const { return {_mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int(0xffff0000u))))}; }
  Vec nibble(int i) const {
    const __m256i low = _mm256_and_si256(_mm256_srli_epi32(v, nibble_shift(i)), _mm256_set1_epi32(15));
    return {_mm256_cvtepi32_ps(low)};
  }
};
inline Vec load_f16(const void* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }

#else

struct Words {
  uint32_t v[Vec::N];
  static Words load(const void* p) {
    Words w;
    std::memcpy(w.v, p, sizeof w.v);
    return w;
  }
  Vec lower_half() const {
    Words w;
    for (int i = 0; i < Vec::N; ++i) w.v[i] = v[i] << 16;
    return w.as_floats();
  }
  Vec upper_half() const {
    Words w;
    for (int i = 0; i < Vec::N; ++i) w.v[i] = v[i] & 0xffff0000u;
    return w.as_floats();
  }
  Vec nibble(int i) const {
    Vec r;
    for (int lane = 0; lane < Vec::N; ++lane) r.lane[lane] = float(int32_t((v[lane] >> nibble_shift(i)) & 15u));
    return r;
  }

 private:
  Vec as_floats() const {
    Vec r;
    std::memcpy(&r.lane, v, sizeof r.lane);
    return r;
  }
};
inline Vec load_f16(const void* p) {
  Vec::Halves narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return Vec::from_f16(narrow);
}

#endif

// Scales of a group in rows next to each other. Every number of the narrow formats is one of float32.
struct Scales {
  const uint8_t* data;
  Element kept;

  Vec load(int row) const {
    switch (kept) {
      case Element::f16: return load_f16(data + 2 * row);
      case Element::bf16: return Vec::load_bf16(reinterpret_cast<const uint16_t*>(data) + row);
      default: return Vec::load(reinterpret_cast<const float*>(data) + row);
    }
  }
  Scales from(int row) const { return {data + scale_bytes(kept) * row, kept}; }
};

// Fetches the line of that address soon to be read.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
