// Keys and values of 8 bits, multiplied as whole numbers.
//
// A row's query, and its weights for a piece's values, are rounded to 16 bits of their largest. Two products with 8 bits then
// take the instructions of one in float32, and all sums are exact: 32767 * 127 * 512 is below 2^31. So they have no order, and
// what a row does not see just has the weight 0.
#pragma once
#include <cstring>

#include "attention_piece.inl"

namespace armillary {
namespace ARMILLARY_PATH {

// PairLanes of 16-bit numbers, or 32-bit sums of their products, as many as a Vec has lanes.
struct PairLanes {
#if defined(__AVX512F__)
  __m512i v;
  static PairLanes zero() { return {_mm512_setzero_si512()}; }
  static PairLanes set(int32_t pair) { return {_mm512_set1_epi32(pair)}; }
  static PairLanes load(const int8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static PairLanes add_products(PairLanes a, PairLanes b, PairLanes sum) { return {add_pairs(sum.v, a.v, b.v)}; }
  Vec numbers() const { return {_mm512_cvtepi32_ps(v)}; }
  // Whole numbers of 2 N lanes to 16 bits each.
  static void narrow(Vec low, Vec high, int16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(low.v)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(high.v)));
  }
#elif defined(__AVX2__)
  __m256i v;
  static PairLanes zero() { return {_mm256_setzero_si256()}; }
  static PairLanes set(int32_t pair) { return {_mm256_set1_epi32(pair)}; }
  static PairLanes load(const int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static PairLanes add_products(PairLanes a, PairLanes b, PairLanes sum) {
    PairLanes found = {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v))};
    // Compilers know that whole numbers may be added in any order, and find one that needs more registers than there are.
    asm("" : "+x"(found.v));
    return found;
  }
  Vec numbers() const { return {_mm256_cvtepi32_ps(v)}; }
  static void narrow(Vec low, Vec high, int16_t* to) {
    const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(low.v), _mm256_cvtps_epi32(high.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xd8));
  }
#else
  typedef int32_t Words __attribute__((vector_size(4 * Vec::N)));
  typedef int16_t Halves __attribute__((vector_size(4 * Vec::N)));
  typedef int8_t Bytes __attribute__((vector_size(2 * Vec::N)));
  Words v;
  static PairLanes zero() { return {Words{}}; }
  static PairLanes set(int32_t pair) { return {Words{} + pair}; }
  static PairLanes load(const int8_t* p) {
    Bytes narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    const Halves wide = __builtin_convertvector(narrow, Halves);
    PairLanes found;
    std::memcpy(&found.v, &wide, sizeof wide);
    return found;
  }
  static PairLanes add_products(PairLanes a, PairLanes b, PairLanes sum) {
    Halves x, y;
    std::memcpy(&x, &a.v, sizeof x);
    std::memcpy(&y, &b.v, sizeof y);
    Words even, odd;
    for (int i = 0; i < Vec::N; ++i) {
      even[i] = int32_t(x[2 * i]) * y[2 * i];
      odd[i] = int32_t(x[2 * i + 1]) * y[2 * i + 1];
    }
    // What no row sees may be anything, and its sums too large.
    typedef uint32_t Bits __attribute__((vector_size(4 * Vec::N)));
    return {(Words)((Bits)sum.v + (Bits)even + (Bits)odd)};
  }
  Vec numbers() const {
    float found[Vec::N];
    for (int i = 0; i < Vec::N; ++i) found[i] = float(v[i]);
    return Vec::load(found);
  }
  static void narrow(Vec low, Vec high, int16_t* to) {
    float found[2 * Vec::N];
    low.store(found);
    high.store(found + Vec::N);
    for (int i = 0; i < 2 * Vec::N; ++i) to[i] = int16_t(std::nearbyint(found[i]));
  }
#endif
};

