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
constexpr int kMostRows = 6;  // of one tile: with 16 (eight lanes) or 64 outputs (sixteen) their sums fill the registers

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
template <class Format>
constexpr int strips_at_once(int rows) {
  if (Vec::N == 16) return 4;
  if (Format::grouped && rows == 1) return 2;  // zero points take registers too
  if (Format::grouped) return 1;
  return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}

struct Strips {
  const uint8_t* data;       // first of the strips
  int64_t bytes;             // from strip to strip
  int64_t inputs;
  int64_t ahead;             // bytes from here to what is read later and can be fetched meanwhile; 0: nothing
  const float* scales;       // of the first strip's rows, in grouped formats
  const int8_t* zeros;
};

// sums [R][kUnit], at the first strip's column: continued, or begun if `start`.
template <class Format, int R, int S, bool Fetch>
inline void chains(const Strips& strips, const float* x, int64_t x_stride, float* sums, bool start) {
  constexpr int V = S * kStripVectors;
  constexpr int step = Format::step;
  Vec sum[R][V];
  typename Format::Zero zero[V];
  ARMILLARY_EACH for (int j = 0; j < V; ++j) zero[j] = Format::zero(strips.zeros + j * Vec::N);
  ARMILLARY_EACH for (int r = 0; r < R; ++r)
  ARMILLARY_EACH for (int j = 0; j < V; ++j)
    sum[r][j] = start || Format::grouped ? Vec::zero() : Vec::load(sums + r * kUnit + j * Vec::N);

  const uint8_t* const data = strips.data;
  const int64_t bytes = strips.bytes, inputs = strips.inputs;
  const auto weight = [&](int64_t k, int j, int i) {
    const uint8_t* line = data + (j / kStripVectors) * bytes + k / step * Format::line;
    if constexpr (step > 1) line = anew(line);
    return Format::widen(line, j % kStripVectors, i, zero[j]);
  };
  const auto multiply = [&](int64_t k, int i) {
    if constexpr (R <= V) {
      Vec one[R];
      ARMILLARY_EACH for (int r = 0; r < R; ++r) one[r] = Vec::set(x[r * x_stride + k + i]);
      ARMILLARY_EACH for (int j = 0; j < V; ++j) {
        const Vec w = weight(k, j, i);
        ARMILLARY_EACH for (int r = 0; r < R; ++r) sum[r][j] = Vec::fma(w, one[r], sum[r][j]);
      }
    } else {
      Vec w[V];
      ARMILLARY_EACH for (int j = 0; j < V; ++j) w[j] = weight(k, j, i);
      ARMILLARY_EACH for (int r = 0; r < R; ++r) {
        const Vec one = Vec::set(x[r * x_stride + k + i]);
        ARMILLARY_EACH for (int j = 0; j < V; ++j) sum[r][j] = Vec::fma(w[j], one, sum[r][j]);
      }
    }
  };

  int64_t k = 0;
  for (; k + step <= inputs; k += step) {
    if constexpr (Fetch) {
      ARMILLARY_EACH for (int s = 0; s < S; ++s)
        prefetch(data + strips.ahead + s * bytes + k / step * Format::line);
    }
    ARMILLARY_EACH for (int i = 0; i < step; ++i) multiply(k, i);
  }
  if constexpr (step > 1) {
    ARMILLARY_EACH for (int i = 0; i < step - 1; ++i)
      if (k + i < inputs) multiply(k, i);
  }

  ARMILLARY_EACH for (int r = 0; r < R; ++r)
  ARMILLARY_EACH for (int j = 0; j < V; ++j) {
    float* to = sums + r * kUnit + j * Vec::N;
    if constexpr (Format::grouped) {
      const Vec before = start ? Vec::zero() : Vec::load(to);
      Vec::fma(sum[r][j], Vec::load(strips.scales + j * Vec::N), before).store(to);
    } else {
      sum[r][j].store(to);
    }
  }
}

// The chains of R rows with strips [0, count), several at once.
template <class Format, int R, bool Fetch>
inline void chains_of_strips(Strips strips, int count, const float* x, int64_t x_stride, float* sums, bool start) {
  constexpr int S = strips_at_once<Format>(R);
  for (int s = 0; s < count; s += S) {
    chains<Format, R, S, Fetch>(strips, x, x_stride, sums + s * kStrip, start);
    strips.data += S * strips.bytes;
    strips.scales += S * kStrip;
    strips.zeros += S * kStrip;
  }
}

