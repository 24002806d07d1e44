// One piece of a context against the rows of an item.
#pragma once
#include "attention_desk.inl"

namespace armillary {
namespace ARMILLARY_PATH {

// A head's keys and values, a set of rows, and what they come to piece by piece.
class Pieces {
 public:
  Pieces(const AttentionShape& shape, const KvLayer& kv, const Desk& desk)
      : shape_(shape), kv_(kv), layout_(kv), desk_(desk), dim_(shape.head_dim) {}

  // Rows to come, whose queries are gathered next in tiles of `tile()` rows, each [dim][rows of the tile].
  void open(int32_t head, const int64_t* table, int rows) {
    head_ = head;
    table_ = table;
    rows_ = rows;
    direct_ = rows <= kMostDirectRows && kv_.block_size % Vec::N == 0 && dim_ % Vec::N == 0;
  }

  int tile() const { return direct_ ? kDirectRows : kRows; }

  // Scores and weights of positions base + [low, high), of which rows see [desk.first, desk.last), or all of the piece if
  // `whole`. `next`: the piece that comes after this one, to be fetched ahead. Fills piece_top and piece_total of the desk;
  // weights stay where the scores were.
  void weigh_up(int64_t base, int low, int high, bool whole, const Next& next) {
    base_ = base;
    low_ = low;
    high_ = high;
    whole_ = whole;
    find_runs();
    if (direct_ || kv_.element == Element::i8) look_ahead(next);
    switch (kv_.element) {
      case Element::bf16: score_rows<Element::bf16>(next); break;
      case Element::f16: score_rows<Element::f16>(next); break;
      case Element::i8: return weigh_up_int8();
      default: score_rows<Element::f32>(next);
    }
    const ScoreRules rules = {shape_.softcap, nullptr};
    if (!whole_) {
      for (int r = 0; r < rows_; ++r)
        desk_.piece_top[r] = finish_scores(desk_.scores + r * kPiece, first(r), last(r), rules);
      for (int r = 0; r < rows_; ++r)
        desk_.piece_total[r] = soften(desk_.scores + r * kPiece, first(r), last(r), desk_.piece_top[r]);
    } else if (shape_.softcap > 0) {
      soften_whole<false>(rules);
    } else {
      soften_whole<true>(rules);
    }
  }

  // Sums of the values with the weights that the last call of weigh_up made.
  void sum_values(const Target& target) {
    switch (kv_.element) {
      case Element::bf16: return sum_rows<Element::bf16>(target);
      case Element::f16: return sum_rows<Element::f16>(target);
      case Element::i8: return sum_int8(target);
      default: return sum_rows<Element::f32>(target);
    }
  }

 private:
  int first(int row) const { return whole_ ? 0 : desk_.first[row]; }
  int last(int row) const { return whole_ ? kPiece : desk_.last[row]; }

  template <bool Plain>
  void soften_whole(const ScoreRules& rules) {
    for (int r = 0; r < rows_; ++r) desk_.piece_top[r] = finish_piece<Plain>(desk_.scores + r * kPiece, rules);
    for (int r = 0; r < rows_; ++r)
      desk_.piece_total[r] = soften_piece(desk_.scores + r * kPiece, desk_.piece_top[r]);
  }

  // The same with keys and values of 8 bits, in attention_int8.inl.
  void weigh_up_int8();
  void sum_int8(const Target& target);
  void score_panels();
  void stage_keys(int32_t from);
  void stage_values(int column, int8_t* to);

  // Where the visible positions of the piece lie, and in int8 their scales. No other block is touched.
  void find_runs() {
    run_count_ = 0;
    for (int position = low_; position < high_;) {
      const int64_t at = base_ + position;
      const int64_t begin = table_[at / kv_.block_size] * layout_.block_bytes;
      const int32_t offset = int32_t(at % kv_.block_size);
      int32_t count = kv_.block_size - offset;
      if (count > high_ - position) count = high_ - position;
      const int64_t head = begin + head_ * layout_.head_bytes;
      places_[run_count_] = {kv_.keys + head, kv_.values + head, offset};
      const uint8_t* values = kv_.values + head + layout_.value_at(offset, 0) * element_bytes(kv_.element);
      runs_[run_count_++] = {values, position, count, values};
      if (kv_.element == Element::i8) {
        const int64_t scale = head + layout_.scales + offset * 4;
        const float* keys = reinterpret_cast<const float*>(kv_.keys + scale);
        const float* steps = reinterpret_cast<const float*>(kv_.values + scale);
        for (int32_t i = 0; i < count; ++i) {
          desk_.key_scales[position + i] = keys[i];
          desk_.value_scales[position + i] = steps[i];
        }
      }
      position += count;
    }
  }

  // Memory of a position of the piece to come, counted from the keys' first byte; keys and values lie alike. Not sure to be
  // the cache's, where a window begins within the piece: an address to be asked for, not to be read.
  uintptr_t place_ahead(const Next& next, int64_t at) const {
    const int64_t row = at % kv_.block_size * dim_ * element_bytes(kv_.element);
    return uintptr_t(next.table[at / kv_.block_size] * layout_.block_bytes + next.head * layout_.head_bytes + row);
  }

