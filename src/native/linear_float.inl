// Products in float32: one chain of fused multiply-adds over the inputs in order for each element of the result.
//
// A chain is the same however rows and outputs are tiled, since tiles only choose which chains run side by side; and blocks
// of inputs only store a chain's sum and load it again. Of 4-bit matrices a chain runs over one group, and is then added to
// the sum of the groups before it, times the group's scale.
#include <cstdint>

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

#if defined(ARMILLARY_EMULATED)
#define ARMILLARY_EACH
#elif defined(__clang__)
#define ARMILLARY_EACH _Pragma("unroll")
#else
#define ARMILLARY_EACH _Pragma("GCC unroll 16")
#endif
// The same address, which the compiler cannot know to be the same: else it loads a word once for all weights in it and
// holds on to it, for which there are not enough registers.
inline const uint8_t* anew(const uint8_t* p) {
  asm volatile("" : "+r"(p));
  return p;
}

constexpr int kStripVectors = kStrip / Vec::N;

// Weights as they are kept, and what they are as float32. `line`: bytes of one step of a strip.
struct InF32 {
  static constexpr int step = 1, line = 64;
  static constexpr bool grouped = false;
  struct Zero {};
  static Zero zero(const int8_t*) { return {}; }
  static Vec widen(const uint8_t* line, int v, int, Zero) {
    return Vec::load(reinterpret_cast<const float*>(line) + v * Vec::N);
  }
};
struct InBf16 {
  static constexpr int step = 2, line = 64;
  static constexpr bool grouped = false;
  struct Zero {};
  static Zero zero(const int8_t*) { return {}; }
  static Vec widen(const uint8_t* line, int v, int i, Zero) {
    const Words words = Words::load(line + v * Vec::N * 4);
    return i == 0 ? words.lower_half() : words.upper_half();
  }
};
struct InF16 {
  static constexpr int step = 1, line = 32;
  static constexpr bool grouped = false;
  struct Zero {};
  static Zero zero(const int8_t*) { return {}; }
  static Vec widen(const uint8_t* line, int v, int, Zero) { return load_f16(line + v * Vec::N * 2); }
};
#if defined(ARMILLARY_AVX2) || defined(ARMILLARY_AVX512)
using InF16Wide = InF16;  // loading and widening are one instruction
#else
using InF16Wide = InF32;
#endif
struct InI8 {
  static constexpr int step = 1, line = 16;
  static constexpr bool grouped = false;
  struct Zero {};
  static Zero zero(const int8_t*) { return {}; }
  static Vec widen(const uint8_t* line, int v, int, Zero) {
    return Vec::load_i8(reinterpret_cast<const int8_t*>(line) + v * Vec::N);
  }
};
struct InI4 {  // symmetric: the middle of the range stands for zero
  static constexpr int step = 8, line = 64;
  static constexpr bool grouped = true;
  struct Zero {};
  static Zero zero(const int8_t*) { return {}; }
  static Vec widen(const uint8_t* line, int v, int i, Zero) {
    return Words::load(line + v * Vec::N * 4).nibble(i) - Vec::set(8.f);
  }
};
struct InI4Zeros {
  static constexpr int step = 8, line = 64;
  static constexpr bool grouped = true;
  using Zero = Vec;
  static Zero zero(const int8_t* zeros) { return Vec::load_i8(zeros); }
  static Vec widen(const uint8_t* line, int v, int i, Zero zero) {
    return Words::load(line + v * Vec::N * 4).nibble(i) - zero;
  }
};
struct InI4AsF32 : InF32 {  // 4-bit weights that were widened before: see linear_unit
  static constexpr bool grouped = true;
};

// Strips that R rows are multiplied with at once: enough chains to keep the multipliers busy, no more than registers hold.
// `several`: there are more tiles of rows, all of which meet one strip while it is in the first-level cache.
template <class Format>
constexpr int strips_at_once(int rows, bool several) {
  if (Vec::N == 16) return 4;
  if (several) return 1;
  if (Format::grouped && rows == 1) return 2;  // zero points take registers too
  if (Format::grouped) return 1;
  return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}

struct Strips {
  const uint8_t* data;       // first of the strips
  int64_t bytes;             // from strip to strip
  int64_t inputs;
  int64_t ahead;             // bytes from here to what is read later and can be fetched meanwhile; 0: nothing
  Scales scales;             // of the first strip's rows, in grouped formats
  const int8_t* zeros;

  Strips from(int strip) const {
    Strips later = *this;
    later.data += strip * bytes;
    later.scales = scales.from(strip * kStrip);
    later.zeros += strip * kStrip;
    return later;
  }
};

// The block's first strip, of 4-bit blocks with its scales and zero points.
inline Strips strips_of(const Layout& layout, const uint8_t* unit, int64_t block) {
  const uint8_t* data = unit + layout.offset(block);
  return {data + layout.block_head, layout.strip_bytes(block), layout.inputs(block), layout.block_bytes,
          {data, layout.scales}, reinterpret_cast<const int8_t*>(data + layout.scales_bytes)};
}

