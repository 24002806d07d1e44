// Products of 8- and 4-bit weights with activations quantised to 8 bits, in integers.
//
// Sums of integers are exact, so their order is free. 8-bit matrices: one scale a row of activations, one a row of weights,
// one sum over all inputs. 4-bit matrices: activations have a scale a group too, for a group's outliers then spoil no other group;
// a group's sum is exact, and groups are added up in order in one chain of fused multiply-adds.
//
// Instructions that multiply unsigned with signed bytes add neighbours with saturation (AVX2) or take quads (VNNI). On AVX2
// bytes of 8-bit matrices are therefore widened to 16 bits first, where two products cannot overflow; the 4-bit ones are
// 0 to 15, of which eight pairs of products stay below 2^15. With VNNI the activations of 8-bit matrices are moved to 0 to 255,
// and 128 times the sum of a row's weights is taken off.
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

#if defined(ARMILLARY_AVX512)

struct Integers {
  __m512i v;
  static Integers zero() { return {_mm512_setzero_si512()}; }
  static Integers load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
  Vec floats() const { return {_mm512_cvtepi32_ps(v)}; }
  static Integers add(Integers a, Integers b) { return {_mm512_add_epi32(a.v, b.v)}; }
  // Four unsigned bytes of activations with four signed bytes of each lane's weights.
  static Integers add_bytes(Integers sum, const uint8_t* weights, int32_t x) {
    return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi32(x), _mm512_loadu_si512(weights))};
  }
};

struct Nibbles {  // of one word: the lower or the upper four
  __m512i v;
  static Nibbles lower(const uint8_t* words) {
    return {_mm512_and_si512(_mm512_loadu_si512(words), _mm512_set1_epi8(15))};
  }
  static Nibbles upper(const uint8_t* words) {
    return {_mm512_and_si512(_mm512_srli_epi32(_mm512_loadu_si512(words), 4), _mm512_set1_epi8(15))};
  }
};

// The sum of up to 32 inputs, before it is added to the sums of 32 bits.
struct Part {
  __m512i v;
  static Part zero() { return {_mm512_setzero_si512()}; }
  static Part add(Part sum, Nibbles w, int32_t x) {
    return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(x))};
  }
  Integers whole() const { return {v}; }
};

#elif defined(ARMILLARY_AVX2)

struct Integers {
  __m256i v;
  static Integers zero() { return {_mm256_setzero_si256()}; }
  static Integers load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  Vec floats() const { return {_mm256_cvtepi32_ps(v)}; }
  static Integers add(Integers a, Integers b) { return {_mm256_add_epi32(a.v, b.v)}; }
};

struct Pairs {  // two weights of each lane's row, in 16 bits
  __m256i v;
  static Pairs load(const uint8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  Integers add_to(Integers sum, int32_t x) const {
    return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(v, _mm256_set1_epi32(x)))};
  }
};

struct Nibbles {
  __m256i v;
  static Nibbles lower(const uint8_t* words) {
    return {_mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)), _mm256_set1_epi8(15))};
  }
  static Nibbles upper(const uint8_t* words) {
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    return {_mm256_and_si256(_mm256_srli_epi32(all, 4), _mm256_set1_epi8(15))};
  }
};

struct Part {
  __m256i v;  // sums of two products in 16 bits
  static Part zero() { return {_mm256_setzero_si256()}; }
  static Part add(Part sum, Nibbles w, int32_t x) {
    return {_mm256_add_epi16(sum.v, _mm256_maddubs_epi16(w.v, _mm256_set1_epi32(x)))};
  }
  Integers whole() const { return {_mm256_madd_epi16(v, _mm256_set1_epi16(1))}; }
};

#else