// `count` numbers as multiples of a step that takes the largest to 32767, filled with 0 to whole 2 N; the step. Infinity or
// NaN among them makes the step NaN, and so whatever is computed with it.
inline float round_to_16(const float* x, int count, int16_t* to) {
  Vec most = Vec::zero(), check = Vec::zero();
  for (int i = 0; i < count; i += Vec::N) {
    const Vec at = Vec::load(x + i, count - i < Vec::N ? count - i : Vec::N);
    most = Vec::max(Vec::max(at, Vec::zero() - at), most);
    check = Vec::fma(at, Vec::zero(), check);
  }
  const float largest = top_of(most), finite = sum_of(check);
  if (!(finite == 0) || largest < 1e-30f) {
    for (int i = 0; i < (count + 2 * Vec::N - 1) / (2 * Vec::N) * 2 * Vec::N; ++i) to[i] = 0;
    return finite == 0 ? 0.f : __builtin_nanf("");
  }
  const Vec factor = Vec::set(32767.f / largest);
  for (int i = 0; i < count; i += 2 * Vec::N) {
    const int low = count - i < Vec::N ? count - i : Vec::N;
    const int high = count - i < Vec::N ? 0 : count - i < 2 * Vec::N ? count - i - Vec::N : Vec::N;
    PairLanes::narrow(Vec::load(x + i, low) * factor, Vec::load(x + i + Vec::N, high) * factor, to + i);
  }
  return largest / 32767.f;
}

// Rows computed together, and vectors of positions that a panel has.
constexpr int kPairRows = 6;
constexpr int kPanelVecs = kPanel / Vec::N < 2 ? 1 : 2;

// PairLanes of data that lie one after another, for the pairs of a row from `first` on.
struct Strip {
  const int8_t* from;
  int first, count;
  const uint8_t* ahead;  // memory that will be read soon, as much as this
};

// sums[r][w] = the products of row r's pairs and group w's, over all strips. Groups stand one after another; the next pair's
// are `step` bytes on.
template <int R, int W, bool Fetch>
inline void sum_products(const int32_t* pairs, int64_t row, const Strip* strips, int count, int64_t step,
                         PairLanes (&sums)[R][W]) {
  constexpr int kBytes = W * 2 * Vec::N;
  constexpr int kSteps = kBytes < 64 ? 64 / kBytes : 1;  // that read a line
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) sums[r][w] = PairLanes::zero();
  }
  for (const Strip* strip = strips; strip < strips + count; ++strip) {
    const int8_t* from = strip->from;
    const int32_t* pair = pairs + strip->first;
    const uint8_t* soon = strip->ahead;
    const auto one = [&]() __attribute__((always_inline)) {
      PairLanes data[W];
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) data[w] = PairLanes::load(from + w * 2 * Vec::N);
      ARMILLARY_UNROLL
      for (int r = 0; r < R; ++r) {
        int32_t both;  // written as 16 bits each
        std::memcpy(&both, pair + r * row, sizeof both);
        const PairLanes factor = PairLanes::set(both);
        ARMILLARY_UNROLL
        for (int w = 0; w < W; ++w) sums[r][w] = PairLanes::add_products(data[w], factor, sums[r][w]);
      }
      from += step;
      ++pair;
    };
    int i = 0;
    for (; i + 2 * kSteps <= strip->count; i += 2 * kSteps) {
      ARMILLARY_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (Fetch) __builtin_prefetch(soon, 0, 2);
        soon += kBytes * kSteps;
        ARMILLARY_UNROLL
        for (int s = 0; s < kSteps; ++s) one();
      }
    }
    for (; i < strip->count; ++i) one();
  }
}

// Scores of R rows against W groups of positions; out rows kPiece apart.
template <int R, int W, bool Fetch>
ARMILLARY_APART void score_pairs(const int32_t* queries, int64_t row, const Strip& keys, int64_t step, const float* steps,
                                 float* out) {
  PairLanes sums[R][W];
  sum_products<R, W, Fetch>(queries, row, &keys, 1, step, sums);
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    const Vec factor = Vec::set(steps[r]);
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) (sums[r][w].numbers() * factor).store(out + r * kPiece + w * Vec::N);
  }
}

