// Keys and values of float32, or widened to it: from the cache's own blocks where few rows read them, else from a copy.
#pragma once
#include "attention_piece.inl"

namespace armillary {
namespace ARMILLARY_PATH {

template <bool Plain>
inline void Pieces::soften_whole(const ScoreRules& rules) {
  for (int r = 0; r < rows_; ++r) desk_.piece_top[r] = finish_piece<Plain>(desk_.scores + r * kPiece, rules);
  for (int r = 0; r < rows_; ++r)
    desk_.piece_total[r] = soften_piece(desk_.scores + r * kPiece, desk_.piece_top[r]);
}

template <Element E>
inline void Pieces::score_rows(const Next& next) {
  if (direct_) return score_blocks<E>();
  // What comes next is fetched a little at a time, as fast as memory gives it while this is computed.
  constexpr int kAtOnce = 4 * kRows;
  const int steps = kPiece / kWide * ((rows_ + kAtOnce - 1) / kAtOnce);
  int step = 0;
  for (int from = low_ / kWide * kWide; from < high_; from += kWide) {
    copy_keys<E>(from);
    for (int row = 0; row < rows_; row += kAtOnce, ++step) {
      fetch(next, kPiece * step / steps, kPiece * (step + 1) / steps);
      score_copied(row, row + kAtOnce < rows_ ? row + kAtOnce : rows_, from);
    }
  }
}

// Scores of rows [begin, end), less tiles that see nothing, against the copy of the kWide positions from `from` on.
inline void Pieces::score_copied(int begin, int end, int from) {
  for (int row = begin; row < end;) {
    int tiles = 0;
    const auto seen = [&](int first, int last) { return sees(first, last, from, from + kWide); };
    while (row + (tiles + 1) * kRows <= end && seen(row + tiles * kRows, row + (tiles + 1) * kRows)) ++tiles;
    const float* q = desk_.query + int64_t(row) * dim_;
    float* out = desk_.scores + row * kPiece + from;
    if (tiles)
      score_tiles<kRows>(q, desk_.keys, dim_, out, tiles);
    else if (end - row < kRows && seen(row, end))
      with_count<kRows>(end - row, [&](auto rows) {
        score_tiles<decltype(rows)::value>(q, desk_.keys, dim_, out, 1);
      });
    row += tiles ? tiles * kRows : kRows;
  }
}

// Scores from the blocks themselves. Blocks are whole groups of vectors here, so a group never leaves its panel; lanes
// before or after the visible positions come from the same panel and are hidden later.
template <Element E>
inline void Pieces::score_blocks() {
  if constexpr (2 * Vec::N <= kPanel)
    if (kv_.block_size % (2 * Vec::N) == 0) return score_groups<E, 2, 2>();
  score_groups<E, 4, 1>();
}

template <Element E, int Most, int G>
inline void Pieces::score_groups() {
  using T = typename Stored<E>::Type;
  constexpr int kGroup = G * Vec::N;
  const T* keys[kPieceVecs];
  const uint8_t* ahead[kPieceVecs];
  int place[kPieceVecs];
  int stride[kPieceVecs];
  int count = 0;
  for (int i = 0; i < run_count_; ++i) {
    const int32_t offset = places_[i].offset;
    for (int32_t at = offset / kGroup * kGroup; at < offset + runs_[i].count; at += kGroup) {
      keys[count] = reinterpret_cast<const T*>(places_[i].keys) + layout_.key_at(at);
      ahead[count] = runs_[i].values + (at - offset) * dim_ * int64_t(sizeof(T));
      stride[count] = layout_.panel_width(at);
      place[count++] = runs_[i].first - offset + at;
    }
  }
  for (int v = 0; v < count;) {
    int same = 1;
    while (v + same < count && same < Most && stride[v + same] == stride[v]) ++same;
    const int taken = same == Most ? Most : 1;
    for (int tile = 0; tile < rows_; tile += kDirectRows)
      with_count<kDirectRows>(rows_ - tile, [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        const float* q = desk_.query + int64_t(tile) * dim_;
        float* out = desk_.scores + tile * kPiece;
        if (taken == Most)
          score<E, R, Most, G, true>(q, keys + v, stride[v], dim_, out, place + v, ahead + v);
        else
          score<E, R, 1, G, true>(q, keys + v, stride[v], dim_, out, place + v, ahead + v);
      });
    v += taken;
  }
}

// Visible keys of the kWide positions from `from` on as float32: [dim][kWide].
template <Element E>
inline void Pieces::copy_keys(int from) {
  using T = typename Stored<E>::Type;
  const bool vectors = kv_.block_size % Vec::N == 0;
  const int step = vectors ? Vec::N : 1;
  for (int i = 0; i < run_count_; ++i) {
    const T* keys = reinterpret_cast<const T*>(places_[i].keys);
    const int32_t shift = runs_[i].first - places_[i].offset;
    int32_t begin = places_[i].offset, end = begin + runs_[i].count;
    if (begin < from - shift) begin = from - shift;
    if (end > from + kWide - shift) end = from + kWide - shift;
    for (int32_t at = begin / step * step; at < end; at += step) {
      const T* source = keys + layout_.key_at(at);
      const int64_t stride = layout_.panel_width(at);
      float* to = desk_.keys + (at + shift - from);
      if (vectors)
        for (int d = 0; d < dim_; ++d) Stored<E>::load(source + d * stride).store(to + d * kWide);
      else
        for (int d = 0; d < dim_; ++d) to[d * kWide] = read_element(source, d * stride, E);
    }
  }
}

// Visible values' dimensions [column, column + kBroad) as float32: [columns of kWide dimensions][kPiece][kWide].
template <Element E>
inline void Pieces::copy_values(int column) {
  using T = typename Stored<E>::Type;
  for (int i = 0; i < run_count_; ++i) {
    const T* source = reinterpret_cast<const T*>(runs_[i].values) + column;
    float* row = desk_.values + runs_[i].first * kWide;
    for (int32_t n = 0; n < runs_[i].count; ++n, source += dim_, row += kWide)
      for (int d = 0; d < kBroad; d += kWide) {
        float* to = row + d * kPiece;
        if (column + d + kWide <= dim_) {
          Vec pair[2];
          load_many<E, 2>(source + d, pair);
          put_in_order<E, 2>(pair);
          pair[0].store(to);
          pair[1].store(to + Vec::N);
        } else {
          for (int lane = 0; lane < kWide; ++lane)
            to[lane] = column + d + lane < dim_ ? read_element(source, d + lane, E) : 0.f;
        }
      }
  }
}

template <Element E>
inline void Pieces::sum_rows(const Target& target) {
  if (direct_) {
    const int vectors = dim_ / Vec::N;
    const int four = vectors / 4, two = vectors % 4 / 2;
    each_tile<kDirectRows>(target, 0, rows_, [&](auto rows, int row, const Sight& sight, const Target& to) {
      constexpr int R = decltype(rows)::value;
      const float* weights = desk_.scores + row * kPiece;
      if (four) weigh<E, R, 4>(weights, runs_, dim_, 0, four, sight, to);
      if (two) weigh<E, R, 2>(weights, runs_, dim_, four * 4 * Vec::N, 1, sight, to);
      if (vectors % 2) weigh<E, R, 1>(weights, runs_, dim_, (vectors - 1) * Vec::N, 1, sight, to);
    });
    return;
  }
  for (int column = 0; column < dim_; column += kWide) {
    if (column % kBroad == 0) copy_values<E>(column);
    const float* values = desk_.values + column % kBroad * kPiece;
    if (whole_) {
      const int tiles = rows_ / kRows, done = tiles * kRows;
      weigh_whole<kRows>(desk_.scores, values, column, tiles, target);
      if (done == rows_) continue;
      with_count<kRows>(rows_ - done, [&](auto rows) {
        weigh_whole<decltype(rows)::value>(desk_.scores + done * kPiece, values, column, 1, row_of(target, done));
      });
    } else {
      const uint8_t* bytes = reinterpret_cast<const uint8_t*>(values);
      const Run run = {bytes, 0, kPiece, bytes};
      each_tile<kRows>(target, 0, rows_, [&](auto rows, int row, const Sight& sight, Target to) {
        to.to += column;
        weigh<Element::f32, decltype(rows)::value, 2>(desk_.scores + row * kPiece, &run, kWide, 0, 1, sight, to);
      });
    }
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
