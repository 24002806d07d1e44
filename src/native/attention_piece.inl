// One piece of a context against the rows of an item.
#pragma once
#include "attention_desk.inl"
#include "attention_pair_tiles.inl"

namespace armillary {
namespace ARMILLARY_PATH {

// A head's keys and values, a set of rows, and what they come to piece by piece.
class Pieces {
 public:
  Pieces(const AttentionShape& shape, const KvLayer& kv, const Desk& desk)
      : shape_(shape), kv_(kv), layout_(kv), desk_(desk), dim_(shape.head_dim) {}

#if defined(ARMILLARY_TILES)
  ~Pieces() {
    if (configured_ >= 0) packed::tile_release();
  }
#endif

  // Rows to come, whose queries are gathered next in tiles of `tile()` rows, each [dim][rows of the tile], or row by row where
  // they are rounded.
  void open(int32_t head, const int64_t* table, int rows) {
    head_ = head;
    table_ = table;
    rows_ = rows;
    const bool vectors = kv_.block_size % Vec::N == 0 && dim_ % Vec::N == 0;
    direct_ = rows <= kMostDirectRows && vectors && !(kOnTiles && kv_.element == Element::bf16);
  }

  int tile() const { return direct_ ? kDirectRows : kRows; }

  // Scores and weights of positions base + [low, high), of which rows see [desk.first, desk.last), or all of the piece if
  // `whole`. `next`: the piece that comes after this one, to be fetched ahead. Fills piece_top and piece_total of the desk;
  // weights stay where the scores were, rounded ones in an array of their own.
  void weigh_up(int64_t base, int low, int high, bool whole, const Next& next) {
    base_ = base;
    low_ = low;
    high_ = high;
    whole_ = whole;
    find_runs();
    if (rows_ <= kMostDirectRows || kv_.element == Element::i8) look_ahead(next);
    switch (kv_.element) {
#if defined(ARMILLARY_PAIRED_ATTENTION)
      case Element::bf16: return weigh_up_pairs(next);
#else
      case Element::bf16: score_rows<Element::bf16>(next); break;
#endif
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
#if defined(ARMILLARY_PAIRED_ATTENTION)
      case Element::bf16: return sum_pairs(target);
#else
      case Element::bf16: return sum_rows<Element::bf16>(target);
#endif
      case Element::f16: return sum_rows<Element::f16>(target);
      case Element::i8: return sum_int8(target);
      default: return sum_rows<Element::f32>(target);
    }
  }

 private:
  int first(int row) const { return whole_ ? 0 : desk_.first[row]; }
  int last(int row) const { return whole_ ? kPiece : desk_.last[row]; }

  // What the cases of float32 and of numbers widened to it are made of, in attention_floats.inl.
  template <bool Plain>
  void soften_whole(const ScoreRules& rules);
  template <Element E>
  void score_rows(const Next& next);
  void score_copied(int begin, int end, int from);
  template <Element E>
  void score_blocks();
  template <Element E, int Most, int G>
  void score_groups();
  template <Element E>
  void copy_keys(int from);
  template <Element E>
  void copy_values(int column);
  template <Element E>
  void sum_rows(const Target& target);

  // The same with keys and values of 8 bits, in attention_int8.inl.
  void weigh_up_int8();
  void sum_int8(const Target& target);
  void score_panels();
  void stage_keys(int32_t from);
  void stage_values(int column, int8_t* to);

#if defined(ARMILLARY_PAIRED_ATTENTION)
  // The same in pairs of bfloat16, in attention_pairs.inl.
  void weigh_up_pairs(const Next& next);
  void sum_pairs(const Target& target);
  void copy_keys_paired();
  void copy_values_paired();
  int find_panels(KeyPanel* panels) const;
  template <class Rows>
  void each_span(const Rows& rows) const;
  template <int Most, int Wide, bool Fetch>
  void score_span(int begin, int end, const KeyPanel* panels, int count) const;
  template <int W>
  void sum_blocks(const Target& target, const PairRun* runs, int& column) const;
  bool on_tiles(int row) const { return kOnTiles && first(row) == 0 && last(row) == kPiece; }
  bool few() const { return rows_ <= kMostDirectRows; }
  bool blocks_in_panels() const { return layout_.paired && kv_.block_size % kPanel == 0; }
  uint16_t* weights_of(int row) const { return reinterpret_cast<uint16_t*>(desk_.weights) + row * kPiece; }
#if defined(ARMILLARY_TILES)
  void multiply_on_tiles(int begin, int end, const void* rows, int64_t width, const void* strips, int tiles);
  void sum_on_tiles(int begin, int end, const Target& target);
  int configured_ = -1;  // what tiles were last configured for
#endif
#endif

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
      const uint8_t* values = kv_.values + head + layout_.value_at(offset, 0) * element_bytes(kv_.element);
      places_[run_count_] = {kv_.keys + head, kv_.values + head, offset, values};
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
      places_[i].ahead = reinterpret_cast<const uint8_t*>(uintptr_t(kv_.values) + place_ahead(next, at));
      if (kv_.element == Element::i8) {
        const uintptr_t scales = uintptr_t(layout_.scales - at % kv_.block_size * (dim_ - 4));
        __builtin_prefetch(runs_[i].ahead + scales);
        __builtin_prefetch(places_[i].ahead + scales);
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

  // Whether any of the rows [begin, end) sees any of the positions [from, to).
  bool sees(int begin, int end, int from, int to) const {
    if (whole_) return true;
    for (int r = begin; r < end; ++r)
      if (first(r) < to && last(r) > from) return true;
    return false;
  }

  static Target row_of(Target target, int row) {
    target.to += row * target.stride;
    if (target.keep) {
      target.keep += row;
      target.add += row;
    }
    return target;
  }

  // Calls weigh(count, row, sight, target) for the rows [begin, end) that see anything, up to `Most` from `row` on at a time.
  template <int Most, class Weigh>
  void each_tile(const Target& target, int begin, int end, const Weigh& weigh) const {
    for (int row = begin; row < end;) {
      if (first(row) >= last(row)) {
        ++row;
        continue;
      }
      int count = 0;
      Sight sight = {kPiece, 0, kPiece, 0, desk_.first + row, desk_.last + row};
      for (; count < Most && row + count < end && first(row + count) < last(row + count); ++count) {
        const int f = first(row + count), l = last(row + count);
        sight.least = f < sight.least ? f : sight.least;
        sight.begin = f > sight.begin ? f : sight.begin;
        sight.end = l < sight.end ? l : sight.end;
        sight.most = l > sight.most ? l : sight.most;
      }
      with_count<Most>(count, [&](auto rows) { weigh(rows, row, sight, row_of(target, row)); });
      row += count;
    }
  }

  struct Place {
    const uint8_t* keys;  // of the head, in the run's block
    const uint8_t* values;
    int32_t offset;        // of the run's first position in its block
    const uint8_t* ahead;  // values that will be read soon, as many as the run's, or else these themselves
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
