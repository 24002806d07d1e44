// Products of several inputs at once: of 8- and 4-bit weights in integers, with activations rounded to 16 or to 8 bits, and of
// bfloat16 pairs.
//
// Sums of integers are exact, so their order is free. To 16 bits activations are rounded wherever there are instructions
// for such products: with a scale a block of inputs they lose far less than the weights lost, and two products take the place
// of one in float32. To 8 bits they are rounded if asked for: one scale a row and one sum over all inputs for 8-bit matrices;
// for 4-bit ones a scale a group, for a group's outliers then spoil no other group. Where there is a scale a block, the block's
// exact sum times its scales is added to the sum of the blocks before it, in order, in one chain of fused multiply-adds.
//
// Instructions that multiply unsigned with signed bytes add neighbours with saturation (AVX2) or take quads (VNNI). On AVX2
// bytes of 8-bit matrices are therefore widened to 16 bits first, where two products cannot overflow; the 4-bit ones are
// 0 to 15, of which eight pairs of products stay below 2^15. With VNNI the activations of 8-bit matrices are moved to 0 to 255,
// and 128 times the sum of a row's weights is taken off.
//
// Pairs of bfloat16 are added to a sum in float32, the later input first, each product rounded with the sum: one chain for
// each element of the result, as in linear_float.inl. Numbers too small for a full mantissa count as zero.
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

// Weights as they are kept, as vectors of integers. `line`: bytes of a strip with `words` words of a row's inputs.
struct InBytePairs {
  static constexpr int line = 32, words = 1;
  static Pairs weight(const uint8_t* line, int v, int) { return Pairs::widen(line + v * Vec::N * 2); }
};
#if defined(ARMILLARY_QUADS)
struct InBytes {
  static constexpr int line = 64, words = 1;
  static SignedQuads weight(const uint8_t* line, int v, int) { return SignedQuads::load(line + v * Vec::N * 4); }
};
#else
using InBytes = InBytePairs;
#endif
#if defined(ARMILLARY_BF16_PAIRS)
struct InBf16Pairs {
  static constexpr int line = 64, words = 1;
  static Bf16Pairs weight(const uint8_t* line, int v, int) { return Bf16Pairs::load(line + v * Vec::N * 4); }
};
#endif
struct InNibblePairs {
  static constexpr int line = 64, words = 4;
  static Pairs weight(const uint8_t* line, int v, int i) { return Pairs::nibbles(line + v * Vec::N * 4, i); }
};
struct InNibbleQuads {
  static constexpr int line = 64, words = 2;
  static Quads weight(const uint8_t* line, int v, int i) { return Quads::nibbles(line + v * Vec::N * 4, i); }
};
template <class Weight>
struct InWords {  // widened before
  static constexpr int line = 64, words = 1;
  static Weight weight(const uint8_t* line, int v, int) { return Weight::load(line + v * Vec::N * 4); }
};

// How the sums of a block go on.
enum class Sums {
  chained,  // to the next block, in float32
  whole,    // to the next block, as integers
  scaled,   // times the row's scale
  grouped   // with zero points taken off, times the row's and the group's scale
};

// What stands before a row's inputs for each block: their scale, and their sum as integers.
struct BlockOfRow {
  float scale;
  int32_t sum;
};

inline BlockOfRow head_of(const uint8_t* heads, int64_t row_bytes, int row) {
  BlockOfRow head;
  std::memcpy(&head, heads + row * row_bytes, sizeof head);
  return head;
}

// Minus the zero points of N rows times the sum of a row's inputs.
inline Integers less_zeros(const Strips& strips, int j, bool zero_points, int32_t sum) {
  if (!zero_points) return Integers::set(-8 * sum);
  return Integers::multiply(Integers::load_i8(strips.zeros + j * Vec::N), Integers::set(-sum));
}

template <Sums kind>
using SumOf = std::conditional_t<kind == Sums::chained, Vec, Integers>;
template <Sums kind>
using NumberOf = std::conditional_t<kind == Sums::chained, float, int32_t>;

// sums [R][kUnit] at the first strip's column, float32 or integers as `kind` says. x: a tile's words of this block. heads: of
// the tile's first row, this block's.
template <Sums kind, int R, int V>
inline void put_sums(const Strips& strips, const SumOf<kind> (&sum)[R][V], const uint8_t* heads, int64_t row_bytes,
                     float* sums, bool start) {
  ARMILLARY_EACH for (int r = 0; r < R; ++r) {
    if constexpr (kind == Sums::chained || kind == Sums::whole) {
      ARMILLARY_EACH for (int j = 0; j < V; ++j)
        sum[r][j].store(reinterpret_cast<NumberOf<kind>*>(sums) + r * kUnit + j * Vec::N);
    } else {
      const Vec scale = Vec::set(head_of(heads, row_bytes, r).scale);
      ARMILLARY_EACH for (int j = 0; j < V; ++j) {
        float* to = sums + r * kUnit + j * Vec::N;
        const Vec before = start ? Vec::zero() : Vec::load(to);
        const Vec factor = kind == Sums::grouped ? Vec::load(strips.scales + j * Vec::N) * scale : scale;
        Vec::fma(sum[r][j].floats(), factor, before).store(to);
      }
    }
  }
}

