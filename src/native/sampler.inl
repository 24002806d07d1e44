// The sampler: from a row of scores to one token, by the rules of armillary.runtime.sampler.
//
// Nothing is sorted. The largest score of every group of neighbours tells which groups can hold a token that may be drawn;
// those tokens are gathered, in order of their number, and a threshold among them is found digit by digit. Odds are summed in
// double, in an order that depends on the row alone.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "rows.inl"
#include "sampler_threshold.h"

namespace armillary {
namespace ARMILLARY_PATH {

// A row's memory: what may still be drawn, and the largest score of every group.
struct Shortlist {
  static constexpr int64_t kGroup = 32;  // the smallest group

  Bins* bins = nullptr;
  double* ends = nullptr;    // sums of odds up to the end of every run
  float* tops = nullptr;
  float* scratch = nullptr;  // as large as tops
  float* scaled = nullptr;
  float* odds = nullptr;
  int32_t* tokens = nullptr;
  int64_t size = 0;

  static size_t bytes(int64_t width) {
    const size_t groups = size_t(width / kGroup + 1), all = size_t(width) + 64;
    return sizeof(Bins) + (size_t(width / kSummed) + 2) * sizeof(double) + 2 * groups * sizeof(float) +
           all * (2 * sizeof(float) + sizeof(int32_t)) + 64;
  }

  Shortlist(uint8_t* memory, int64_t width) {
    const int64_t groups = width / kGroup + 1, all = width + 64;
    bins = reinterpret_cast<Bins*>(memory);
    ends = reinterpret_cast<double*>(bins + 1);
    tops = reinterpret_cast<float*>(ends + width / kSummed + 2);
    scratch = tops + groups;
    scaled = scratch + groups;
    odds = scaled + all;
    tokens = reinterpret_cast<int32_t*>(odds + all);
  }

  // Keeps what `holds(i)` says, in order.
  template <typename Holds>
  void keep(Holds&& holds) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
      const bool stays = holds(i);
      scaled[kept] = scaled[i];
      odds[kept] = odds[i];
      tokens[kept] = tokens[i];
      kept += stays;
    }
    size = kept;
  }
};

// A row seen through its peak and its temperature: the most probable token has 0, so that no temperature overflows.
struct Scaled {
  const float* row;
  float peak;
  float temperature;

  float of(float score) const { return (score - peak) / temperature; }
  // The first `count` (at most kSummed) values from place i on, and -infinity up to a whole vector.
  void write(int64_t i, int64_t count, float* to) const {
    const Vec top = Vec::set(peak), heat = Vec::set(temperature);
    for (int64_t j = 0; j < count; j += Vec::N) {
      const int64_t left = count - j;
      const Vec v = left >= Vec::N ? Vec::load(row + i + j)
                                   : load_padded(row + i + j, int(left), -std::numeric_limits<float>::infinity());
      ((v - top) / heat).store(to + j);
    }
  }
};

// e^x of `count` values in place; values after them, up to a whole vector, may be overwritten.
inline void raise(float* values, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::N) exp(Vec::load(values + i)).store(values + i);
}

