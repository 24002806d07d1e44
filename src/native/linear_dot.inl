// Products of several inputs at once: of 8- and 4-bit weights in integers, with activations rounded to 16 or to 8 bits, and of
// bfloat16 pairs.
//
// Sums of integers are exact, so their order is free. To 16 bits activations are rounded wherever there are instructions
// for such products: with a scale a block of inputs they lose far less than the weights lost, and two products take the place
// of one in float32. To 8 bits they are rounded if asked for: one scale a row and one sum over all inputs for 8-bit matrices;
// for 4-bit ones a scale a group, for a group's outliers then spoil no other group. Where there is a scale a block, the block's
// exact sum times its scales is added to the sum of the blocks before it, in order, in one chain of fused multiply-adds.
//
// Instructions that multiply unsigned with signed bytes add neighbours with saturation, or take quads (VNNI). Without VNNI
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
// What several tiles of rows read: with sixteen lanes each taking nibbles apart costs less than writing them apart for all.
template <class Format, class Weight>
using InWide = std::conditional_t<Vec::N == 16, Format, InWords<Weight>>;

template <class Format>
inline void widen_words(const uint8_t* data, int64_t words, uint8_t* to) {
  for (int64_t i = 0; i < words; i += Format::words, data += Format::line)
    ARMILLARY_EACH for (int k = 0; k < Format::words; ++k)
    ARMILLARY_EACH for (int v = 0; v < kStripVectors; ++v)
      Format::weight(data, v, k).store(to + (i + k) * 64 + v * Vec::N * 4);
}

// Bytes of weights that several tiles of rows meet one after the other, which must stay in the first-level cache meanwhile: of
// whole units as many blocks.
constexpr int64_t kRunBytes = 16384;
// How far ahead of a single tile memory is fetched, or a block where that is more; of short blocks less far.
constexpr int64_t kAhead = 8192, kAheadShort = 6144, kShort = 4096;

// As multiply_unit has it. words: `per_word` inputs of a row each. heads: of the first row and block; rows are row_bytes apart.
template <class Format, class Wide, Sums kind>
inline void multiply_unit_dots(const Layout& layout, const uint8_t* unit, int count, const RowTiles& tiles,
                               const uint32_t* words, int per_word, const uint8_t* heads, int64_t row_bytes,
                               bool zero_points, float* sums, uint8_t* wide) {
  constexpr int S = strips_of_dots<Wide>();
  constexpr bool whole_units = S == kStrips;
  if (kind == Sums::scaled || kind == Sums::grouped) std::memset(sums, 0, size_t(tiles.rows * kUnitFloats));
  const int64_t row_words = round_up(layout.in, layout.pad) / per_word, block_words = layout.block / per_word;
  const int64_t wide_strip = block_words / Wide::words * Wide::line;
  const int64_t fit = kRunBytes / (S * wide_strip);
  const bool alone = tiles.count == 1;
  const int64_t most = !whole_units || fit < 1 ? 1 : alone ? layout.blocks : fit;
  DotRun run;
  run.row_bytes = row_bytes;
  run.scales_step = layout.block_bytes;
  run.zero_points = zero_points;
  const auto fetch = [&](const uint8_t* from, int64_t bytes, int64_t turns) {
    run.soon = from;
    run.soon_step = bytes;
    run.soon_lines = (bytes + 64 * turns - 1) / (64 * turns);
  };
  for (int64_t b = 0; b < layout.blocks; b += most) {
    const int64_t blocks = smaller(most, layout.blocks - b), last = b + blocks - 1;
    const uint8_t* block = unit + layout.offset(b);
    const uint8_t* strips = block + layout.block_head;
    const int64_t bytes = layout.strip_bytes(b);
    run.words = round_up(layout.inputs(b), layout.pad) / per_word;
    run.last_words = round_up(layout.inputs(last), layout.pad) / per_word;
    run.blocks = int(blocks);
    run.start = b == 0;
    run.heads = heads + b * int64_t(sizeof(BlockOfRow));
    const auto read_strips = [&](int first, int some) {
      run.data = strips + first * bytes;
      run.block_bytes = layout.block_bytes;
      run.strip_bytes = bytes;
      run.last_strip_bytes = layout.strip_bytes(last);
      run.strips = some;
      run.scales = Scales{block, layout.scales}.from(first * kStrip);
      run.zeros = reinterpret_cast<const int8_t*>(block + layout.scales_bytes + first * kStrip);
    };
    if (alone) {
      read_strips(0, count);
      constexpr int64_t turn = turn_of<Format>();
      if (whole_units)
        fetch(block + (layout.block_bytes < kShort ? kAheadShort : larger(layout.block_bytes, kAhead)), layout.block_bytes,
              block_words / turn);
      else
        fetch(strips + layout.block_bytes, S * bytes, block_words / turn);
      with_rows(int(tiles.rows), [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        dots_of<Format, kind, R, S>(run, words + b * block_words * R, sums);
      });
      continue;
    }
    for (int s = 0; s < count; s += S) {
      read_strips(s, S);
      const uint8_t* next = whole_units ? block + blocks * layout.block_bytes : run.data + S * bytes;
      const int64_t next_bytes = whole_units ? blocks * layout.block_bytes : S * bytes;
      if constexpr (!__is_same(Format, Wide)) {
        static_assert(!whole_units, "there is room for one block");
        for (int k = 0; k < S; ++k) widen_words<Format>(run.data + k * bytes, block_words, wide + k * wide_strip);
        run.data = wide;
        run.strip_bytes = run.last_strip_bytes = wide_strip;
      }
      fetch(next, round_up(next_bytes / (tiles.count * blocks), 64), block_words / turn_of<Wide>());
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t first = tiles.first(t);
        run.heads = heads + b * int64_t(sizeof(BlockOfRow)) + first * row_bytes;
        run.soon = next + t * blocks * run.soon_step;
        with_rows(int(tiles.first(t + 1) - first), [&](auto rows) {
          constexpr int R = decltype(rows)::value;
          dots_of<Wide, kind, R, S>(run, words + first * row_words + b * block_words * R,
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
