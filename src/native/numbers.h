// Conversions between float32 and the narrow formats, one number at a time, the same on every path.
// Static, so that a path never runs a copy that was compiled for the instructions of another.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace armillary {

static inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

static inline float from_bf16(uint16_t value) { return from_bits(uint32_t(value) << 16); }

// Nearest, ties to even; NaN stays NaN.
static inline uint16_t to_bf16(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float from_f16(uint16_t value) {
  const uint32_t sign = uint32_t(value & 0x8000u) << 16;
  const uint32_t rest = value & 0x7fffu;
  if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest >= 0x400u) return from_bits(sign | ((rest << 13) + 0x38000000u));
  const float subnormal = float(rest) * from_bits(0x33800000u);  // 2^-24
  return from_bits(sign | to_bits(subnormal));
}

// Nearest, ties to even; beyond the range infinity.
static inline uint16_t to_f16(float value) {
  const uint32_t bits = to_bits(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (rest < 0x38800000u) {  // subnormal: adding 0.5 moves the wanted bits to the end of the mantissa, rounded
    const float shifted = from_bits(rest) + 0.5f;
    return uint16_t(sign | (to_bits(shifted) - 0x3f000000u));
  }
  return uint16_t(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13));
}

// The nearest scale that a matrix which keeps scales as that element can keep.
static inline float kept_scale(float scale, Element kept) {
  switch (kept) {
    case Element::f16: return from_f16(to_f16(scale));
    case Element::bf16: return from_bf16(to_bf16(scale));
    default: return scale;
  }
}

}  // namespace armillary