// Eight sums, added by halves: the same on every path, whatever its vectors.
inline double sum_of_odds(const float* odds, int64_t count) {
  double lane[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; ++j) lane[j] += double(odds[i + j]);
  for (int j = 0; i + j < count; ++j) lane[j] += double(odds[i + j]);
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// Inverts the cumulative distribution: first the run, then the place within it. run(i, count, buffer) gives the odds of
// `count` places from i on, in `buffer` or elsewhere.
template <typename Run>
inline int64_t invert(int64_t width, double uniform, double* ends, Run&& run) {
  float buffer[kSummed];
  const int64_t runs = (width + kSummed - 1) / kSummed;
  auto length = [&](int64_t index) { return std::min(kSummed, width - index * kSummed); };
  double total = 0;
  for (int64_t index = 0; index < runs; ++index) {
    total += sum_of_odds(run(index * kSummed, length(index), buffer), length(index));
    ends[index] = total;
  }
  const double target = uniform * total;
  int64_t index = 0;
  while (index + 1 < runs && !(ends[index] > target)) ++index;
  const float* odds = run(index * kSummed, length(index), buffer);
  const double rest = target - (index > 0 ? ends[index - 1] : 0);
  // The last place with any odds, should rounding lead past all of them.
  double sum = 0;
  int64_t place = 0;
  for (int64_t i = 0; i < length(index); ++i) {
    if (!(odds[i] > 0)) continue;
    place = i;
    sum += double(odds[i]);
    if (sum > rest) break;
  }
  return index * kSummed + place;
}

// How many neighbours make a group, so that the `wanted` largest scores may lie in as many groups.
inline int64_t group_size(int64_t width, int64_t wanted) {
  int64_t size = 256;
  while (size > Shortlist::kGroup && width / size < 2 * wanted) size /= 2;
  return size;
}

// The largest score of every group, and of the row; NaN if any score is.
inline float find_tops(const float* row, int64_t width, int64_t group, float* tops) {
  Vec broken = Vec::zero();
  float peak = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0, place = 0; i < width; i += group, ++place) {
    tops[place] = peak_of(row + i, std::min(group, width - i), broken);
    peak = tops[place] > peak ? tops[place] : peak;
  }
  const float check = sum(broken);
  return check != check ? check : peak;
}

// A score that at least `wanted` scores reach: the top of the group that comes so late among all tops.
inline float bound_of(const Shortlist& list, int64_t groups, int64_t wanted) {
  if (wanted > groups) return -std::numeric_limits<float>::infinity();
  std::copy(list.tops, list.tops + groups, list.scratch);
  std::nth_element(list.scratch, list.scratch + (wanted - 1), list.scratch + groups,
                   [](float a, float b) { return a > b; });
  return list.scratch[wanted - 1];
}

// Gathers the tokens whose scaled score reaches `bound`.
inline void gather(Shortlist& list, const Scaled& view, int64_t width, int64_t group, float bound) {
  float buffer[256 + Vec::N];
  list.size = 0;
  for (int64_t i = 0, place = 0; i < width; i += group, ++place) {
    if (!(view.of(list.tops[place]) >= bound)) continue;
    const int64_t count = std::min(group, width - i);
    view.write(i, count, buffer);
    for (int64_t j = 0; j < count; ++j) {
      list.scaled[list.size] = buffer[j];
      list.tokens[list.size] = int32_t(i + j);
      list.size += buffer[j] >= bound;
    }
  }
}

// Draws where top-k, top-p or min-p rule tokens out; each is a threshold, so that equal scores are alike.
inline int64_t draw_filtered(Shortlist& list, const Scaled& view, int64_t width, int64_t group, const Draw& draw) {
  const bool limited = draw.top_k > 0 && draw.top_k < width;
  const bool nucleus = draw.top_p < 1;
  const float least = draw.min_p > 0 ? float(std::log(draw.min_p)) : -std::numeric_limits<float>::infinity();
  const int64_t groups = (width + group - 1) / group;
  double total = 0;
  if (limited) {
    gather(list, view, width, group, view.of(bound_of(list, groups, draw.top_k)));
    const float floor = threshold(list.scaled, list.size, double(draw.top_k), *list.bins, [](int64_t) { return 1.0; });
    list.keep([&](int64_t i) { return list.scaled[i] >= floor; });
  } else {
    // Below this a token has no odds in float32.
    float bound = std::max(least, -87.33654f);
    if (nucleus) {
      float buffer[kSummed];
      for (int64_t i = 0; i < width; i += kSummed) {
        const int64_t count = std::min(kSummed, width - i);
        view.write(i, count, buffer);
        raise(buffer, count);
        total += sum_of_odds(buffer, count);
      }
      // Tokens with less odds than this, be they all there are, together have less than is to be left out.
      const double faint = std::log((1 - draw.top_p) * total / double(width)) - 1e-3;
      bound = std::max(bound, float(faint));
    }
    gather(list, view, width, group, bound);
  }
  std::copy(list.scaled, list.scaled + list.size, list.odds);
  raise(list.odds, list.size);
  if (nucleus) {
    if (limited) total = sum_of_odds(list.odds, list.size);
    const float* odds = list.odds;
    const float lowest = threshold(odds, list.size, total * draw.top_p, *list.bins, [&](int64_t i) { return double(odds[i]); });
    list.keep([&](int64_t i) { return odds[i] >= lowest; });
  }
  if (draw.min_p > 0) list.keep([&](int64_t i) { return list.scaled[i] >= least; });
  const float* odds = list.odds;
  return list.tokens[invert(list.size, draw.uniform, list.ends, [&](int64_t i, int64_t, float*) { return odds + i; })];
}

