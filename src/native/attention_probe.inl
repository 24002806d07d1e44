// What the processor can do at best, to measure attention against in the same run.
#pragma once
#include "kernels.h"

namespace armillary {
namespace ARMILLARY_PATH {

// Reads `count` floats (a multiple of 4 * Vec::N) once, in order.
inline float probe_read(const float* memory, int64_t count) {
  Vec a = Vec::zero(), b = a, c = a, d = a;
  for (int64_t i = 0; i < count; i += 4 * Vec::N) {
    a = Vec::max(a, Vec::load(memory + i));
    b = Vec::max(b, Vec::load(memory + i + Vec::N));
    c = Vec::max(c, Vec::load(memory + i + 2 * Vec::N));
    d = Vec::max(d, Vec::load(memory + i + 3 * Vec::N));
  }
  return largest(Vec::max(Vec::max(a, b), Vec::max(c, d)));
}

// Does `rounds` times twelve fused multiply-adds of vectors that do not wait for each other; returns how many of numbers.
inline int64_t probe_multiply(int64_t rounds, float* result) {
  Vec x[12];
  for (int i = 0; i < 12; ++i) x[i] = Vec::set(result[i]);
  const Vec factor = Vec::set(result[12]), term = Vec::set(result[13]);
  for (int64_t n = 0; n < rounds; ++n) {
    ARMILLARY_UNROLL
    for (int i = 0; i < 12; ++i) x[i] = Vec::fma(x[i], factor, term);
  }
  Vec all = x[0];
  for (int i = 1; i < 12; ++i) all = all + x[i];
  result[0] = sum(all);
  return rounds * 12 * Vec::N;
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
