// One tile of rows against some strips of weights, for all kinds of products of several inputs at once: see linear_dot.inl.
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace armillary {
namespace ARMILLARY_PATH {
namespace packed {

#if defined(ARMILLARY_AVX512)
// A function of its own for each shape: of so many registers GCC makes more in small functions. With fewer it does not.
#define ARMILLARY_DOTS __attribute__((noinline))
#else
#define ARMILLARY_DOTS inline
#endif

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

// Some blocks of inputs, of some strips, that one tile of rows meets in one go.
struct DotRun {
  const uint8_t* data;        // first block, first strip
  int64_t block_bytes;        // from block to block of `data`
  int64_t strip_bytes;        // from strip to strip
  int64_t last_strip_bytes;   // in the last block
  int64_t words;              // of a row's inputs in a block
  int64_t last_words;
  int blocks;
  int strips;
  Scales scales;              // of the first block and strip, in grouped formats, and
  const int8_t* zeros;        // its zero points;
  int64_t scales_step;        // bytes from block to block of both
  bool zero_points;
  bool start;                 // whether sums that go on as they are begin here; others are added to what is there
  const uint8_t* heads;       // of the tile's first row, the first block's; rows are row_bytes apart
  int64_t row_bytes;
  const uint8_t* soon;        // what is read later and can be fetched meanwhile,
  int64_t soon_step;          // so many bytes with the strips at once of each block,
  int64_t soon_lines;         // so many lines with each turn of the inner loop

  bool last(int block) const { return block == blocks - 1; }
  int64_t words_of(int block) const { return last(block) ? last_words : words; }
  int64_t bytes_of(int block) const { return last(block) ? last_strip_bytes : strip_bytes; }
  BlockOfRow head(int block, int row) const {
    BlockOfRow found;
    std::memcpy(&found, heads + block * int64_t(sizeof found) + row * row_bytes, sizeof found);
    return found;
  }
};

// What is fetched with the strips from `strip` on, of which S are read at once.
template <int S>
struct Fetching {
  const uint8_t* at;
  const uint8_t* end;
  int64_t lines;

  Fetching(const DotRun& run, int block, int strip)
      : at(run.soon + (block * ((run.strips + S - 1) / S) + strip / S) * run.soon_step),
        end(at + run.soon_step),
        lines(run.soon_lines) {}
  void operator()() {
    for (int64_t i = 0; i < lines && at < end; ++i, at += 64) prefetch(at);
  }
};

// Minus the zero points times the sum of a row's inputs.
template <int R, int V>
inline void less_zeros(const DotRun& run, int block, int strip, Integers (&sum)[R][V]) {
  if (!run.zero_points) {
    ARMILLARY_EACH for (int r = 0; r < R; ++r) {
      const Integers less = Integers::set(-8 * run.head(block, r).sum);
      ARMILLARY_EACH for (int j = 0; j < V; ++j) sum[r][j] = less;
    }
    return;
  }
  const int8_t* zeros = run.zeros + block * run.scales_step + strip * kStrip;
  ARMILLARY_EACH for (int r = 0; r < R; ++r) {
    const Integers inputs = Integers::set(-run.head(block, r).sum);
    ARMILLARY_EACH for (int j = 0; j < V; ++j)
      sum[r][j] = Integers::multiply(Integers::load_i8(zeros + j * Vec::N), inputs);
  }
}

// sums [R][kUnit] += a block's exact sums times its scales.
template <bool grouped, int R, int V>
inline void put_scaled(const DotRun& run, int block, int strip, const Integers (&sum)[R][V], float* sums) {
  const Scales scales = Scales{run.scales.data + block * run.scales_step, run.scales.kept}.from(strip * kStrip);
  sums += strip * kStrip;
  asm volatile("" : "+r"(sums));  // so that they stay where they are, and take no registers from block to block
  ARMILLARY_EACH for (int j = 0; j < V; ++j) {
    const Vec own = grouped ? scales.load(j * Vec::N) : Vec::zero();
    ARMILLARY_EACH for (int r = 0; r < R; ++r) {
      const Vec scale = Vec::set(run.head(block, r).scale);
      float* to = sums + r * kUnit + j * Vec::N;
      const Vec factor = grouped ? own * scale : scale;
      Vec::fma(sum[r][j].floats(), factor, Vec::load(to)).store(to);
    }
  }
}

// sum += the products of U words of R rows with V vectors of weights.
template <class Format, int U, int R, int V, class Sum>
inline void add_words(const uint8_t* data, int64_t bytes, const uint32_t* x, Sum (&sum)[R][V]) {
  ARMILLARY_EACH for (int i = 0; i < U; ++i) {
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
  }
}

// sums [R][kUnit] at the first strip's column, float32 or integers as `kind` says; x: a tile's words from the run's first block
// on. In sums of 32 bits all along.
template <class Format, Sums kind, int R, int S>
ARMILLARY_DOTS void dots(const DotRun& run, const uint32_t* x, float* sums) {
  constexpr int V = S * kStripVectors, U = Format::words > 1 ? Format::words : 2;
  constexpr bool goes_on = kind == Sums::chained || kind == Sums::whole;
  using Sum = std::conditional_t<kind == Sums::chained, Vec, Integers>;
  using Number = std::conditional_t<kind == Sums::chained, float, int32_t>;
  for (int s = 0; s < run.strips; s += S) {
    Number* numbers = reinterpret_cast<Number*>(sums) + s * kStrip;
    const uint32_t* words = x;
    Sum sum[R][V];
    ARMILLARY_EACH for (int r = 0; r < R; ++r)
    ARMILLARY_EACH for (int j = 0; j < V; ++j)
      sum[r][j] = goes_on && !run.start ? Sum::load(numbers + r * kUnit + j * Vec::N) : Sum::zero();
    for (int b = 0; b < run.blocks; ++b) {
      const int64_t bytes = run.bytes_of(b);
      const uint8_t* data = run.data + b * run.block_bytes + s * bytes;
      Fetching<S> fetch(run, b, s);
      if constexpr (kind == Sums::grouped) less_zeros(run, b, s, sum);
      int64_t left = run.words_of(b);
      for (; left >= U; left -= U) {
        fetch();
        add_words<Format, U>(data, bytes, words, sum);
        data += U / Format::words * Format::line;
        words += U * R;
      }
      if constexpr (kind != Sums::grouped) {
        if (left) add_words<Format, 1>(data, bytes, words, sum);
      }
      if constexpr (!goes_on) {
        put_scaled<kind == Sums::grouped>(run, b, s, sum, sums);
        ARMILLARY_EACH for (int r = 0; r < R; ++r)
        ARMILLARY_EACH for (int j = 0; j < V; ++j) sum[r][j] = Sum::zero();
      }
    }
    if constexpr (goes_on) {
      ARMILLARY_EACH for (int r = 0; r < R; ++r)
      ARMILLARY_EACH for (int j = 0; j < V; ++j) sum[r][j].store(numbers + r * kUnit + j * Vec::N);
    }
  }
}

#if defined(ARMILLARY_PARTS)
// 4-bit weights with 8-bit inputs: in sums of 16 bits for 32 inputs at a time.
template <class Format, int R, int S>
__attribute__((noinline)) void dots_in_parts(const DotRun& run, const uint32_t* x, float* sums) {
  constexpr int V = S * kStripVectors;
  constexpr int kPart = 8;  // words
  for (int s = 0; s < run.strips; s += S) {
    const uint32_t* words = x;
    for (int b = 0; b < run.blocks; ++b) {
      const uint8_t* data = run.data + b * run.block_bytes + s * run.strip_bytes;
      Fetching<S> fetch(run, b, s);
      Integers whole[R][V];
      less_zeros(run, b, s, whole);
      for (int64_t left = run.words; left > 0; left -= kPart) {
        fetch();
        Part part[R][V];
        ARMILLARY_EACH for (int r = 0; r < R; ++r)
        ARMILLARY_EACH for (int j = 0; j < V; ++j) part[r][j] = Part::zero();
        for (int step = 0; step < kPart; step += Format::words) {
          add_words<Format, Format::words>(data, run.strip_bytes, words, part);
          data += Format::line;
          words += Format::words * R;
        }
        ARMILLARY_EACH for (int r = 0; r < R; ++r)
        ARMILLARY_EACH for (int j = 0; j < V; ++j) whole[r][j] = part[r][j].add_to(whole[r][j]);
      }
      put_scaled<true>(run, b, s, whole, sums);
    }
  }
}
#endif

template <class Format>
constexpr bool in_parts() {
#if defined(ARMILLARY_PARTS)
  return __is_same(decltype(Format::weight(nullptr, 0, 0)), Quads);
#else
  return false;
#endif
}

// Words of a turn of the inner loop.
template <class Format>
constexpr int64_t turn_of() {
  return in_parts<Format>() ? 8 : Format::words > 1 ? Format::words : 2;
}

// Strips at once: a sum waits for the one before it for one cycle only, so eight lanes need no more chains than one strip has,
// and a matrix is read in the order in which it lies in memory. Sums in two parts take twice the registers.
template <class Format>
constexpr int strips_of_dots() {
  return Vec::N < 16 ? 1 : in_parts<Format>() ? kStrips / 2 : kStrips;
}

template <class Format, Sums kind, int R, int S>
inline void dots_of(const DotRun& run, const uint32_t* x, float* sums) {
#if defined(ARMILLARY_PARTS)
  if constexpr (in_parts<Format>())
    dots_in_parts<Format, R, S>(run, x, sums);
  else
#endif
    dots<Format, kind, R, S>(run, x, sums);
}

}  // namespace packed
}  // namespace ARMILLARY_PATH
}  // namespace armillary
