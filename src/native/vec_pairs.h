// Pairs of bfloat16, one in every lane, and the instruction that adds both products of two pairs to a sum in float32: the later
// product first, each rounded with the sum, numbers too small for a full mantissa taken as zero and left as zero.
#pragma once
// Included after the Vec of a path.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace armillary {
namespace ARMILLARY_PATH {

struct Bf16Pairs {
#if defined(ARMILLARY_AVX512)
  __m512i v;
  static Bf16Pairs load(const void* p) { return {_mm512_loadu_si512(p)}; }
  void store(void* p) const { _mm512_storeu_si512(p, v); }
  // sum + both products of each lane's pair with the pair x.
  Vec add_to(Vec sum, int32_t x) const {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)v, (__m512bh)_mm512_set1_epi32(x))};
  }
  // What `bits` has of each pair, and zero for the rest of it.
  Bf16Pairs only(uint32_t bits) const { return {_mm512_and_si512(v, _mm512_set1_epi32(int(bits)))}; }
  // 2 N numbers that stand one after another, rounded to nearest.
  static Bf16Pairs of(Vec low, Vec high) { return {(__m512i)_mm512_cvtne2ps_pbh(high.v, low.v)}; }
#else
  uint16_t v[2 * Vec::N];
  static Bf16Pairs load(const void* p) {
    Bf16Pairs r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  void store(void* p) const { std::memcpy(p, v, sizeof v); }
  Vec add_to(Vec sum, int32_t x) const {
    uint16_t pair[2];
    std::memcpy(pair, &x, 4);
    for (int i = 0; i < Vec::N; ++i)
      for (int k = 1; k >= 0; --k)
        sum.lane[i] = flushed(std::fma(flushed(from_bf16(v[2 * i + k])), flushed(from_bf16(pair[k])), sum.lane[i]));
    return sum;
  }
  Bf16Pairs only(uint32_t bits) const {
    Bf16Pairs r;
    for (int i = 0; i < 2 * Vec::N; ++i) r.v[i] = uint16_t(v[i] & (i % 2 ? bits >> 16 : bits));
    return r;
  }
  static Bf16Pairs of(Vec low, Vec high) {
    Bf16Pairs r;
    for (int i = 0; i < Vec::N; ++i) {
      r.v[i] = to_bf16(flushed(low.lane[i]));
      r.v[Vec::N + i] = to_bf16(flushed(high.lane[i]));
    }
    return r;
  }

 private:
  static float flushed(float x) { return (x < 0 ? -x : x) < 1.17549435e-38f ? std::copysign(0.f, x) : x; }
#endif
};

}  // namespace ARMILLARY_PATH
}  // namespace armillary