// Weighted sums for R rows of W vectors of dimensions from `column` on.
template <int R, int W, bool Fetch>
ARMILLARY_APART void weigh_pairs(const int32_t* weights, const Strip* values, int count, int64_t step, const float* steps,
                                 const Target& target, int64_t column) {
  PairLanes sums[R][W];
  sum_products<R, W, Fetch>(weights, kPiece / 2, values, count, step, sums);
  Vec total[R][W];
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    const Vec factor = Vec::set(steps[r]);
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) total[r][w] = sums[r][w].numbers() * factor;
  }
  put<Element::f32, R, W>(total, target, column);
}

// Keys of the panel of positions from `from` on as pairs, where the blocks' own panels are not as wide.
inline void Pieces::stage_keys(int32_t from) {
  int8_t* to = reinterpret_cast<int8_t*>(desk_.keys);
  for (int i = 0; i < run_count_; ++i) {
    const int32_t begin = runs_[i].first < from ? from : runs_[i].first;
    const int32_t last = runs_[i].first + runs_[i].count;
    for (int32_t at = begin; at < last && at < from + kPanel; ++at)
      for (int d = 0; d < dim_; ++d)
        to[(d / 2 * kPanel + at - from) * 2 + d % 2] =
            int8_t(places_[i].keys[layout_.key_at(places_[i].offset + at - runs_[i].first, d)]);
  }
}

// Values of N dimensions from `column` on as pairs of all positions of the piece.
inline void Pieces::stage_values(int column, int8_t* to) {
  for (int i = 0; i < run_count_; ++i)
    for (int32_t n = 0; n < runs_[i].count; ++n) {
      const int32_t at = runs_[i].first + n, offset = places_[i].offset + n;
      for (int d = 0; d < Vec::N && column + d < dim_; ++d)
        to[(at / 2 * Vec::N + d) * 2 + at % 2] = int8_t(places_[i].values[layout_.value_at(offset, column + d)]);
    }
}

inline void Pieces::score_panels() {
  const bool whole = kv_.block_size % kPanel == 0;
  const int pairs = (dim_ + 1) / 2;
  const int32_t* queries = reinterpret_cast<const int32_t*>(desk_.query);
  const int64_t row = desk_.width / 2;
  const auto panel = [&](const int8_t* keys, const uint8_t* ahead, int place) {
    for (int group = 0; group < kPanel; group += kPanelVecs * Vec::N) {
      const Strip strip = {keys + group * 2, 0, pairs, ahead + group * int64_t(dim_)};
      for (int tile = 0; tile < rows_; tile += kPairRows)
        with_count<kPairRows>(rows_ - tile, [&](auto rows) {
          constexpr int R = decltype(rows)::value;
          float* out = desk_.scores + tile * kPiece + place + group;
          if (tile == 0)
            score_pairs<R, kPanelVecs, true>(queries + tile * row, row, strip, 2 * kPanel, desk_.query_step + tile, out);
          else
            score_pairs<R, kPanelVecs, false>(queries + tile * row, row, strip, 2 * kPanel, desk_.query_step + tile, out);
        });
    }
  };
  if (!whole) {
    for (int from = low_ / kPanel * kPanel; from < high_; from += kPanel) {
      stage_keys(from);
      panel(reinterpret_cast<const int8_t*>(desk_.keys), reinterpret_cast<const uint8_t*>(desk_.keys), from);
    }
    return;
  }
  for (int i = 0; i < run_count_; ++i) {
    const int32_t offset = places_[i].offset;
    for (int32_t at = offset / kPanel * kPanel; at < offset + runs_[i].count; at += kPanel)
      panel(reinterpret_cast<const int8_t*>(places_[i].keys) + layout_.key_at(at, 0),
            places_[i].values + layout_.value_at(at, 0), runs_[i].first - offset + at);
  }
}