// Strips at once: a sum waits for the one before it for one cycle only, so eight lanes need no more chains than one strip has,
// and a matrix is read in the order in which it lies in memory.
constexpr int kDotStrips = Vec::N == 16 ? 4 : 1;

struct DotBlock {
  const Layout& layout;
  int64_t words;         // of a row's inputs in this block
  const uint8_t* heads;  // of the tile's first row, this block's
  int64_t row_bytes;
  bool start, zero_points;
};

// In sums of 32 bits all along.
template <class Format, Sums kind, int R, int S, bool Fetch>
inline void dots(const Strips& strips, const uint32_t* x, const DotBlock& block, float* sums) {
  constexpr int V = S * kStripVectors, U = Format::words > 1 ? Format::words : 2;
  using Sum = SumOf<kind>;
  Sum sum[R][V];
  ARMILLARY_EACH for (int r = 0; r < R; ++r)
  ARMILLARY_EACH for (int j = 0; j < V; ++j) {
    sum[r][j] = Sum::zero();
    if ((kind == Sums::chained || kind == Sums::whole) && !block.start)
      sum[r][j] = Sum::load(reinterpret_cast<const NumberOf<kind>*>(sums) + r * kUnit + j * Vec::N);
    if constexpr (kind == Sums::grouped)
      sum[r][j] = less_zeros(strips, j, block.zero_points, head_of(block.heads, block.row_bytes, r).sum);
  }
  const uint8_t* data = strips.data;
  const int64_t bytes = strips.bytes, ahead = strips.ahead;
  const auto multiply = [&](int i) {
    const auto weight = [&](int j) {
      const uint8_t* line = data + (j / kStripVectors) * bytes + i / Format::words * Format::line;
      if constexpr (Format::words > 1) line = anew(line);
      return Format::weight(line, j % kStripVectors, i % Format::words);
    };
    if constexpr (R <= V) {
      int32_t one[R];
      ARMILLARY_EACH for (int r = 0; r < R; ++r) one[r] = int32_t(x[i * R + r]);
      ARMILLARY_EACH for (int j = 0; j < V; ++j) {
        const auto w = weight(j);
        ARMILLARY_EACH for (int r = 0; r < R; ++r) sum[r][j] = w.add_to(sum[r][j], one[r]);
      }
    } else {
      decltype(weight(0)) w[V];
      ARMILLARY_EACH for (int j = 0; j < V; ++j) w[j] = weight(j);
      ARMILLARY_EACH for (int r = 0; r < R; ++r) {
        const int32_t one = int32_t(x[i * R + r]);
        ARMILLARY_EACH for (int j = 0; j < V; ++j) sum[r][j] = w[j].add_to(sum[r][j], one);
      }
    }
  };
  int64_t left = block.words;
  for (; left >= U; left -= U) {
    if constexpr (Fetch) {
      ARMILLARY_EACH for (int s = 0; s < S; ++s)
      ARMILLARY_EACH for (int i = 0; i < U / Format::words * Format::line; i += 64) prefetch(data + ahead + s * bytes + i);
    }
    ARMILLARY_EACH for (int i = 0; i < U; ++i) multiply(i);
    data += U / Format::words * Format::line;
    x += U * R;
  }
  if (U == 2 && left) multiply(0);
  put_sums<kind>(strips, sum, block.heads, block.row_bytes, sums, block.start);
}