inline int64_t draw_plain(const Scaled& view, int64_t width, double uniform, double* ends) {
  return invert(width, uniform, ends, [&](int64_t i, int64_t count, float* buffer) -> const float* {
    view.write(i, count, buffer);
    raise(buffer, count);
    return buffer;
  });
}

inline void sample(const float* scores, int64_t stride, int64_t width, const int64_t* places, const Draw* draws,
                   int64_t* tokens, int64_t begin, int64_t end, uint8_t* scratch) {
  for (int64_t r = begin; r < end; ++r) {
    const float* row = scores + places[r] * stride;
    const Draw& draw = draws[r];
    Shortlist list(scratch, width);
    const bool limited = draw.top_k > 0 && draw.top_k < width;
    const bool filtered = draw.temperature > 0 && (limited || draw.top_p < 1 || draw.min_p > 0);
    const int64_t group = filtered ? group_size(width, limited ? draw.top_k : 1) : 0;
    float peak = 0;
    int64_t best = 0;
    if (filtered)
      peak = find_tops(row, width, group, list.tops);
    else
      argmax(row, 0, width, &peak, &best, 0, 1);
    const float infinity = std::numeric_limits<float>::infinity();
    const Scaled view{row, peak, draw.temperature};
    if (!(peak < infinity))
      tokens[r] = kNotFinite;
    else if (peak == -infinity)
      tokens[r] = kNoneLeft;
    else if (filtered)
      tokens[r] = draw_filtered(list, view, width, group, draw);
    else
      tokens[r] = draw.temperature > 0 ? draw_plain(view, width, draw.uniform, list.ends) : best;
  }
}

inline void logprobs(const float* scores, int64_t stride, int64_t width, const int64_t* places, const int64_t* tokens,
                     int64_t count, float* chosen, float* values, int64_t* ids, int64_t begin, int64_t end,
                     uint8_t* scratch) {
  for (int64_t r = begin; r < end; ++r) {
    const float* row = scores + places[r] * stride;
    Shortlist list(scratch, width);
    const int64_t group = group_size(width, count);
    const float peak = find_tops(row, width, group, list.tops);
    if (!std::isfinite(peak)) {
      chosen[r] = std::numeric_limits<float>::quiet_NaN();
      for (int64_t i = 0; i < count; ++i) {
        values[r * count + i] = chosen[r];
        ids[r * count + i] = i;
      }
      continue;
    }
    const double whole = std::log(sum_of_powers_of_row(row, width, peak));
    auto logprob = [&](int64_t token) { return float(double(row[token]) - double(peak) - whole); };
    chosen[r] = logprob(tokens[r]);
    if (count == 0) continue;
    const Scaled view{row, 0.f, 1.f};  // the scores themselves
    gather(list, view, width, group, bound_of(list, (width + group - 1) / group, count));
    std::partial_sort(list.tokens, list.tokens + count, list.tokens + list.size, [&](int32_t a, int32_t b) {
      return row[a] > row[b] || (row[a] == row[b] && a < b);
    });
    for (int64_t i = 0; i < count; ++i) {
      ids[r * count + i] = list.tokens[i];
      values[r * count + i] = logprob(list.tokens[i]);
    }
  }
}

inline void fill_sampler(Kernels& k) {
  k.sample_scratch_bytes = Shortlist::bytes;
  k.sample = sample;
  k.logprobs = logprobs;
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
