// Functions of vectors, every lane the same operations whatever stands in the others.
#pragma once
// Included after the Vec of a path.

namespace armillary {
namespace ARMILLARY_PATH {

// e^x, relative error below 2e-7 from -87.3 to 88.7; below that exactly 0, above it infinity; NaN stays NaN.
// Cephes' reduction x = n ln 2 + r and a polynomial in r.
inline Vec exp(Vec x) {
  const Vec low = Vec::set(-87.33654f), high = Vec::set(88.72283f);
  const Vec inside = Vec::min(high, Vec::max(low, x));  // NaN passes through both: the second operand is kept
  Vec n = Vec::round(inside * Vec::set(1.44269504088896341f));
  n = Vec::min(n, Vec::set(127.f));
  Vec r = Vec::fma(n, Vec::set(-0.693359375f), inside);
  r = Vec::fma(n, Vec::set(2.12194440e-4f), r);
  Vec p = Vec::set(1.9875691500e-4f);
  p = Vec::fma(p, r, Vec::set(1.3981999507e-3f));
  p = Vec::fma(p, r, Vec::set(8.3334519073e-3f));
  p = Vec::fma(p, r, Vec::set(4.1665795894e-2f));
  p = Vec::fma(p, r, Vec::set(1.6666665459e-1f));
  p = Vec::fma(p, r, Vec::set(5.0000001201e-1f));
  p = Vec::fma(p, r * r, r + Vec::set(1.f));
  const Vec result = p * Vec::power_of_two(n);
  return Vec::where_less(x, low, Vec::zero(), Vec::where_less(high, x, Vec::set(__builtin_inff()), result));
}

// The sum of all lanes, by halves: lane i with lane i + N/2, and so on.
inline float sum(Vec x) {
  float lane[Vec::N];
  x.store(lane);
  for (int half = Vec::N / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

inline float largest(Vec x) {
  float lane[Vec::N];
  x.store(lane);
  float best = lane[0];
  for (int i = 1; i < Vec::N; ++i) best = lane[i] > best ? lane[i] : best;
  return best;
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
