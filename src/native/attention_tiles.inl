// The inner loops of attention: scores of some rows against vectors of positions, and weighted sums of values.
//
// Every score is one chain of fused multiply-adds over the dimensions, every weighted value one over the positions, from zero
// and in order, whichever of these loops computes it: from the cache's own blocks or from a copy in float32, with however
// many rows beside it. For pairs of bfloat16 attention_pair_tiles.inl has others.
#pragma once
#include "attention_layout.inl"

#if defined(ARMILLARY_EMULATED)
#define ARMILLARY_UNROLL
#define ARMILLARY_UNROLL_FOUR
#elif defined(__GNUC__) && !defined(__clang__)
#define ARMILLARY_UNROLL _Pragma("GCC unroll 16")
#define ARMILLARY_UNROLL_FOUR _Pragma("GCC unroll 4")
#else
#define ARMILLARY_UNROLL _Pragma("unroll")
#define ARMILLARY_UNROLL_FOUR _Pragma("unroll 4")
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
constexpr int kBroad = 2 * kWide;  // dimensions of values that are copied at a time

// Elements of a kind in the cache. `load_two` loads 2 N of them as two vectors, in an order of its own, which `in_order` undoes:
// halves of words need no shuffle to be told apart, and what is summed in such lanes is put in order once at the end.
template <Element E>
struct Stored {
  using Type = float;
  static Vec load(const float* p) { return Vec::load(p); }
  static void load_two(const float* p, Vec& a, Vec& b) {
    a = Vec::load(p);
    b = Vec::load(p + Vec::N);
  }
  static void in_order(Vec&, Vec&) {}
};

template <>
struct Stored<Element::bf16> {
  using Type = uint16_t;
  static Vec load(const uint16_t* p) { return Vec::load_bf16(p); }
#if defined(__AVX512F__)
  static void load_two(const uint16_t* p, Vec& a, Vec& b) {
    const __m512i x = _mm512_loadu_si512(p);
    a = {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
    b = {_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000u))))};
  }
  static void in_order(Vec& a, Vec& b) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    const __m512 even = a.v, odd = b.v;
    a.v = _mm512_permutex2var_ps(even, low, odd);
    b.v = _mm512_permutex2var_ps(even, high, odd);
  }
#elif defined(__AVX2__)
  static void load_two(const uint16_t* p, Vec& a, Vec& b) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    a = {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16))};
    b = {_mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int(0xffff0000u))))};
  }
  static void in_order(Vec& a, Vec& b) {
    const __m256 low = _mm256_unpacklo_ps(a.v, b.v), high = _mm256_unpackhi_ps(a.v, b.v);
    a.v = _mm256_permute2f128_ps(low, high, 0x20);
    b.v = _mm256_permute2f128_ps(low, high, 0x31);
  }
#else
  static void load_two(const uint16_t* p, Vec& a, Vec& b) {
    a = load(p);
    b = load(p + Vec::N);
  }
  static void in_order(Vec&, Vec&) {}
#endif
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
  static void load_two(const uint16_t* p, Vec& a, Vec& b) {
    a = load(p);
    b = load(p + Vec::N);
  }
  static void in_order(Vec&, Vec&) {}
};

// W vectors that stand one after another, in an order of their own.
template <Element E, int W>
inline void load_many(const typename Stored<E>::Type* p, Vec (&to)[W]) {
  if constexpr (W == 1) {
    to[0] = Stored<E>::load(p);
  } else {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; w += 2) Stored<E>::load_two(p + w * Vec::N, to[w], to[w + 1]);
  }
}

template <Element E, int W>
inline void put_in_order(Vec (&x)[W]) {
  if constexpr (W > 1) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; w += 2) Stored<E>::in_order(x[w], x[w + 1]);
  }
}

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

