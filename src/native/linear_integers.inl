// Vectors that products of narrow weights are made of: 32-bit sums, and weights in pairs of 16 bits or quads of 8 that meet as
// many inputs of a row, one word of them in every lane.
#include <cstdint>
#include <cstring>

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

// Pair `i` of a word of eight 4-bit weights that are kept for 16-bit products.
constexpr uint32_t kNibblePair = 0x000f000fu;

#if defined(ARMILLARY_AVX512)

struct Integers {
  // As the instructions take them: GCC finds registers for sums that are cast at every turn only with copies.
  typedef int32_t Lanes __attribute__((vector_size(64)));
  Lanes v;
  static Integers of(__m512i v) { return {(Lanes)v}; }
  static Integers zero() { return {Lanes{}}; }
  static Integers set(int32_t x) { return of(_mm512_set1_epi32(x)); }
  static Integers load(const int32_t* p) { return of(_mm512_loadu_si512(p)); }
  static Integers load_i8(const int8_t* p) {
    return of(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  void store(int32_t* p) const { _mm512_storeu_si512(p, (__m512i)v); }
  Vec floats() const { return {_mm512_cvtepi32_ps((__m512i)v)}; }
  static Integers add(Integers a, Integers b) { return of(_mm512_add_epi32((__m512i)a.v, (__m512i)b.v)); }
  static Integers multiply(Integers a, Integers b) { return of(_mm512_mullo_epi32((__m512i)a.v, (__m512i)b.v)); }
};

struct Pairs {  // two signed weights of each lane's row, in 16 bits
  __m512i v;
  static Pairs load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  static Pairs widen(const uint8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Pairs nibbles(const uint8_t* p, int i) {
    return {_mm512_and_si512(_mm512_srli_epi32(_mm512_loadu_si512(p), unsigned(4 * i)),
                             _mm512_set1_epi32(int(kNibblePair)))};
  }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
  Integers add_to(Integers sum, int32_t x) const {
    return Integers::of(add_pairs((__m512i)sum.v, v, _mm512_set1_epi32(x)));
  }
};

#if defined(ARMILLARY_QUADS)
struct SignedQuads {  // four signed weights of each lane's row; inputs are unsigned
  __m512i v;
  static SignedQuads load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  Integers add_to(Integers sum, int32_t x) const {
    return Integers::of(_mm512_dpbusd_epi32((__m512i)sum.v, _mm512_set1_epi32(x), v));
  }
};
#endif

#if !defined(ARMILLARY_QUADS)
#define ARMILLARY_PARTS 1
struct Part {  // sums of two products in 16 bits, of up to 32 inputs of 4-bit weights
  __m512i v;
  static Part zero() { return {_mm512_setzero_si512()}; }
  Integers add_to(Integers sum) const {
    return Integers::of(_mm512_add_epi32((__m512i)sum.v, _mm512_madd_epi16(v, _mm512_set1_epi16(1))));
  }
};
#endif

struct Quads {  // four weights from 0 to 15; inputs are signed
  __m512i v;
  static Quads load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  static Quads nibbles(const uint8_t* p, int i) {
    const __m512i all = _mm512_loadu_si512(p);
    return {_mm512_and_si512(i ? _mm512_srli_epi32(all, 4) : all, _mm512_set1_epi8(15))};
  }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
#if defined(ARMILLARY_QUADS)
  Integers add_to(Integers sum, int32_t x) const {
    return Integers::of(_mm512_dpbusd_epi32((__m512i)sum.v, v, _mm512_set1_epi32(x)));
  }
#else
  Part add_to(Part sum, int32_t x) const {
    return {held(_mm512_add_epi16(sum.v, _mm512_maddubs_epi16(v, _mm512_set1_epi32(x))))};
  }
#endif
};

#elif defined(ARMILLARY_AVX2)

// Keeps a sum in its register and in its place among other sums: GCC else makes the products of several sums first, for which
// there are not enough registers, and keeps the sums in memory.
#define ARMILLARY_HOLD(v) asm volatile("" : "+x"(v))

struct Integers {
  __m256i v;
  static Integers zero() { return {_mm256_setzero_si256()}; }
  static Integers set(int32_t x) { return {_mm256_set1_epi32(x)}; }
  static Integers load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  static Integers load_i8(const int8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
  }
  void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  Vec floats() const { return {_mm256_cvtepi32_ps(v)}; }
  static Integers add(Integers a, Integers b) { return {_mm256_add_epi32(a.v, b.v)}; }
  static Integers multiply(Integers a, Integers b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
};

struct Pairs {
  __m256i v;
  static Pairs load(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  static Pairs widen(const uint8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Pairs nibbles(const uint8_t* p, int i) {
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_and_si256(_mm256_srli_epi32(all, 4 * i), _mm256_set1_epi32(int(kNibblePair)))};
  }
  void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  Integers add_to(Integers sum, int32_t x) const {
    sum.v = _mm256_add_epi32(sum.v, _mm256_madd_epi16(v, _mm256_set1_epi32(x)));
    ARMILLARY_HOLD(sum.v);
    return sum;
  }
};

#define ARMILLARY_PARTS 1
struct Part {  // sums of two products in 16 bits, of up to 32 inputs of 4-bit weights
  __m256i v;
  static Part zero() { return {_mm256_setzero_si256()}; }
  Integers add_to(Integers sum) const {
    return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(v, _mm256_set1_epi16(1)))};
  }
};

struct Quads {
  __m256i v;
  static Quads load(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  static Quads nibbles(const uint8_t* p, int i) {
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_and_si256(i ? _mm256_srli_epi32(all, 4) : all, _mm256_set1_epi8(15))};
  }
  void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  Part add_to(Part sum, int32_t x) const {
    sum.v = _mm256_add_epi16(sum.v, _mm256_maddubs_epi16(v, _mm256_set1_epi32(x)));
    ARMILLARY_HOLD(sum.v);
    return sum;
  }
};

#else

struct Integers {
  int32_t v[Vec::N];
  static Integers zero() { return {}; }
  static Integers set(int32_t x) {
    Integers r;
    for (int i = 0; i < Vec::N; ++i) r.v[i] = x;
    return r;
  }
  static Integers load(const int32_t* p) {
    Integers r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static Integers load_i8(const int8_t* p) {
    Integers r;
    for (int i = 0; i < Vec::N; ++i) r.v[i] = p[i];
    return r;
  }
  void store(int32_t* p) const { std::memcpy(p, v, sizeof v); }
  Vec floats() const {
    Vec r;
    for (int i = 0; i < Vec::N; ++i) r.lane[i] = float(v[i]);
    return r;
  }
  static Integers add(Integers a, Integers b) {
    for (int i = 0; i < Vec::N; ++i) a.v[i] += b.v[i];
    return a;
  }
  static Integers multiply(Integers a, Integers b) {
    for (int i = 0; i < Vec::N; ++i) a.v[i] *= b.v[i];
    return a;
  }
};

struct Pairs {
  int16_t v[2 * Vec::N];
  static Pairs load(const uint8_t* p) {
    Pairs r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static Pairs widen(const uint8_t* p) {
    Pairs r;
    for (int i = 0; i < 2 * Vec::N; ++i) r.v[i] = int8_t(p[i]);
    return r;
  }
  static Pairs nibbles(const uint8_t* p, int i) {
    Pairs r;
    for (int lane = 0; lane < Vec::N; ++lane) {
      uint32_t word;
      std::memcpy(&word, p + 4 * lane, 4);
      word = (word >> (4 * i)) & kNibblePair;
      std::memcpy(r.v + 2 * lane, &word, 4);
    }
    return r;
  }
  void store(uint8_t* p) const { std::memcpy(p, v, sizeof v); }
  Integers add_to(Integers sum, int32_t x) const {
    int16_t pair[2];
    std::memcpy(pair, &x, 4);
    for (int i = 0; i < Vec::N; ++i) sum.v[i] += v[2 * i] * pair[0] + v[2 * i + 1] * pair[1];
    return sum;
  }
};

struct SignedQuads {
  int8_t v[4 * Vec::N];
  static SignedQuads load(const uint8_t* p) {
    SignedQuads r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  Integers add_to(Integers sum, int32_t x) const {
    uint8_t quad[4];
    std::memcpy(quad, &x, 4);
    for (int i = 0; i < Vec::N; ++i)
      for (int k = 0; k < 4; ++k) sum.v[i] += int32_t(quad[k]) * int32_t(v[4 * i + k]);
    return sum;
  }
};

struct Quads {
  uint8_t v[4 * Vec::N];
  static Quads load(const uint8_t* p) {
    Quads r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static Quads nibbles(const uint8_t* p, int i) {
    Quads r;
    for (int k = 0; k < 4 * Vec::N; ++k) r.v[k] = uint8_t(i ? p[k] >> 4 : p[k] & 15u);
    return r;
  }
  void store(uint8_t* p) const { std::memcpy(p, v, sizeof v); }
  Integers add_to(Integers sum, int32_t x) const {
    int8_t quad[4];
    std::memcpy(quad, &x, 4);
    for (int i = 0; i < Vec::N; ++i)
      for (int k = 0; k < 4; ++k) sum.v[i] += int32_t(v[4 * i + k]) * int32_t(quad[k]);
    return sum;
  }
};

#endif

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