// One block of a unit for all rows, six at a time; each strip of the block meets all rows before the next one is read.
template <class Format, bool Fetch>
inline void multiply_block(const Strips& block, int count, const float* x, int64_t x_stride, int64_t rows, float* sums,
                           bool start) {
  constexpr int S = strips_at_once<Format>(kMostRows);
  const int64_t whole = rows - rows % kMostRows;
  if (whole) {
    Strips strips = block;
    for (int s = 0; s < count; s += S) {
      for (int64_t row = 0; row < whole; row += kMostRows)
        chains<Format, kMostRows, S, Fetch>(strips, x + row * x_stride, x_stride, sums + row * kUnit + s * kStrip, start);
      strips.data += S * strips.bytes;
      strips.scales += S * kStrip;
      strips.zeros += S * kStrip;
    }
  }
  const float* rest = x + whole * x_stride;
  float* to = sums + whole * kUnit;
  switch (rows - whole) {
    case 1: chains_of_strips<Format, 1, Fetch>(block, count, rest, x_stride, to, start); break;
    case 2: chains_of_strips<Format, 2, Fetch>(block, count, rest, x_stride, to, start); break;
    case 3: chains_of_strips<Format, 3, Fetch>(block, count, rest, x_stride, to, start); break;
    case 4: chains_of_strips<Format, 4, Fetch>(block, count, rest, x_stride, to, start); break;
    case 5: chains_of_strips<Format, 5, Fetch>(block, count, rest, x_stride, to, start); break;
    default: break;
  }
}

// Widens a block's strips into float32, kept as InF32 keeps them: worth it where several tiles of rows read them.
template <class Format>
inline void widen_block(const Strips& block, int count, float* wide) {
  constexpr int step = Format::step;
  for (int s = 0; s < count; ++s) {
    const uint8_t* strip = block.data + s * block.bytes;
    float* to = wide + s * block.inputs * kStrip;
    typename Format::Zero zero[kStripVectors];
    for (int v = 0; v < kStripVectors; ++v) zero[v] = Format::zero(block.zeros + s * kStrip + v * Vec::N);
    for (int64_t k = 0; k < block.inputs; k += step) {
      const uint8_t* line = strip + k / step * Format::line;
      ARMILLARY_EACH for (int i = 0; i < step; ++i) {
        if (step > 1 && k + i >= block.inputs) break;
        ARMILLARY_EACH for (int v = 0; v < kStripVectors; ++v)
          Format::widen(line, v, i, zero[v]).store(to + (k + i) * kStrip + v * Vec::N);
      }
    }
  }
}

// sums [rows][kUnit] = x W^T of one unit's first `count` strips. Wide: for formats whose widening takes more than an
// operation or two, the scratch (kUnit * block floats) to which blocks are widened if there are several tiles of rows.
template <class Format, class Wide>
inline void multiply_unit(const Layout& layout, const uint8_t* unit, int count, const float* x, int64_t x_stride,
                          int64_t rows, float* sums, float* wide) {
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const uint8_t* data = unit + layout.offset(b);
    Strips block;
    block.data = data + layout.block_head;
    block.bytes = layout.strip_bytes(b);
    block.inputs = layout.inputs(b);
    block.ahead = layout.block_bytes;
    block.scales = reinterpret_cast<const float*>(data);
    block.zeros = reinterpret_cast<const int8_t*>(data + kUnitFloats);
    const float* from = x + b * layout.block;
    if (rows <= kMostRows) {
      multiply_block<Format, true>(block, count, from, x_stride, rows, sums, b == 0);
    } else if constexpr (sizeof(Wide) > 0 && !__is_same(Format, Wide)) {
      widen_block<Format>(block, count, wide);
      block.data = reinterpret_cast<const uint8_t*>(wide);
      block.bytes = block.inputs * kStrip * int64_t(sizeof(float));
      multiply_block<Wide, false>(block, count, from, x_stride, rows, sums, b == 0);
    } else {
      multiply_block<Format, false>(block, count, from, x_stride, rows, sums, b == 0);
    }
  }
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
