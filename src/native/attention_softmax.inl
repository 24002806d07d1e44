// From scores to weights, piece by piece, and how pieces are put together.
#pragma once
#include "attention_tiles.inl"
#include "vec_activation.h"

namespace armillary {
namespace ARMILLARY_PATH {

#if defined(__AVX2__)
inline __m256 low_half(Vec x) {
#if defined(__AVX512F__)
  return _mm512_castps512_ps256(x.v);
#else
  return x.v;
#endif
}
#endif

// The largest lane; NaN is not larger than anything.
inline float top_of(Vec x) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 a = _mm256_max_ps(_mm512_extractf32x8_ps(x.v, 1), low_half(x));
#else
  const __m256 a = low_half(x);
#endif
  const __m128 b = _mm_max_ps(_mm256_extractf128_ps(a, 1), _mm256_castps256_ps128(a));
  const __m128 c = _mm_max_ps(_mm_movehl_ps(b, b), b);
  return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(c), c));
#else
  return largest(x);
#endif
}

// `sum`, in the same order, without a way through memory.
inline float sum_of(Vec x) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 a = _mm256_add_ps(low_half(x), _mm512_extractf32x8_ps(x.v, 1));
#else
  const __m256 a = low_half(x);
#endif
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
#else
  return sum(x);
#endif
}

// Logits are kept in base 2, times this, so that a weight is a power of two.
constexpr float kBase2 = 1.44269504088896341f;

// 2^x in place for x from minus infinity to 0, or NaN; 2^0 is 1, and below -126.5 all is exactly 0. Relative error below 2e-7.
// Step by step for W vectors, so that none waits for itself.
template <int W>
inline void exp2_below(Vec (&x)[W]) {
  constexpr float kTerms[5] = {1.3264727313e-3f, 9.6715129912e-3f, 5.5507335812e-2f, 2.4022242427e-1f, 6.9314700365e-1f};
  Vec n[W], power[W], p[W];
  ARMILLARY_UNROLL
  for (int w = 0; w < W; ++w) x[w] = Vec::max(Vec::set(-127.f), x[w]);  // NaN passes
  ARMILLARY_UNROLL
  for (int w = 0; w < W; ++w) {
#if defined(__AVX2__)
    // The nearest whole number stands, with the exponent's bias, in the last bits of this sum; -127 becomes the power 0.
    const Vec shift = Vec::set(12583039.f);  // 1.5 * 2^23 + 127
    const Vec moved = x[w] + shift;
    n[w] = moved - shift;
#if defined(__AVX512F__)
    power[w] = {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(moved.v), 23))};
#else
    power[w] = {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(moved.v), 23))};
#endif
#else
    n[w] = Vec::round(x[w]);
    power[w] = Vec::power_of_two(n[w]);
#endif
  }
  ARMILLARY_UNROLL
  for (int w = 0; w < W; ++w) {
    x[w] = x[w] - n[w];
    p[w] = Vec::fma(Vec::set(kTerms[0]), x[w], Vec::set(kTerms[1]));
  }
  ARMILLARY_UNROLL
  for (int i = 2; i < 5; ++i) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) p[w] = Vec::fma(p[w], x[w], Vec::set(kTerms[i]));
  }
  ARMILLARY_UNROLL
  for (int w = 0; w < W; ++w) x[w] = Vec::fma(p[w], x[w], Vec::set(1.f)) * power[w];
}

inline Vec exp2_below(Vec x) {
  Vec one[1] = {x};
  exp2_below(one);
  return one[0];
}

struct ScoreRules {
  float softcap;              // 0: none
  const float* key_scales;    // int8: [kPiece]; else null

  Vec logit(Vec score, int at) const {
    if (key_scales) score = score * Vec::load(key_scales + at);
    if (softcap > 0) score = tanh(score * Vec::set(1 / (softcap * kBase2))) * Vec::set(softcap * kBase2);
    return score;
  }
};

// x of the positions from `at` on that lie in [first, last), and `hidden` for others.
inline Vec hide(Vec x, int at, int first, int last, Vec hidden) {
  alignas(64) static constexpr float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  if (at >= first && at + Vec::N <= last) return x;
  const Vec lane = Vec::load(kLanes);
  x = Vec::where_less(lane, Vec::set(float(first - at)), hidden, x);
  return Vec::where_less(lane, Vec::set(float(last - at)), x, hidden);
}