struct Integers {
  int32_t v[Vec::N];
  static Integers zero() { return {}; }
  static Integers load(const int32_t* p) {
    Integers r;
    std::memcpy(r.v, p, sizeof r.v);
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
  static Integers add_bytes(Integers sum, const uint8_t* weights, int32_t x) {
    uint8_t bytes[4];
    std::memcpy(bytes, &x, 4);
    for (int i = 0; i < Vec::N; ++i)
      for (int k = 0; k < 4; ++k) sum.v[i] += int32_t(bytes[k]) * int32_t(int8_t(weights[4 * i + k]));
    return sum;
  }
};

struct Pairs {
  int8_t v[2 * Vec::N];
  static Pairs load(const uint8_t* p) {
    Pairs r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  Integers add_to(Integers sum, int32_t x) const {
    int16_t pair[2];
    std::memcpy(pair, &x, 4);
    for (int i = 0; i < Vec::N; ++i) sum.v[i] += v[2 * i] * pair[0] + v[2 * i + 1] * pair[1];
    return sum;
  }
};

struct Nibbles {
  uint8_t v[4 * Vec::N];
  static Nibbles lower(const uint8_t* words) {
    Nibbles r;
    for (int i = 0; i < 4 * Vec::N; ++i) r.v[i] = words[i] & 15u;
    return r;
  }
  static Nibbles upper(const uint8_t* words) {
    Nibbles r;
    for (int i = 0; i < 4 * Vec::N; ++i) r.v[i] = uint8_t(words[i] >> 4);
    return r;
  }
};

struct Part {
  Integers v;
  static Part zero() { return {Integers::zero()}; }
  static Part add(Part sum, const Nibbles& w, int32_t x) {
    int8_t bytes[4];
    std::memcpy(bytes, &x, 4);
    for (int i = 0; i < Vec::N; ++i)
      for (int k = 0; k < 4; ++k) sum.v.v[i] += int32_t(w.v[4 * i + k]) * int32_t(bytes[k]);
    return sum;
  }
  Integers whole() const { return v; }
};

#endif

inline int32_t four_bytes(const uint8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

// Bytes of `kDotStep` inputs of a strip of an 8-bit matrix, and of as many inputs of a row as it was prepared.
constexpr int kDotLine = kStrip * int(kDotStep);

// sums [R][kUnit] of integers, at the first strip's column. x: the rows' inputs from the block's first one on.
template <int R, int S>
inline void dots_i8(const Strips& strips, const uint8_t* x, int64_t row_bytes, int32_t* sums, bool start) {
  constexpr int V = S * kStripVectors;
  Integers sum[R][V];
  ARMILLARY_EACH for (int r = 0; r < R; ++r)
  ARMILLARY_EACH for (int j = 0; j < V; ++j)
    sum[r][j] = start ? Integers::zero() : Integers::load(sums + r * kUnit + j * Vec::N);
  const uint8_t* const data = strips.data;
  const int64_t bytes = strips.bytes, steps = (strips.inputs + kDotStep - 1) / kDotStep;
  for (int64_t i = 0; i < steps; ++i) {
    ARMILLARY_EACH for (int j = 0; j < V; ++j) {
      const uint8_t* line = data + (j / kStripVectors) * bytes + i * kDotLine + (j % kStripVectors) * Vec::N * kDotStep;
#if defined(ARMILLARY_QUADS)
      ARMILLARY_EACH for (int r = 0; r < R; ++r)
        sum[r][j] = Integers::add_bytes(sum[r][j], line, four_bytes(x + r * row_bytes + 4 * i));
#else
      const Pairs w = Pairs::load(line);
      ARMILLARY_EACH for (int r = 0; r < R; ++r) sum[r][j] = w.add_to(sum[r][j], four_bytes(x + r * row_bytes + 4 * i));
#endif
    }
    ARMILLARY_EACH for (int s = 0; s < S; ++s) prefetch(data + strips.ahead + s * bytes + i * kDotLine);
  }
  ARMILLARY_EACH for (int r = 0; r < R; ++r)
  ARMILLARY_EACH for (int j = 0; j < V; ++j) sum[r][j].store(sums + r * kUnit + j * Vec::N);
}

// A row of activations for a 4-bit matrix: scale and sum of each group, then the bytes.
struct GroupOfRow {
  float scale;
  float sum;
};

// sums [R][kUnit] in float32: this group's exact sum times both scales is added to each. x: as above; groups: of the first
// row, this group's.
template <int R, int S>
inline void dots_i4(const Strips& strips, const uint8_t* x, const uint8_t* groups, int64_t row_bytes, float* sums,
                    bool start, bool zero_points) {
  constexpr int V = S * kStripVectors;
  constexpr int64_t kPart = 4;  // words, of 32 inputs
  Integers whole[R][V];
  ARMILLARY_EACH for (int r = 0; r < R; ++r)
  ARMILLARY_EACH for (int j = 0; j < V; ++j) whole[r][j] = Integers::zero();
  const uint8_t* const data = strips.data;
  const int64_t bytes = strips.bytes, words = strips.inputs / 8;
  for (int64_t first = 0; first < words; first += kPart) {
    Part part[R][V];
    ARMILLARY_EACH for (int r = 0; r < R; ++r)
    ARMILLARY_EACH for (int j = 0; j < V; ++j) part[r][j] = Part::zero();
    for (int64_t i = first; i < first + kPart; ++i) {
      ARMILLARY_EACH for (int j = 0; j < V; ++j) {
        const uint8_t* line = data + (j / kStripVectors) * bytes + i * 64 + (j % kStripVectors) * Vec::N * 4;
        const Nibbles lower = Nibbles::lower(line), upper = Nibbles::upper(line);
        ARMILLARY_EACH for (int r = 0; r < R; ++r) {
          const uint8_t* inputs = x + r * row_bytes + 8 * i;
          part[r][j] = Part::add(part[r][j], lower, four_bytes(inputs));
          part[r][j] = Part::add(part[r][j], upper, four_bytes(inputs + 4));
        }
      }
      ARMILLARY_EACH for (int s = 0; s < S; ++s) prefetch(data + strips.ahead + s * bytes + i * 64);
    }
    ARMILLARY_EACH for (int r = 0; r < R; ++r)
    ARMILLARY_EACH for (int j = 0; j < V; ++j) whole[r][j] = Integers::add(whole[r][j], part[r][j].whole());
  }
  ARMILLARY_EACH for (int j = 0; j < V; ++j) {
    const Vec scale = Vec::load(strips.scales + j * Vec::N);
    const Vec zero = zero_points ? Vec::load_i8(strips.zeros + j * Vec::N) : Vec::set(8.f);
    ARMILLARY_EACH for (int r = 0; r < R; ++r) {
      GroupOfRow group;
      std::memcpy(&group, groups + r * row_bytes, sizeof group);
      float* to = sums + r * kUnit + j * Vec::N;
      // Whole numbers below 2^24: exact.
      const Vec term = whole[r][j].floats() - zero * Vec::set(group.sum);
      const Vec before = start ? Vec::zero() : Vec::load(to);
      Vec::fma(term, scale * Vec::set(group.scale), before).store(to);
    }
  }
}

constexpr int kMostDotRows = Vec::N == 16 ? 6 : 4;
template <int R>
constexpr int dot_strips() {
  return Vec::N == 16 ? 4 : R == 1 ? 2 : 1;
}

// Calls run<R, S>(row, strip) for tiles that cover all rows and the first `count` strips; each strip meets all rows in turn.
template <class Run>
inline void each_tile(int64_t rows, int count, const Run& run) {
  constexpr int most = kMostDotRows, S = dot_strips<most>();
  const int64_t whole = rows - rows % most;
  for (int s = 0; whole && s < count; s += S)
    for (int64_t row = 0; row < whole; row += most) run.template operator()<most, S>(row, s);
  const auto rest = [&](auto size) {
    constexpr int R = decltype(size)::value;
    for (int s = 0; s < count; s += dot_strips<R>()) run.template operator()<R, dot_strips<R>()>(whole, s);
  };
  switch (rows - whole) {
    case 1: rest(std::integral_constant<int, 1>()); break;
    case 2: rest(std::integral_constant<int, 2>()); break;
    case 3: rest(std::integral_constant<int, 3>()); break;
    case 4: rest(std::integral_constant<int, most < 5 ? 1 : 4>()); break;
    case 5: rest(std::integral_constant<int, most < 6 ? 1 : 5>()); break;
    default: break;
  }
}

struct RunI8 {
  const Strips& block;
  const uint8_t* x;
  int64_t row_bytes;
  int32_t* sums;
  bool start;
  template <int R, int S>
  void operator()(int64_t row, int strip) const {
    Strips strips = block;
    strips.data += strip * strips.bytes;
    dots_i8<R, S>(strips, x + row * row_bytes, row_bytes, sums + row * kUnit + strip * kStrip, start);
  }
};

struct RunI4 {
  const Strips& block;
  const uint8_t* x;
  const uint8_t* groups;
  int64_t row_bytes;
  float* sums;
  bool start, zero_points;
  template <int R, int S>
  void operator()(int64_t row, int strip) const {
    Strips strips = block;
    strips.data += strip * strips.bytes;
    strips.scales += strip * kStrip;
    strips.zeros += strip * kStrip;
    dots_i4<R, S>(strips, x + row * row_bytes, groups + row * row_bytes, row_bytes, sums + row * kUnit + strip * kStrip,
                  start, zero_points);
  }
};

// The sums of 8-bit products as float32, times each row's scale; `sums` holds integers and is overwritten.
inline void scale_rows(const uint8_t* unit, const uint8_t* prepared, int64_t row_bytes, int64_t rows, bool moved,
                       float* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    float scale;
    std::memcpy(&scale, prepared + row * row_bytes, 4);
    for (int j = 0; j < kUnit; j += Vec::N) {
      float* at = sums + row * kUnit + j;
      Integers sum = Integers::load(reinterpret_cast<const int32_t*>(at));
      if (moved) {  // -128 times the sum of the weights, kept in the unit's head
        const Integers off = Integers::load(reinterpret_cast<const int32_t*>(unit + kUnitFloats) + j);
        sum = Integers::add(sum, off);
      }
      (sum.floats() * Vec::set(scale)).store(at);
    }
  }
}

inline void multiply_unit_i8(const Layout& layout, const uint8_t* unit, int count, const uint8_t* prepared,
                             int64_t row_bytes, int64_t rows, float* sums) {
  constexpr int64_t kBytes = kDotStep == 4 ? 1 : 2;  // of a prepared input
  for (int64_t b = 0; b < layout.blocks; ++b) {
    Strips block{};
    block.data = unit + layout.offset(b);
    block.bytes = layout.strip_bytes(b);
    block.inputs = layout.inputs(b);
    block.ahead = layout.block_bytes;
    each_tile(rows, count,
              RunI8{block, prepared + 64 + b * layout.block * kBytes, row_bytes, reinterpret_cast<int32_t*>(sums), b == 0});
  }
  scale_rows(unit, prepared, row_bytes, rows, kDotStep == 4, sums);
}

inline void multiply_unit_i4(const Layout& layout, const uint8_t* unit, int count, const uint8_t* prepared,
                             int64_t row_bytes, int64_t rows, bool zero_points, float* sums) {
  const int64_t groups_bytes = layout.blocks * int64_t(sizeof(GroupOfRow));
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const uint8_t* data = unit + layout.offset(b);
    Strips block{};
    block.data = data + layout.block_head;
    block.bytes = layout.strip_bytes(b);
    block.inputs = layout.inputs(b);
    block.ahead = layout.block_bytes;
    block.scales = reinterpret_cast<const float*>(data);
    block.zeros = reinterpret_cast<const int8_t*>(data + kUnitFloats);
    each_tile(rows, count,
              RunI4{block, prepared + groups_bytes + b * layout.block,
                    prepared + b * int64_t(sizeof(GroupOfRow)), row_bytes, sums, b == 0, zero_points});
  }
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