// Scores of R rows with W groups of G vectors of positions that stand one after another (G 1 or 2). q [dim][R]; keys[w]
// points at dimension 0 of a group's positions, the next dimension is `stride` elements on; scores of a group are written at
// out + place[w], rows kPiece apart. With Fetch, `ahead` [W] is memory that will be read soon, as much as a group's keys.
template <Element E, int R, int W, int G, bool Fetch>
ARMILLARY_APART void score(const float* q, const typename Stored<E>::Type* const* keys, int64_t stride, int dim, float* out,
                           const int* place, const uint8_t* const* ahead) {
  using T = typename Stored<E>::Type;
  constexpr int kBytes = int(sizeof(T)) * G * Vec::N;                // of a group in one dimension
  constexpr int kStep = Fetch && kBytes < 64 ? 64 / kBytes : 1;      // dimensions in which a group reads a line
  Vec sums[R][W][G];
  const T* k[W];
  const uint8_t* soon[W];
  ARMILLARY_UNROLL
  for (int w = 0; w < W; ++w) {
    k[w] = keys[w];
    soon[w] = Fetch ? ahead[w] : nullptr;
  }
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) {
      ARMILLARY_UNROLL
      for (int g = 0; g < G; ++g) sums[r][w][g] = Vec::zero();
    }
  }
  const auto one = [&]() __attribute__((always_inline)) {
    Vec key[W][G];
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) {
      load_many<E, G>(k[w], key[w]);
      k[w] += stride;
    }
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec query = Vec::set(q[r]);
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) {
        ARMILLARY_UNROLL
        for (int g = 0; g < G; ++g) sums[r][w][g] = Vec::fma(query, key[w][g], sums[r][w][g]);
      }
    }
    q += R;
  };
  int d = 0;
  for (; d + kStep <= dim; d += kStep) {
    if constexpr (Fetch) {
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) {
        __builtin_prefetch(soon[w], 0, 2);
        soon[w] += kBytes * kStep;
      }
    }
    ARMILLARY_UNROLL
    for (int s = 0; s < kStep; ++s) one();
  }
  for (; d < dim; ++d) one();
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    ARMILLARY_UNROLL
    for (int w = 0; w < W; ++w) {
      put_in_order<E, G>(sums[r][w]);
      ARMILLARY_UNROLL
      for (int g = 0; g < G; ++g) sums[r][w][g].store(out + r * kPiece + place[w] + g * Vec::N);
    }
  }
}

// `score` for a copy in float32 of kWide positions ([dim][kWide]): `tiles` times R rows, each tile [dim][R].
template <int R>
ARMILLARY_APART void score_tiles(const float* q, const float* keys, int dim, float* out, int tiles) {
  for (; tiles > 0; --tiles, out += R * kPiece) {
    Vec sums[R][2];
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = Vec::zero();
    const float* k = keys;
    ARMILLARY_UNROLL_FOUR
    for (int d = 0; d < dim; ++d, k += kWide, q += R) {
      const Vec low = Vec::load(k), high = Vec::load(k + Vec::N);
      ARMILLARY_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vec query = Vec::set(q[r]);
        sums[r][0] = Vec::fma(query, low, sums[r][0]);
        sums[r][1] = Vec::fma(query, high, sums[r][1]);
      }
    }
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) {
      sums[r][0].store(out + r * kPiece);
      sums[r][1].store(out + r * kPiece + Vec::N);
    }
  }
}

// Positions of a piece whose values lie one after another.
struct Run {
  const uint8_t* values;  // of the first of them
  int32_t first;          // in the piece
  int32_t count;
  const uint8_t* ahead;   // memory that will be read soon, as much as these values, or else they themselves
};

// What some rows of a tile see of a piece: all of them [begin, end), some of them [least, most).
struct Sight {
  int least, begin, end, most;
  const int32_t *first, *last;  // [R] of each row
};

// Where sums of values go: rows `stride` apart. With factors, to = to * keep + sum * add; else to = sum.
struct Target {
  float* to;
  int64_t stride;
  const float* keep;  // [R], or null
  const float* add;
};