// Makes logits of the scores of positions [first, last) of a piece, in place, and returns the largest. Other positions' scores
// may be anything; within the vectors that hold visible ones they become minus infinity.
inline float finish_scores(float* scores, int first, int last, const ScoreRules& rules) {
  const Vec hidden = Vec::set(-__builtin_inff());
  Vec most = hidden;
  for (int at = first / Vec::N * Vec::N; at < last; at += Vec::N) {
    const Vec s = hide(rules.logit(Vec::load(scores + at), at), at, first, last, hidden);
    s.store(scores + at);
    most = Vec::max(s, most);  // NaN is left out: it comes back in the weights
  }
  return top_of(most);
}

// The same where all of the piece is visible. `Plain`: scores are logits as they are.
template <bool Plain>
inline float finish_piece(float* scores, const ScoreRules& rules) {
  Vec most = Vec::set(-__builtin_inff());
  ARMILLARY_UNROLL
  for (int at = 0; at < kPiece; at += Vec::N) {
    Vec s = Vec::load(scores + at);
    if (!Plain) {
      s = rules.logit(s, at);
      s.store(scores + at);
    }
    most = Vec::max(s, most);
  }
  return top_of(most);
}

// Without a finite score there is nothing to be relative to; weights are 0 then.
inline float base_of(float top) { return top == -__builtin_inff() ? 0.f : top; }

// Makes weights of logits, in place, relative to the largest, and returns their sum.
inline float soften(float* scores, int first, int last, float top) {
  const Vec base = Vec::set(base_of(top));
  Vec total = Vec::zero();
  for (int at = first / Vec::N * Vec::N; at < last; at += Vec::N) {
    const Vec weight = exp2_below(Vec::load(scores + at) - base);
    total = total + weight;
    weight.store(scores + at);
  }
  return sum_of(total);
}

// The same where all of the piece is visible.
inline float soften_piece(float* scores, float top) {
  constexpr int kAtOnce = 4;
  const Vec base = Vec::set(base_of(top));
  Vec total = Vec::zero();
  for (int at = 0; at < kPiece; at += kAtOnce * Vec::N) {
    Vec weights[kAtOnce];
    ARMILLARY_UNROLL
    for (int i = 0; i < kAtOnce; ++i) weights[i] = Vec::load(scores + at + i * Vec::N) - base;
    exp2_below(weights);
    ARMILLARY_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      total = total + weights[i];
      weights[i].store(scores + at + i * Vec::N);
    }
  }
  return sum_of(total);
}

// A row's largest logit so far and the sum of its weights, relative to that; of many rows, each in an array of its own. A
// row that sees nothing of a piece has the top minus infinity and the sum 0 there, which changes nothing.
struct Peaks {
  float *top, *total;
};

// Adds a piece to what came before it: the new peaks, and the factors of the values before and of the piece's.
inline void add_peaks(const Peaks& peaks, const float* piece_top, const float* piece_total, float* keep, float* add,
                      int rows) {
  for (int r = 0; r < rows; r += Vec::N) {
    const int lanes = rows - r < Vec::N ? rows - r : Vec::N;
    const Vec before = Vec::load(peaks.top + r, lanes), piece = Vec::load(piece_top + r, lanes);
    const Vec top = Vec::max(piece, before);
    const Vec base = Vec::where_less(Vec::set(-__builtin_inff()), top, top, Vec::zero());
    Vec factors[2] = {before - base, piece - base};
    exp2_below(factors);
    const Vec old = factors[0], now = factors[1];
    old.store(keep + r, lanes);
    now.store(add + r, lanes);
    top.store(peaks.top + r, lanes);
    const Vec total = Vec::load(peaks.total + r, lanes) * old;
    Vec::fma(Vec::load(piece_total + r, lanes), now, total).store(peaks.total + r, lanes);
  }
}

// out = a row's sums over the sum of its weights, of which `sink` (a logit in base e, or null) has its share.
inline void finish_row(const float* state, float top, float total, const float* sink, int dim, float* out) {
  float keep = 1, add = 0;
  if (sink) {
    const float one = 1, logit = *sink * kBase2;
    add_peaks({&top, &total}, &logit, &one, &keep, &add, 1);
  }
  const Vec factor = Vec::set(keep), sum = Vec::set(total);
  for (int i = 0; i < dim; i += Vec::N) {
    const int lanes = dim - i < Vec::N ? dim - i : Vec::N;
    (Vec::load(state + i, lanes) * factor / sum).store(out + i, lanes);
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
