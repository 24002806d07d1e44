// From scores to weights, piece by piece, and how pieces are put together.
#pragma once
#include "attention_tiles.inl"
#include "vec_activation.h"

namespace armillary {
namespace ARMILLARY_PATH {

// A row's largest score in a piece and the sum of its weights, which are relative to that.
struct Peak {
  float top;
  float total;
};

struct ScoreRules {
  float softcap;              // 0: none
  const float* key_scales;    // int8: [kPiece]; else null
  const float* value_scales;
};

// Turns the scores of positions [first, last) of a piece into weights of their values, in place. Other positions' scores may
// be anything; their weights are undefined, and no one asks for them.
inline Peak soften(float* scores, int first, int last, const ScoreRules& rules) {
  alignas(64) static constexpr float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Vec hidden = Vec::set(-__builtin_inff());
  const int begin = first / Vec::N, end = (last + Vec::N - 1) / Vec::N;
  Vec most = hidden;
  for (int v = begin; v < end; ++v) {
    float* at = scores + v * Vec::N;
    Vec s = Vec::load(at);
    if (rules.key_scales) s = s * Vec::load(rules.key_scales + v * Vec::N);
    if (rules.softcap > 0) s = tanh(s / Vec::set(rules.softcap)) * Vec::set(rules.softcap);
    if (v * Vec::N < first || (v + 1) * Vec::N > last) {
      const Vec lane = Vec::load(kLanes);
      s = Vec::where_less(lane, Vec::set(float(first - v * Vec::N)), hidden, s);
      s = Vec::where_less(lane, Vec::set(float(last - v * Vec::N)), s, hidden);
    }
    s.store(at);
    most = Vec::max(s, most);  // NaN is left out: it comes back in the weights
  }
  Peak peak;
  peak.top = largest(most);
  // Without a finite score there is nothing to be relative to: weights are 0.
  const Vec base = Vec::set(peak.top == -__builtin_inff() ? 0.f : peak.top);
  Vec total = Vec::zero();
  for (int v = begin; v < end; ++v) {
    float* at = scores + v * Vec::N;
    Vec weight = exp(Vec::load(at) - base);
    total = total + weight;
    if (rules.value_scales) weight = weight * Vec::load(rules.value_scales + v * Vec::N);
    weight.store(at);
  }
  peak.total = sum(total);
  return peak;
}

// Adds a piece to what came before it: the new peak, and the factors of the sums before and of the piece's.
inline void add_peak(Peak& peak, const Peak& piece, float& keep, float& add) {
  const float top = piece.top > peak.top ? piece.top : peak.top;
  const float base = top == -__builtin_inff() ? 0.f : top;
  float both[Vec::N] = {peak.top - base, piece.top - base};
  exp(Vec::load(both)).store(both);
  keep = both[0];
  add = both[1];
  peak.total = peak.total * keep + piece.total * add;
  peak.top = top;
}

// out = the row's sums over their weights, of which `sink` (a logit, or null) has its share.
inline void finish_row(const float* state, Peak peak, const float* sink, int dim, float* out) {
  float keep = 1, add = 0;
  if (sink) add_peak(peak, Peak{*sink, 1.f}, keep, add);
  const Vec factor = Vec::set(keep), total = Vec::set(peak.total);
  for (int i = 0; i < dim; i += Vec::N) {
    const int lanes = dim - i < Vec::N ? dim - i : Vec::N;
    (Vec::load(state + i, lanes) * factor / total).store(out + i, lanes);
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