// 4-bit weights with 8-bit inputs: in sums of 16 bits where they are quicker, for 32 inputs at a time.
template <class Format, int R, int S, bool Fetch>
inline void dots_in_parts(const Strips& strips, const uint32_t* x, const DotBlock& block, float* sums) {
  constexpr int V = S * kStripVectors;
  constexpr int kPart = 8;  // words
  Integers whole[R][V];
  ARMILLARY_EACH for (int r = 0; r < R; ++r)
  ARMILLARY_EACH for (int j = 0; j < V; ++j)
    whole[r][j] = less_zeros(strips, j, block.zero_points, head_of(block.heads, block.row_bytes, r).sum);
  const uint8_t* data = strips.data;
  const int64_t bytes = strips.bytes, ahead = strips.ahead;
  for (int64_t left = block.words; left > 0; left -= kPart) {
    Part part[R][V];
    ARMILLARY_EACH for (int r = 0; r < R; ++r)
    ARMILLARY_EACH for (int j = 0; j < V; ++j) part[r][j] = Part::zero();
    for (int step = 0; step < kPart; step += Format::words) {
      ARMILLARY_EACH for (int i = 0; i < Format::words; ++i) {
        if constexpr (R <= V) {
          int32_t one[R];
          ARMILLARY_EACH for (int r = 0; r < R; ++r) one[r] = int32_t(x[i * R + r]);
          ARMILLARY_EACH for (int j = 0; j < V; ++j) {
            const Quads w = Format::weight(anew(data + (j / kStripVectors) * bytes), j % kStripVectors, i);
            ARMILLARY_EACH for (int r = 0; r < R; ++r) part[r][j] = w.add_to(part[r][j], one[r]);
          }
        } else {
          Quads w[V];
          ARMILLARY_EACH for (int j = 0; j < V; ++j)
            w[j] = Format::weight(anew(data + (j / kStripVectors) * bytes), j % kStripVectors, i);
          ARMILLARY_EACH for (int r = 0; r < R; ++r) {
            const int32_t one = int32_t(x[i * R + r]);
            ARMILLARY_EACH for (int j = 0; j < V; ++j) part[r][j] = w[j].add_to(part[r][j], one);
          }
        }
      }
      if constexpr (Fetch) {
        ARMILLARY_EACH for (int s = 0; s < S; ++s) prefetch(data + ahead + s * bytes);
      }
      data += Format::line;
      x += Format::words * R;
    }
    ARMILLARY_EACH for (int r = 0; r < R; ++r)
    ARMILLARY_EACH for (int j = 0; j < V; ++j) whole[r][j] = part[r][j].add_to(whole[r][j]);
  }
  put_sums<Sums::grouped>(strips, whole, block.heads, block.row_bytes, sums, block.start);
}

template <class Format>
inline void widen_words(const Strips& strip, int64_t words, uint8_t* to) {
  for (int64_t i = 0; i < words; i += Format::words)
    ARMILLARY_EACH for (int k = 0; k < Format::words; ++k)
    ARMILLARY_EACH for (int v = 0; v < kStripVectors; ++v)
      Format::weight(strip.data + i / Format::words * Format::line, v, k).store(to + (i + k) * 64 + v * Vec::N * 4);
}

template <class Format, Sums kind, int R, int S, bool Fetch>
inline void dots_of(const Strips& strips, const uint32_t* x, const DotBlock& block, float* sums) {
  if constexpr (__is_same(decltype(Format::weight(nullptr, 0, 0)), Quads))
    dots_in_parts<Format, R, S, Fetch>(strips, x, block, sums);
  else
    dots<Format, kind, R, S, Fetch>(strips, x, block, sums);
}

// As multiply_unit has it. words: `per_word` inputs of a row each. heads: of the first row and block; rows are row_bytes apart.
template <class Format, class Wide, Sums kind>
inline void multiply_unit_dots(const Layout& layout, const uint8_t* unit, int count, const RowTiles& tiles,
                               const uint32_t* words, int per_word, const uint8_t* heads, int64_t row_bytes,
                               bool zero_points, float* sums, uint8_t* wide) {
  const int64_t row_words = round_up(layout.in, layout.pad) / per_word, block_words = layout.block / per_word;
  for (int64_t b = 0; b < layout.blocks; ++b) {
    const Strips first_strips = strips_of(layout, unit, b);
    DotBlock block{layout, round_up(layout.inputs(b), layout.pad) / per_word, heads + b * int64_t(sizeof(BlockOfRow)),
                   row_bytes, b == 0, zero_points};
    if (tiles.few()) {
      with_rows(int(tiles.rows), [&](auto rows) {
        constexpr int R = decltype(rows)::value, S = kDotStrips;
        for (int s = 0; s < count; s += S)
          dots_of<Format, kind, R, S, true>(first_strips.from(s), words + b * block_words * R, block, sums + s * kStrip);
      });
      continue;
    }
    constexpr int S = kDotStrips;
    for (int s = 0; s < count; s += S) {
      Strips strips = first_strips.from(s);
      const uint8_t* next = strips.data + S * strips.bytes;
      const int64_t next_bytes = S * strips.bytes;
      if constexpr (!__is_same(Format, Wide)) {
        for (int i = 0; i < S; ++i) widen_words<Format>(strips.from(i), block.words, wide + i * block.words * 64);
        strips.data = wide;
        strips.bytes = block.words * 64;
      }
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t first = tiles.first(t);
        fetch_ahead(tiles, t, next, next_bytes);
        DotBlock mine = block;
        mine.heads += first * row_bytes;
        with_rows(int(tiles.first(t + 1) - first), [&](auto rows) {
          constexpr int R = decltype(rows)::value;
          dots_of<Wide, kind, R, S, false>(strips, words + first * row_words + b * block_words * R, mine,
                                           sums + first * kUnit + s * kStrip);
        });
      }
    }
  }
}

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

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
