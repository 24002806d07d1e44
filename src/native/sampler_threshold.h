// Where to cut a list of numbers so that what lies above the cut has a wanted weight, without sorting the list.
#pragma once
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace armillary {

// Whole numbers in the order of the floats that they stand for. Neither is NaN.
inline uint32_t key_of(float value) {
  const uint32_t bits = to_bits(value);
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

inline float of_key(uint32_t key) { return from_bits((key & 0x80000000u) ? key & 0x7fffffffu : ~key); }

// Memory for `threshold`, two of each so that neighbours in the list seldom wait for one another's sum.
struct Bins {
  static constexpr int kMost = 2048;
  double weight[2][kMost];
  uint32_t count[2][kMost];
};

// The smallest of `count` values such that all values larger than it together weigh less than `wanted`, which is above 0.
// Equal values are alike: the result is a value, not a place. weigh(i) >= 0 is the weight of value i. Sums are in double,
// bin by bin from the top, in the order of the list within a bin: a function of the list alone.
template <typename Weigh>
inline float threshold(const float* values, int64_t count, double wanted, Bins& bins, Weigh&& weigh) {
  const int width = count > 4096 ? 11 : 8;  // bits looked at in one pass
  uint32_t prefix = 0;
  double above = 0;
  for (int left = 32; left > 0;) {
    const int taken = width < left ? width : left;
    const int shift = left - taken;
    const uint32_t size = 1u << taken;
    for (int half = 0; half < 2; ++half) {
      std::memset(bins.weight[half], 0, size * sizeof(double));
      std::memset(bins.count[half], 0, size * sizeof(uint32_t));
    }
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t key = key_of(values[i]);
      if (left < 32 && (key >> left) != prefix) continue;
      const uint32_t bin = (key >> shift) & (size - 1);
      bins.weight[i & 1][bin] += weigh(i);
      bins.count[i & 1][bin] += 1;
    }
    uint32_t chosen = 0;
    double before = above;
    for (uint32_t bin = size; bin-- > 0;) {
      if ((bins.count[0][bin] | bins.count[1][bin]) == 0) continue;
      if (!(above < wanted)) break;
      chosen = bin;
      before = above;
      above += bins.weight[0][bin] + bins.weight[1][bin];
    }
    above = before;
    prefix = (prefix << taken) | chosen;
    left = shift;
  }
  return of_key(prefix);
}

}  // namespace armillary