template <Element E, int R, int W>
inline void put(Vec (&total)[R][W], const Target& target, int64_t column) {
  ARMILLARY_UNROLL
  for (int r = 0; r < R; ++r) {
    put_in_order<E, W>(total[r]);
    float* to = target.to + r * target.stride + column;
    if (target.keep) {
      const Vec keep = Vec::set(target.keep[r]), add = Vec::set(target.add[r]);
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w)
        Vec::fma(total[r][w], add, Vec::load(to + w * Vec::N) * keep).store(to + w * Vec::N);
    } else {
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) total[r][w].store(to + w * Vec::N);
    }
  }
}

// Weighted sums for R rows of `columns` times W vectors of dimensions, from `column` on: weights [R] kPiece apart, each row
// over the positions that it sees and no others. Values of a position stand `stride` elements after those of the one before.
template <Element E, int R, int W>
ARMILLARY_APART void weigh(const float* weights, const Run* runs, int64_t stride, int64_t column, int columns,
                           const Sight& sight, const Target& target) {
  using T = typename Stored<E>::Type;
  for (int pass = 0; pass < columns; ++pass, column += W * Vec::N) {
    Vec total[R][W];
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) {
      ARMILLARY_UNROLL
      for (int w = 0; w < W; ++w) total[r][w] = Vec::zero();
    }
    const Run* run = runs;
    for (int at = sight.least; at < sight.most;) {
      while (run->first + run->count <= at) ++run;
      const bool all = at >= sight.begin && at < sight.end;
      const int last = all ? sight.end : at < sight.begin && sight.begin < sight.end ? sight.begin : sight.most;
      const int stop = run->first + run->count < last ? run->first + run->count : last;
      const T* v = reinterpret_cast<const T*>(run->values) + (at - run->first) * stride + column;
      if (all) {
        // Line after line of what is ahead, as each pass over the positions reads another part of their values.
        constexpr int64_t kPart = int64_t(sizeof(T)) * W * Vec::N;
        const uint8_t* soon = run->ahead + (int64_t(pass) * run->count + at - run->first) * kPart;
        for (; at < stop; ++at, v += stride) {
          __builtin_prefetch(soon, 0, 2);
          soon += kPart;
          Vec value[W];
          load_many<E, W>(v, value);
          ARMILLARY_UNROLL
          for (int r = 0; r < R; ++r) {
            const Vec weight = Vec::set(weights[r * kPiece + at]);
            ARMILLARY_UNROLL
            for (int w = 0; w < W; ++w) total[r][w] = Vec::fma(weight, value[w], total[r][w]);
          }
        }
      } else {
        for (; at < stop; ++at, v += stride) {
          Vec value[W];
          load_many<E, W>(v, value);
          ARMILLARY_UNROLL
          for (int r = 0; r < R; ++r) {
            if (at < sight.first[r] || at >= sight.last[r]) continue;
            const Vec weight = Vec::set(weights[r * kPiece + at]);
            ARMILLARY_UNROLL
            for (int w = 0; w < W; ++w) total[r][w] = Vec::fma(weight, value[w], total[r][w]);
          }
        }
      }
    }
    put<E, R, W>(total, target, column);
  }
}

// `weigh` for a copy in float32 ([kPiece][kWide], one column of kWide dimensions) of which every row sees all: `tiles` times
// R rows.
template <int R>
ARMILLARY_APART void weigh_whole(const float* weights, const float* values, int64_t column, int tiles, Target target) {
  for (; tiles > 0; --tiles) {
    Vec total[R][2];
    ARMILLARY_UNROLL
    for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = Vec::zero();
    ARMILLARY_UNROLL_FOUR
    for (int at = 0; at < kPiece; ++at) {
      const Vec low = Vec::load(values + at * kWide), high = Vec::load(values + at * kWide + Vec::N);
      ARMILLARY_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vec weight = Vec::set(weights[r * kPiece + at]);
        total[r][0] = Vec::fma(weight, low, total[r][0]);
        total[r][1] = Vec::fma(weight, high, total[r][1]);
      }
    }
    put<Element::f32, R, 2>(total, target, column);
    weights += R * kPiece;
    target.to += R * target.stride;
    if (target.keep) {
      target.keep += R;
      target.add += R;
    }
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
