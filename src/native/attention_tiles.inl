// The inner loops of attention: scores of some rows against vectors of positions, and weighted sums of values.
//
// Every score is one chain of fused multiply-adds over the dimensions, every weighted value one over the positions, from zero
// and in order, whichever of these loops computes it: from the cache's own blocks or from a copy in float32, with however
// many rows beside it.
#pragma once
#include "attention_layout.inl"

#if defined(__GNUC__) && !defined(__clang__)
#define ARMILLARY_UNROLL _Pragma("GCC unroll 16")
#else
#define ARMILLARY_UNROLL _Pragma("unroll")
#endif
// The loops below are compiled once for each shape, not once for each place that calls them.
#define ARMILLARY_APART __attribute__((noinline))

namespace armillary {
namespace ARMILLARY_PATH {

// Rows computed together over a copy in float32: as many as accumulators of two vectors each leave room for.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
// Rows computed together over the cache's own blocks, and most rows of an item for which no copy is made.
constexpr int kDirectRows = 4;
constexpr int kMostDirectRows = 8;
constexpr int kPieceVecs = kPiece / Vec::N;
constexpr int kWide = 2 * Vec::N;

template <Element E>
struct Stored {
  using Type = float;
  static Vec load(const float* p) { return Vec::load(p); }
};

template <>
struct Stored<Element::bf16> {
  using Type = uint16_t;
  static Vec load(const uint16_t* p) { return Vec::load_bf16(p); }
};

template <>
struct Stored<Element::f16> {
  using Type = uint16_t;
  static Vec load(const uint16_t* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
#elif defined(__AVX2__) && defined(__F16C__)
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#else
    float wide[Vec::N];
    for (int i = 0; i < Vec::N; ++i) wide[i] = from_f16(p[i]);
    return Vec::load(wide);
#endif
  }
};

template <>
struct Stored<Element::i8> {
  using Type = int8_t;
  static Vec load(const int8_t* p) { return Vec::load_i8(p); }
};

template <int V>
struct Count {
  static constexpr int value = V;
};

// Calls f(Count<n>()) for n = count, 1 to Most.
template <int Most, class F>
inline void with_count(int count, F&& f) {
  if constexpr (Most == 1) {
    f(Count<1>());
  } else {
    if (count >= Most)
      f(Count<Most>());
    else
      with_count<Most - 1>(count, f);
  }
}

// Scores of R rows with W vectors of positions. q [dim][R]; keys[w] points at dimension 0 of a vector's positions, the next
// dimension is `stride` elements on; scores of vector w are written at out + place[w], rows kPiece apart.
template <Element E, int R, int W>
ARMILLARY_APART void score(const float* q, const typename Stored<E>::Type* const* keys, int64_t stride, int dim, float* out,
                  const int* place) {
  using T = typename Stored<E>::Type;
  Vec sums[R][W];
  const T* k[W];
  ARMILLARY_UNROLL
  for (int w = 0; w < W; ++w) k[w] = keys[w];
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) sums[r][w] = Vec::zero();
  }
  for (int d = 0; d < dim; ++d) {
    Vec key[W];
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) {
      key[w] = Stored<E>::load(k[w]);
      k[w] += stride;
    }
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec query = Vec::set(q[r]);
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) sums[r][w] = Vec::fma(query, key[w], sums[r][w]);
    }
    q += R;
  }
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) sums[r][w].store(out + r * kPiece + place[w]);
  }
}

// Positions of a piece whose values lie one after another.
struct Run {
  const uint8_t* values;  // of the first of them
  int32_t first;          // in the piece
  int32_t count;
};

// Where a sum of values begins and where it goes.
struct Sums {
  float* raw;         // rows of sums as they are
  int64_t raw_stride;
  bool resume;        // begin with what stands in raw, else with zero
  float* state;       // null: write the sums to raw; else state = state * keep + sum * add
  int64_t state_stride;
  const float* keep;  // [R]
  const float* add;
};

// Weighted sums of W vectors of dimensions for R rows: weights [R] kPiece apart, for positions [begin, end) of the
// piece. Values stand from `from` on in a position's values, `stride` elements from position to position; sums from `column`.
template <Element E, int R, int W>
ARMILLARY_APART void weigh(const float* weights, const Run* runs, int64_t stride, int64_t from, int begin, int end, int64_t column,
                  const Sums& sums) {
  using T = typename Stored<E>::Type;
  Vec total[R][W];
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w)
      total[r][w] = sums.resume ? Vec::load(sums.raw + r * sums.raw_stride + column + w * Vec::N) : Vec::zero();
  }
  while (begin < end) {
    while (runs->first + runs->count <= begin) ++runs;
    const int stop = runs->first + runs->count < end ? runs->first + runs->count : end;
    const T* v = reinterpret_cast<const T*>(runs->values) + (begin - runs->first) * stride + from;
    for (; begin < stop; ++begin) {
      Vec value[W];
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) value[w] = Stored<E>::load(v + w * Vec::N);
      ARMILLARY_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vec weight = Vec::set(weights[r * kPiece + begin]);
        ARMILLARY_UNROLL
        for (int w = 0; w < W; ++w) total[r][w] = Vec::fma(weight, value[w], total[r][w]);
      }
      v += stride;
    }
  }
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) {
      const int64_t at = column + w * Vec::N;
      if (sums.state) {
        float* state = sums.state + r * sums.state_stride + at;
        Vec::fma(total[r][w], Vec::set(sums.add[r]), Vec::load(state) * Vec::set(sums.keep[r])).store(state);
      } else {
        total[r][w].store(sums.raw + r * sums.raw_stride + at);
      }
    }
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