inline void Pieces::weigh_up_int8() {
  score_panels();
  const ScoreRules rules = {shape_.softcap, desk_.key_scales};
  const Vec zero = Vec::zero();
  for (int r = 0; r < rows_; ++r) {
    float* scores = desk_.scores + r * kPiece;
    const int f = first(r), l = last(r);
    if (whole_) {
      desk_.piece_top[r] = finish_piece<false>(scores, rules);
      desk_.piece_total[r] = soften_piece(scores, desk_.piece_top[r]);
      for (int at = 0; at < kPiece; at += Vec::N)
        (Vec::load(scores + at) * Vec::load(desk_.value_scales + at)).store(scores + at);
    } else {
      desk_.piece_top[r] = finish_scores(scores, f, l, rules);
      desk_.piece_total[r] = soften(scores, f, l, desk_.piece_top[r]);
      for (int at = 0; at < kPiece; at += Vec::N)
        hide(Vec::load(scores + at) * Vec::load(desk_.value_scales + at), at, f, l, zero).store(scores + at);
    }
    desk_.weight_step[r] = round_to_16(scores, kPiece, reinterpret_cast<int16_t*>(desk_.weights) + r * kPiece);
  }
}

inline void Pieces::sum_int8(const Target& target) {
  const bool whole = kv_.block_size % kPanel == 0 && dim_ % Vec::N == 0;
  const int32_t* weights = reinterpret_cast<const int32_t*>(desk_.weights);
  Strip strips[kPiece];
  if (!whole) {
    int8_t* staged = reinterpret_cast<int8_t*>(desk_.values);
    strips[0] = {staged, 0, kPiece / 2, reinterpret_cast<const uint8_t*>(staged)};
    for (int column = 0; column < dim_; column += Vec::N) {
      stage_values(column, staged);
      each_tile<kPairRows>(target, 0, rows_, [&](auto rows, int row, const Sight&, const Target& to) {
        weigh_pairs<decltype(rows)::value, 1, false>(weights + row * kPiece / 2, strips, 1, 2 * Vec::N,
                                                     desk_.weight_step + row, to, column);
      });
    }
    return;
  }
  for (int column = 0; column < dim_;) {
    const int wide = dim_ - column >= 4 * Vec::N ? 4 : dim_ - column >= 2 * Vec::N ? 2 : 1;
    for (int i = 0; i < run_count_; ++i) {
      const int32_t begin = places_[i].offset / 2, end = (places_[i].offset + runs_[i].count + 1) / 2;
      const int8_t* values = reinterpret_cast<const int8_t*>(places_[i].values) + (int64_t(begin) * dim_ + column) * 2;
      // As each pass over the positions reads another part of their values, it fetches another part of what is ahead.
      strips[i] = {values, runs_[i].first / 2, end - begin, runs_[i].ahead + int64_t(end - begin) * column * 2};
    }
    each_tile<kPairRows>(target, 0, rows_, [&](auto rows, int row, const Sight&, const Target& to) {
      constexpr int R = decltype(rows)::value;
      const int32_t* pairs = weights + row * kPiece / 2;
      const float* steps = desk_.weight_step + row;
      constexpr int Half = R > 3 ? 2 : 4;  // vectors that registers are there for
      if (wide == 4) {
        for (int part = 0; part < 4; part += Half) {
          if (part)
            for (int i = 0; i < run_count_; ++i) {
              strips[i].from += Half * 2 * Vec::N;
              strips[i].ahead += strips[i].count * Half * 2 * Vec::N;
            }
          if (row == 0)
            weigh_pairs<R, Half, true>(pairs, strips, run_count_, 2 * dim_, steps, to, column + part * Vec::N);
          else
            weigh_pairs<R, Half, false>(pairs, strips, run_count_, 2 * dim_, steps, to, column + part * Vec::N);
        }
        if (Half < 4)
          for (int i = 0; i < run_count_; ++i) {
            strips[i].from -= Half * 2 * Vec::N;
            strips[i].ahead -= strips[i].count * Half * 2 * Vec::N;
          }
      } else if (wide == 2) {
        weigh_pairs<R, 2, false>(pairs, strips, run_count_, 2 * dim_, steps, to, column);
      } else {
        weigh_pairs<R, 1, false>(pairs, strips, run_count_, 2 * dim_, steps, to, column);
      }
    });
    column += wide * Vec::N;
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