  // Fetches ahead: while the keys are read, the values, and while the values are read, the keys of the next piece, run
  // for run. A processor fetches ahead by itself within a page, but a block of one head is often just a page.
  void look_ahead(const Next& next) {
    if (!next.table) return;
    for (int i = 0; i < run_count_; ++i) {
      const int64_t at = next.base + runs_[i].first;
      if (at >= next.end) return;
      runs_[i].ahead = reinterpret_cast<const uint8_t*>(uintptr_t(kv_.keys) + place_ahead(next, at));
      if (kv_.element == Element::i8) {
        const uintptr_t scales = uintptr_t(layout_.scales - at % kv_.block_size * (dim_ - 4));
        __builtin_prefetch(runs_[i].ahead + scales);
        __builtin_prefetch(reinterpret_cast<const uint8_t*>(uintptr_t(kv_.values) + place_ahead(next, at) + scales));
      }
    }
  }

  // The same where copies are made: keys and values of positions [begin, end) of the next piece.
  void fetch(const Next& next, int begin, int end) const {
    if (!next.table) return;
    const int64_t size = dim_ * element_bytes(kv_.element);
    for (int64_t at = next.base + begin; at < next.base + end && at < next.end; ++at) {
      const uintptr_t place = place_ahead(next, at);
      const uint8_t* keys = reinterpret_cast<const uint8_t*>(uintptr_t(kv_.keys) + place);
      const uint8_t* values = reinterpret_cast<const uint8_t*>(uintptr_t(kv_.values) + place);
      for (int64_t i = 0; i < size; i += 64) {
        __builtin_prefetch(keys + i, 0, 2);
        __builtin_prefetch(values + i, 0, 2);
      }
    }
  }

  template <Element E>
  void score_rows(const Next& next) {
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
  void score_copied(int begin, int end, int from) {
    for (int row = begin; row < end;) {
      int tiles = 0;
      while (row + (tiles + 1) * kRows <= end && sees(row + tiles * kRows, row + (tiles + 1) * kRows, from)) ++tiles;
      const float* q = desk_.query + int64_t(row) * dim_;
      float* out = desk_.scores + row * kPiece + from;
      if (tiles)
        score_tiles<kRows>(q, desk_.keys, dim_, out, tiles);
      else if (end - row < kRows && sees(row, end, from))
        with_count<kRows>(end - row, [&](auto rows) {
          score_tiles<decltype(rows)::value>(q, desk_.keys, dim_, out, 1);
        });
      row += tiles ? tiles * kRows : kRows;
    }
  }

  // Whether any of the rows [begin, end) sees any of the kWide positions from `from` on.
  bool sees(int begin, int end, int from) const {
    if (whole_) return true;
    for (int r = begin; r < end; ++r)
      if (first(r) < from + kWide && last(r) > from) return true;
    return false;
  }

  // Scores from the blocks themselves. Blocks are whole groups of vectors here, so a group never leaves its panel; lanes
  // before or after the visible positions come from the same panel and are hidden later.
  template <Element E>
  void score_blocks() {
    if constexpr (2 * Vec::N <= kPanel)
      if (kv_.block_size % (2 * Vec::N) == 0) return score_groups<E, 2, 2>();
    score_groups<E, 4, 1>();
  }

  template <Element E, int Most, int G>
  void score_groups() {
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
  void copy_keys(int from) {
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
  void copy_values(int column) {
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
  void sum_rows(const Target& target) {
    if (direct_) {
      const int vectors = dim_ / Vec::N;
      const int four = vectors / 4, two = vectors % 4 / 2;
      each_tile<kDirectRows>(target, [&](auto rows, const float* weights, const Sight& sight, const Target& to) {
        constexpr int R = decltype(rows)::value;
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
        each_tile<kRows>(target, [&](auto rows, const float* weights, const Sight& sight, Target to) {
          to.to += column;
          weigh<Element::f32, decltype(rows)::value, 2>(weights, &run, kWide, 0, 1, sight, to);
        });
      }
    }
  }

  static Target row_of(Target target, int row) {
    target.to += row * target.stride;
    if (target.keep) {
      target.keep += row;
      target.add += row;
    }
    return target;
  }

  // Calls weigh(rows, weights, sight, target) for all rows that see anything, up to `Most` at a time.
  template <int Most, class Weigh>
  void each_tile(const Target& target, const Weigh& weigh) const {
    for (int row = 0; row < rows_;) {
      if (first(row) >= last(row)) {
        ++row;
        continue;
      }
      int count = 0;
      Sight sight = {kPiece, 0, kPiece, 0, desk_.first + row, desk_.last + row};
      for (; count < Most && row + count < rows_ && first(row + count) < last(row + count); ++count) {
        const int f = first(row + count), l = last(row + count);
        sight.least = f < sight.least ? f : sight.least;
        sight.begin = f > sight.begin ? f : sight.begin;
        sight.end = l < sight.end ? l : sight.end;
        sight.most = l > sight.most ? l : sight.most;
      }
      with_count<Most>(count, [&](auto rows) { weigh(rows, desk_.scores + row * kPiece, sight, row_of(target, row)); });
      row += count;
    }
  }

  struct Place {
    const uint8_t* keys;  // of the head, in the run's block
    const uint8_t* values;
    int32_t offset;       // of the run's first position in its block
  };

  const AttentionShape& shape_;
  const KvLayer& kv_;
  const BlockLayout layout_;
  const Desk& desk_;
  const int dim_;
  int32_t head_ = 0;
  const int64_t* table_ = nullptr;
  int rows_ = 0;
  bool direct_ = false;     // read the blocks themselves: few rows, and whole vectors
  int64_t base_ = 0;        // position of the piece at hand
  int low_ = 0, high_ = 0;  // what any row sees of it
  bool whole_ = false;      // whether every row sees all of it
  int run_count_ = 0;
  Run runs_[kPiece];
  Place places_[kPiece];
};

}  // namespace ARMILLARY_PATH
}  // namespace armillary
