// tanh and the activations of gated layers, every lane the same operations whatever stands in the others.
//
// Relative errors are below 1e-6, of gelu_tanh 3e-6, where the result is above 1e-6 in size: a test measures them. NaN
// gives NaN. Activations of minus infinity are NaN too, as in torch, but for relu.
#pragma once
// Included after vec_math.h of a path.
#include "kernels.h"

namespace armillary {
namespace ARMILLARY_PATH {

inline Vec magnitude(Vec x) { return Vec::max(x, Vec::zero() - x); }

// Near zero an odd polynomial, as 1 - 2 / (e^2x + 1) would cancel there. The coefficients are our own least squares fit of
// (tanh(x) / x - 1) / x^2 on [0, 0.625], weighted to an even relative error (4e-9).
inline Vec tanh(Vec x) {
  const Vec one = Vec::set(1.f), two = Vec::set(2.f);
  const Vec size = magnitude(x);
  const Vec square = x * x;
  Vec p = Vec::set(-0.005704987234f);
  p = Vec::fma(p, square, Vec::set(0.020639087462f));
  p = Vec::fma(p, square, Vec::set(-0.053739715154f));
  p = Vec::fma(p, square, Vec::set(0.133314421990f));
  p = Vec::fma(p, square, Vec::set(-0.333332819420f));
  const Vec small = Vec::fma(p * square, x, x);
  const Vec far = one - two / (exp(size * two) + one);
  const Vec large = Vec::where_less(x, Vec::zero(), Vec::zero() - far, far);
  return Vec::where_less(size, Vec::set(0.625f), small, large);  // NaN is not less, and passes through exp
}

// The share of the normal distribution beyond |x| on either side: erfc(z), z = |x| / sqrt 2. Our own fit of e^z^2 erfc(z) by
// t P(t), t = 1 / (1 + 0.3 z), for z up to 10 (2e-8); beyond that the result is 0 in float32.
inline Vec tails(Vec x) {
  const Vec one = Vec::set(1.f);
  // Held so that infinity less infinity does not come up below; NaN stays, being the second operand.
  const Vec size = Vec::min(Vec::set(20.f), magnitude(x));
  const Vec z = size * Vec::set(0.70710678118654752f);
  const Vec t = one / Vec::fma(z, Vec::set(0.3f), one);
  Vec p = Vec::set(-0.12952274570628658f);
  p = Vec::fma(p, t, Vec::set(0.4855624424894259f));
  p = Vec::fma(p, t, Vec::set(-0.5122765147752641f));
  p = Vec::fma(p, t, Vec::set(0.5477182433910026f));
  p = Vec::fma(p, t, Vec::set(-0.09464950397864676f));
  p = Vec::fma(p, t, Vec::set(0.21492554324303803f));
  p = Vec::fma(p, t, Vec::set(0.1483393006015611f));
  p = Vec::fma(p, t, Vec::set(0.1707152088817438f));
  p = Vec::fma(p, t, Vec::set(0.16918800626906838f));
  // z^2 in two parts: its rounding would be a relative error of e^-z^2 as large as z^2 times that of one operation.
  const Vec half = size * Vec::set(0.5f);
  const Vec square = half * size;
  const Vec rest = Vec::fma(half, size, Vec::zero() - square);
  const Vec power = exp(Vec::zero() - square);
  return p * t * (power - power * rest);
}

// x / (1 + e^-x)
inline Vec silu(Vec x) { return x / (Vec::set(1.f) + exp(Vec::zero() - x)); }

// x times the share of the normal distribution below x. Left of zero that share is a tail itself, so nothing cancels.
inline Vec gelu(Vec x) {
  const Vec half = tails(x) * Vec::set(0.5f);
  return x * Vec::where_less(x, Vec::zero(), half, Vec::set(1.f) - half);
}

// x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^-2u).
inline Vec gelu_tanh(Vec x) {
  const Vec cubic = Vec::fma(x * x, Vec::set(0.044715f), Vec::set(1.f)) * x;
  return x / (Vec::set(1.f) + exp(cubic * Vec::set(-1.59576912160573071f)));
}

inline Vec relu(Vec x) { return Vec::max(Vec::zero(), x); }

inline Vec activate(Vec x, Activation activation) {
  switch (activation) {
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return gelu_tanh(x);
    case Activation::relu: return relu(x);
    default: return silu(x);
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
