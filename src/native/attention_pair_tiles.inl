// The inner loops of attention in pairs of bfloat16: scores of some rows against panels of positions, weights, and weighted sums
// of values.
//
// Every score is one chain over the pairs of dimensions, every weighted value one over the pairs of positions of its piece that
// the row sees, from zero and in order, whichever of these loops computes it, with however many rows beside it. Of a pair of which
// a row sees one half, the other is zero for that row; other pairs that it does not see it does not touch.
#pragma once
#include "attention_desk.inl"

#if defined(ARMILLARY_PAIRED_ATTENTION)

namespace armillary {
namespace ARMILLARY_PATH {

static_assert(Vec::N == kPanel, "a vector has a pair of a panel's positions");

// Rows computed together, with two vectors each.
constexpr int kPairedRows = 12;
constexpr int kLine = 64;                           // bytes of a vector of pairs
constexpr int kStripBytes = kPiece / 2 * kLine;     // of one vector of dimensions in the copy of a piece's values
constexpr int32_t kOnes = 0x3f803f80;               // the pair (1, 1)

// Keys of 16 positions, a line a pair of dimensions.
struct KeyPanel {
  const uint8_t* keys;
  const uint8_t* ahead;  // memory that will be read soon, as much as the keys
  int place;             // of the first position in the piece
};

// Pairs of positions whose values lie one after another.
struct PairRun {
  const uint8_t* values;  // of the first of them
  int first, count;       // in pairs of the piece
  const uint8_t* ahead;   // memory that will be read soon, as much as these values
};

inline int32_t pair_at(const uint16_t* numbers, int64_t pair) {
  int32_t both;
  std::memcpy(&both, numbers + 2 * pair, sizeof both);
  return both;
}

// Scores of R rows against W panels; queries `width` apart, out rows kPiece apart.
template <int R, int W, bool Fetch>
ARMILLARY_APART void score_panels_paired(const uint16_t* queries, int64_t width, const KeyPanel* panels, int pairs,
                                         float* out) {
  Vec sums[R][W];
  const uint8_t *keys[W], *soon[W];
  ARMILLARY_UNROLL
  for (int w = 0; w < W; ++w) {
    keys[w] = panels[w].keys;
    soon[w] = panels[w].ahead;
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) sums[r][w] = Vec::zero();
  }
  for (int pair = 0; pair < pairs; ++pair) {
    Bf16Pairs key[W];
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) {
      key[w] = Bf16Pairs::load(keys[w] + pair * kLine);
      if (Fetch) __builtin_prefetch(soon[w] + pair * kLine, 0, 2);
    }
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) {
      const int32_t query = pair_at(queries + r * width, pair);
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) sums[r][w] = key[w].add_to(sums[r][w], query);
    }
  }
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) sums[r][w].store(out + r * kPiece + panels[w].place);
  }
}

// A row's weights, rounded, for the positions [first, last) of a piece and 0 for others, relative to the largest logit `top`, and
// the sum of those that it sees. A logit is a score times `factor`. `Plain`: without a softcap.
template <bool Whole, bool Plain>
inline float soften_paired(const float* scores, int first, int last, float factor, const ScoreRules& rules, float& top,
                           uint16_t* weights) {
  const Vec hidden = Vec::set(-__builtin_inff()), scale = Vec::set(factor);
  Vec x[kPieceVecs], most = hidden;
  ARMILLARY_UNROLL
  for (int w = 0; w < kPieceVecs; ++w) {
    x[w] = Vec::load(scores + w * Vec::N) * scale;
    if (!Plain) x[w] = rules.logit(x[w], w * Vec::N);
    if (!Whole) x[w] = hide(x[w], w * Vec::N, first, last, hidden);
    most = Vec::max(x[w], most);  // NaN is left out: it comes back in the weights
  }
  top = top_of(most);
  const Vec base = Vec::set(base_of(top));
  ARMILLARY_UNROLL
  for (int w = 0; w < kPieceVecs; ++w) x[w] = x[w] - base;
  exp2_below(x);
  Vec total = Vec::zero();
  ARMILLARY_UNROLL
  for (int w = 0; w < kPieceVecs; w += 2) {
    const Bf16Pairs pairs = Bf16Pairs::of(x[w], x[w + 1]);
    pairs.store(weights + w * Vec::N);
    total = pairs.add_to(total, kOnes);
  }
  return sum_of(total);
}

// Weighted sums for R rows of `passes` times W vectors of dimensions from the vector `column` on; weights [R] kPiece apart. The
// values are the cache's own, a pair's `step` bytes after those of the pair before, or `Copied` into strips of one vector.
template <int R, int W, bool Copied>
ARMILLARY_APART void weigh_paired(const uint16_t* weights, const PairRun* runs, int64_t step, int column, int passes,
                                  const Sight& sight, const Target& target) {
  constexpr int64_t kApart = Copied ? kStripBytes : kLine;
  if (Copied) step = kLine;
  const int least = sight.least / 2, most = (sight.most + 1) / 2;
  const int begin = (sight.begin + 1) / 2, end = sight.end / 2;  // what all see both halves of
  for (int pass = 0; pass < passes; ++pass, column += W) {
    Vec total[R][W];
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) {
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) total[r][w] = Vec::zero();
    }
    const PairRun* run = runs;
    for (int at = least; at < most;) {
      while (run->first + run->count <= at) ++run;
      const bool all = at >= begin && at < end;
      const int last = all ? end : at < begin && begin < end ? begin : most;
      const int stop = run->first + run->count < last ? run->first + run->count : last;
      const uint8_t* v = run->values + (at - run->first) * step + column * kApart;
      if (all) {
        // Part after part of what is ahead, as each pass over the positions reads another part of their values.
        const uint8_t* soon = run->ahead + (int64_t(pass) * run->count + at - run->first) * W * kLine;
        for (; at < stop; ++at, v += step) {
          Bf16Pairs value[W];
          ARMILLARY_UNROLL
          for (int w = 0; w < W; ++w) {
            value[w] = Bf16Pairs::load(v + w * kApart);
            if (!Copied) __builtin_prefetch(soon + w * kLine, 0, 2);
          }
          soon += W * kLine;
          ARMILLARY_UNROLL
          for (int r = 0; r < R; ++r) {
            const int32_t weight = pair_at(weights + r * kPiece, at);
            ARMILLARY_UNROLL
            for (int w = 0; w < W; ++w) total[r][w] = value[w].add_to(total[r][w], weight);
          }
        }
        continue;
      }
      for (; at < stop; ++at, v += step) {
        Bf16Pairs value[W];
        ARMILLARY_UNROLL
        for (int w = 0; w < W; ++w) value[w] = Bf16Pairs::load(v + w * kApart);
        ARMILLARY_UNROLL
        for (int r = 0; r < R; ++r) {
          const int first = sight.first[r] - 2 * at, last = sight.last[r] - 2 * at;
          if (first > 1 || last < 1) continue;
          const uint32_t seen = first == 1 ? 0xffff0000u : last == 1 ? 0xffffu : 0xffffffffu;
          const int32_t weight = pair_at(weights + r * kPiece, at);
          ARMILLARY_UNROLL
          for (int w = 0; w < W; ++w) total[r][w] = value[w].only(seen).add_to(total[r][w], weight);
        }
      }
    }
    put<Element::f32, R, W>(total, target, int64_t(column) * Vec::N);
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary

#endif
