// Operations that work on one row at a time. A row's result depends on that row alone, so nothing here can differ beside
// other rows: what remains to keep fixed is the order within a row, which is a function of its width.
#pragma once
#include <cmath>
#include <limits>

#include "kernels.h"
#include "numbers.h"

namespace armillary {
namespace ARMILLARY_PATH {

constexpr int64_t kSummed = 512;  // elements summed in float32 before a double takes them, and searched at once for a peak
static_assert(kSummed % (4 * Vec::N) == 0, "whole vectors in a block");

// The first `count` elements, and `rest` in the lanes after them.
inline Vec load_padded(const float* p, int count, float rest) {
  float lane[Vec::N];
  for (int i = 0; i < Vec::N; ++i) lane[i] = i < count ? p[i] : rest;
  return Vec::load(lane);
}

// Calls full(i) for each whole vector of a row and tail(i, left) for what is left.
template <typename Full, typename Tail>
inline void sweep(int64_t width, Full&& full, Tail&& tail) {
  int64_t i = 0;
  for (; i + Vec::N <= width; i += Vec::N) full(i);
  if (i < width) tail(i, int(width - i));
}

inline float sum_of_squares(const float* x, int64_t width) {
  Vec a[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  int64_t i = 0;
  for (; i + 4 * Vec::N <= width; i += 4 * Vec::N)
    for (int j = 0; j < 4; ++j) {
      const Vec v = Vec::load(x + i + j * Vec::N);
      a[j] = Vec::fma(v, v, a[j]);
    }
  for (; i < width; i += Vec::N) {
    const Vec v = i + Vec::N <= width ? Vec::load(x + i) : Vec::load(x + i, int(width - i));
    a[0] = Vec::fma(v, v, a[0]);
  }
  return sum((a[0] + a[1]) + (a[2] + a[3]));
}

inline float norm_scale(const float* x, int64_t width, float eps) {
  return 1.f / std::sqrt(sum_of_squares(x, width) / float(width) + eps);
}

inline void rms_norm(const float* x, int64_t x_stride, const float* weight, float eps, bool offset, int64_t width, float* y,
                     int64_t y_stride, int64_t begin, int64_t end) {
  const Vec plus = Vec::set(offset ? 1.f : 0.f);
  for (int64_t r = begin; r < end; ++r) {
    const float* from = x + r * x_stride;
    float* to = y + r * y_stride;
    const Vec scale = Vec::set(norm_scale(from, width, eps));
    sweep(
        width, [&](int64_t i) { (Vec::load(from + i) * scale * (Vec::load(weight + i) + plus)).store(to + i); },
        [&](int64_t i, int left) {
          (Vec::load(from + i, left) * scale * (Vec::load(weight + i, left) + plus)).store(to + i, left);
        });
  }
}

inline void add_norm(float* x, int64_t x_stride, const float* y, int64_t y_stride, const float* weight, float eps,
                     bool offset, int64_t width, int64_t begin, int64_t end) {
  const Vec plus = Vec::set(offset ? 1.f : 0.f);
  for (int64_t r = begin; r < end; ++r) {
    const float* from = y + r * y_stride;
    float* to = x + r * x_stride;
    const Vec scale = Vec::set(norm_scale(from, width, eps));
    sweep(
        width,
        [&](int64_t i) {
          const Vec normed = Vec::load(from + i) * scale * (Vec::load(weight + i) + plus);
          (Vec::load(to + i) + normed).store(to + i);
        },
        [&](int64_t i, int left) {
          const Vec normed = Vec::load(from + i, left) * scale * (Vec::load(weight + i, left) + plus);
          (Vec::load(to + i, left) + normed).store(to + i, left);
        });
  }
}

inline void embed(const void* table, Element element, int64_t width, const int64_t* tokens, float scale, float* y,
                  int64_t y_stride, int64_t begin, int64_t end) {
  const Vec factor = Vec::set(scale);
  for (int64_t r = begin; r < end; ++r) {
    float* to = y + r * y_stride;
    const int64_t place = tokens[r] * width;
    if (element == Element::f32) {
      const float* from = static_cast<const float*>(table) + place;
      sweep(
          width, [&](int64_t i) { (Vec::load(from + i) * factor).store(to + i); },
          [&](int64_t i, int left) { (Vec::load(from + i, left) * factor).store(to + i, left); });
    } else if (element == Element::bf16) {
      const uint16_t* from = static_cast<const uint16_t*>(table) + place;
      sweep(
          width, [&](int64_t i) { (Vec::load_bf16(from + i) * factor).store(to + i); },
          [&](int64_t i, int left) {
            for (int j = 0; j < left; ++j) to[i + j] = from_bf16(from[i + j]) * scale;
          });
    } else {
      const uint16_t* from = static_cast<const uint16_t*>(table) + place;
      for (int64_t i = 0; i < width; ++i) to[i] = from_f16(from[i]) * scale;
    }
  }
}

// Sum of e^(x - peak) over a block of at most kSummed elements.
inline float sum_of_powers(const float* x, int64_t count, float peak) {
  const Vec top = Vec::set(peak);
  Vec a[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  int64_t i = 0;
  for (; i + 4 * Vec::N <= count; i += 4 * Vec::N)
    for (int j = 0; j < 4; ++j) a[j] = a[j] + exp(Vec::load(x + i + j * Vec::N) - top);
  for (; i + Vec::N <= count; i += Vec::N) a[0] = a[0] + exp(Vec::load(x + i) - top);
  if (i < count) a[0] = a[0] + exp(load_padded(x + i, int(count - i), -std::numeric_limits<float>::infinity()) - top);
  return sum((a[0] + a[1]) + (a[2] + a[3]));
}

// The same over a whole row, in double from block to block.
inline double sum_of_powers_of_row(const float* x, int64_t width, float peak) {
  double total = 0;
  for (int64_t i = 0; i < width; i += kSummed) {
    const int64_t left = width - i;
    total += double(sum_of_powers(x + i, left < kSummed ? left : kSummed, peak));
  }
  return total;
}

inline void route(const float* scores, int64_t stride, int64_t experts, int64_t count, bool renormalize, float* weights,
                  int64_t* chosen, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* row = scores + r * stride;
    float* best = weights + r * count;
    int64_t* which = chosen + r * count;
    // A list of the best so far, in order, in the memory of the result. An equal score goes behind those that came before
    // it. Places stay distinct and within bounds whatever the scores; a NaN among them makes all weights NaN.
    int64_t held = 0;
    for (int64_t expert = 0; expert < experts; ++expert) {
      const float score = row[expert];
      if (held == count && !(score > best[count - 1])) continue;
      int64_t at = held < count ? held++ : count - 1;
      for (; at > 0 && score > best[at - 1]; --at) {
        best[at] = best[at - 1];
        which[at] = which[at - 1];
      }
      best[at] = score;
      which[at] = expert;
    }
    const float peak = best[0];
    const float whole = float(sum_of_powers_of_row(row, experts, peak));
    float share = 0;
    for (int64_t i = 0; i < count; i += Vec::N) {
      const int left = int(count - i < Vec::N ? count - i : Vec::N);
      (exp(Vec::load(best + i, left) - Vec::set(peak)) / Vec::set(whole)).store(best + i, left);
      for (int j = 0; j < left; ++j) share += best[i + j];
    }
    if (renormalize)
      for (int64_t i = 0; i < count; ++i) best[i] = best[i] / share;
  }
}

inline void combine(const float* terms, int64_t terms_stride, const int64_t* places, const float* weights, int64_t count,
                    const float* residual, int64_t residual_stride, int64_t width, float* y, int64_t y_stride, int64_t begin,
                    int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t* place = places + r * count;
    const float* weight = weights + r * count;
    const float* rest = residual == nullptr ? nullptr : residual + r * residual_stride;
    float* to = y + r * y_stride;
    sweep(
        width,
        [&](int64_t i) {
          Vec total = Vec::zero();
          for (int64_t rank = 0; rank < count; ++rank)
            total = Vec::fma(Vec::load(terms + place[rank] * terms_stride + i), Vec::set(weight[rank]), total);
          if (rest != nullptr) total = Vec::load(rest + i) + total;
          total.store(to + i);
        },
        [&](int64_t i, int left) {
          Vec total = Vec::zero();
          for (int64_t rank = 0; rank < count; ++rank)
            total = Vec::fma(Vec::load(terms + place[rank] * terms_stride + i, left), Vec::set(weight[rank]), total);
          if (rest != nullptr) total = Vec::load(rest + i, left) + total;
          total.store(to + i, left);
        });
  }
}

inline void softcap(float* scores, int64_t stride, int64_t width, float cap, int64_t begin, int64_t end) {
  const Vec limit = Vec::set(cap);
  for (int64_t r = begin; r < end; ++r) {
    float* row = scores + r * stride;
    sweep(
        width, [&](int64_t i) { (limit * tanh(Vec::load(row + i) / limit)).store(row + i); },
        [&](int64_t i, int left) { (limit * tanh(Vec::load(row + i, left) / limit)).store(row + i, left); });
  }
}

// Largest of at most kSummed elements, -infinity of none. `broken` becomes NaN where an element is, and stays as it is else.
inline float peak_of(const float* x, int64_t count, Vec& broken) {
  const float low = -std::numeric_limits<float>::infinity();
  const Vec infinity = Vec::set(-low);
  Vec a[4] = {Vec::set(low), Vec::set(low), Vec::set(low), Vec::set(low)};
  // The larger of a NaN and a peak is the peak; what is not below infinity, which NaN is not, goes to `broken`.
  auto take = [&](Vec v, Vec& peak) {
    peak = Vec::max(v, peak);
    broken = broken + Vec::where_less(v, infinity, Vec::zero(), v);
  };
  int64_t i = 0;
  for (; i + 4 * Vec::N <= count; i += 4 * Vec::N)
    for (int j = 0; j < 4; ++j) take(Vec::load(x + i + j * Vec::N), a[j]);
  for (; i + Vec::N <= count; i += Vec::N) take(Vec::load(x + i), a[0]);
  if (i < count) take(load_padded(x + i, int(count - i), low), a[0]);
  return largest(Vec::max(Vec::max(a[0], a[1]), Vec::max(a[2], a[3])));
}

inline void argmax(const float* scores, int64_t stride, int64_t width, float* peaks, int64_t* places, int64_t begin,
                   int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* row = scores + r * stride;
    float best = -std::numeric_limits<float>::infinity();
    int64_t block = 0;
    Vec broken = Vec::zero();
    for (int64_t i = 0; i < width; i += kSummed) {
      const float peak = peak_of(row + i, width - i < kSummed ? width - i : kSummed, broken);
      if (peak > best) {
        best = peak;
        block = i;
      }
    }
    int64_t place = block;
    if (const float check = sum(broken); check != check) {
      for (place = 0; row[place] == row[place];) ++place;
    } else {
      while (row[place] != best) ++place;
    }
    peaks[r] = row[place];
    places[r] = place;
  }
}

inline void log_sum_exp(const float* scores, int64_t stride, int64_t width, float* out, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* row = scores + r * stride;
    float peak = -std::numeric_limits<float>::infinity();
    Vec broken = Vec::zero();
    for (int64_t i = 0; i < width; i += kSummed) {
      const float found = peak_of(row + i, width - i < kSummed ? width - i : kSummed, broken);
      peak = found > peak ? found : peak;
    }
    const float check = sum(broken);
    if (check != check)
      out[r] = check;
    else if (std::isinf(peak))
      out[r] = peak;  // all -infinity, or some +infinity
    else
      out[r] = float(double(peak) + std::log(sum_of_powers_of_row(row, width, peak)));
  }
}

inline void fill_rows(Kernels& k) {
  k.rms_norm = rms_norm;
  k.add_norm = add_norm;
  k.embed = embed;
  k.route = route;
  k.combine = combine;
  k.softcap = softcap;
  k.argmax = argmax;
  k.log_sum_exp = log_sum_exp;
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