// sums [R][kUnit], at the first strip's column: continued, or begun if `start`. x: a tile's words, of R rows.
template <class Format, int R, int S, bool Fetch>
inline void chains(const Strips& strips, const float* x, float* sums, bool start) {
  constexpr int V = S * kStripVectors;
  constexpr int step = Format::step, most = step > 1 ? step : 2;
  Vec sum[R][V];
  typename Format::Zero zero[V];
  ARMILLARY_EACH for (int j = 0; j < V; ++j) zero[j] = Format::zero(strips.zeros + j * Vec::N);
  ARMILLARY_EACH for (int r = 0; r < R; ++r)
  ARMILLARY_EACH for (int j = 0; j < V; ++j)
    sum[r][j] = start || Format::grouped ? Vec::zero() : Vec::load(sums + r * kUnit + j * Vec::N);

  const uint8_t* data = strips.data;
  const int64_t bytes = strips.bytes, inputs = strips.inputs, ahead = strips.ahead;
  const auto weight = [&](int j, int i) {
    const uint8_t* line = data + (j / kStripVectors) * bytes + i / step * Format::line;
    if constexpr (step > 1) line = anew(line);
    return Format::widen(line, j % kStripVectors, i % step, zero[j]);
  };
  const auto multiply = [&](int i) {
    if constexpr (R <= V) {
      Vec one[R];
      ARMILLARY_EACH for (int r = 0; r < R; ++r) one[r] = Vec::set(x[i * R + r]);
      ARMILLARY_EACH for (int j = 0; j < V; ++j) {
        const Vec w = weight(j, i);
        ARMILLARY_EACH for (int r = 0; r < R; ++r) sum[r][j] = Vec::fma(w, one[r], sum[r][j]);
      }
    } else {
      Vec w[V];
      ARMILLARY_EACH for (int j = 0; j < V; ++j) w[j] = weight(j, i);
      ARMILLARY_EACH for (int r = 0; r < R; ++r) {
        const Vec one = Vec::set(x[i * R + r]);
        ARMILLARY_EACH for (int j = 0; j < V; ++j) sum[r][j] = Vec::fma(w[j], one, sum[r][j]);
      }
    }
  };

  int64_t left = inputs;
  for (; left >= most; left -= most) {
    if constexpr (Fetch) {
      ARMILLARY_EACH for (int s = 0; s < S; ++s)
      ARMILLARY_EACH for (int i = 0; i < most / step; ++i) prefetch(data + ahead + s * bytes + i * Format::line);
    }
    ARMILLARY_EACH for (int i = 0; i < most; ++i) multiply(i);
    data += most / step * Format::line;
    x += most * R;
  }
  ARMILLARY_EACH for (int i = 0; i < most - 1; ++i)
    if (i < left) multiply(i);

  ARMILLARY_EACH for (int j = 0; j < V; ++j) {
    Vec scale = Vec::zero();
    if constexpr (Format::grouped) scale = strips.scales.load(j * Vec::N);
    ARMILLARY_EACH for (int r = 0; r < R; ++r) {
      float* to = sums + r * kUnit + j * Vec::N;
      if constexpr (Format::grouped) {
        const Vec before = start ? Vec::zero() : Vec::load(to);
        Vec::fma(sum[r][j], scale, before).store(to);
      } else {
        sum[r][j].store(to);
      }
    }
  }
}

// Widens a strip into float32, kept as InF32 keeps it.
template <class Format>
inline void widen_strip(const Strips& strip, float* to) {
  constexpr int step = Format::step;
  typename Format::Zero zero[kStripVectors];
  for (int v = 0; v < kStripVectors; ++v) zero[v] = Format::zero(strip.zeros + v * Vec::N);
  for (int64_t k = 0; k < strip.inputs; k += step) {
    const uint8_t* line = strip.data + k / step * Format::line;
    ARMILLARY_EACH for (int i = 0; i < step; ++i) {
      if (step > 1 && k + i >= strip.inputs) break;
      ARMILLARY_EACH for (int v = 0; v < kStripVectors; ++v)
        Format::widen(line, v, i, zero[v]).store(to + (k + i) * kStrip + v * Vec::N);
    }
  }
}

// sums [rows][kUnit] = x W^T of one unit's first `count` strips. words: rows as pack_words leaves them. Wide: the format
// itself, or what strips are widened to in the scratch `wide` where whole tiles of rows read them.
template <class Format, class Wide>
inline void multiply_unit(const Layout& layout, const uint8_t* unit, int count, const RowTiles& tiles, const float* words,
                          float* sums, float* wide) {
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const Strips block = strips_of(layout, unit, b);
    const bool start = b == 0;
    if (tiles.few()) {
      with_rows(int(tiles.rows), [&](auto rows) {
        constexpr int R = decltype(rows)::value, S = strips_at_once<Format>(R, false);
        for (int s = 0; s < count; s += S)
          chains<Format, R, S, true>(block.from(s), words + b * layout.block * R, sums + s * kStrip, start);
      });
      continue;
    }
    constexpr int S = strips_at_once<Format>(kMostRows, true);
    for (int s = 0; s < count; s += S) {
      Strips strips = block.from(s);
      const uint8_t* next = strips.data + S * block.bytes;
      if constexpr (!__is_same(Format, Wide)) {
        for (int i = 0; i < S; ++i) widen_strip<Format>(strips.from(i), wide + i * block.inputs * kStrip);
        strips.data = reinterpret_cast<const uint8_t*>(wide);
        strips.bytes = block.inputs * kStrip * int64_t(sizeof(float));
      }
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t first = tiles.first(t);
        fetch_ahead(tiles, t, next, S * block.bytes);
        with_rows(int(tiles.first(t + 1) - first), [&](auto rows) {
          constexpr int R = decltype(rows)::value;
          chains<Wide, R, S, false>(strips, words + first * layout.in + b * layout.block * R,
                                    sums + first * kUnit + s * kStrip, start);
        });
      }
    }
  }
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
