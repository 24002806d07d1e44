// A thread's part of a step's attention.
#pragma once
#include "attention_softmax.inl"

namespace armillary {
namespace ARMILLARY_PATH {

inline int64_t whole_vectors(int64_t count) { return (count + kWide - 1) / kWide * kWide; }

inline int most_rows(const AttentionShape& shape) {
  const int group = shape.heads / shape.kv_heads;
  return group > kTileRows ? group : kTileRows;
}

// What one thread works in, as floats.
struct Desk {
  float *query, *keys, *values, *scores, *raw, *state, *keep, *add, *key_scales, *value_scales;
  Peak *peaks, *pieces;
  int32_t *first, *last;  // visible positions of the piece, row by row
  int64_t width;          // of rows of sums

  Desk(const AttentionShape& shape, uint8_t* memory) : at_(memory) {
    const int64_t rows = most_rows(shape);
    width = padded_width(shape.head_dim);
    query = take<float>(rows * shape.head_dim);
    keys = take<float>(int64_t(kPiece) * shape.head_dim);
    values = take<float>(kPiece * width);
    scores = take<float>(rows * kPiece);
    raw = take<float>(rows * width);
    state = take<float>(rows * width);
    keep = take<float>(rows);
    add = take<float>(rows);
    key_scales = take<float>(kPiece);
    value_scales = take<float>(kPiece);
    peaks = take<Peak>(rows);
    pieces = take<Peak>(rows);
    first = take<int32_t>(rows);
    last = take<int32_t>(rows);
  }

 private:
  template <class T>
  T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(at_);
    at_ += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return found;
  }
  uint8_t* at_;
};

inline size_t desk_bytes(const AttentionShape& shape) {
  const size_t rows = size_t(most_rows(shape)), dim = size_t(shape.head_dim), width = size_t(padded_width(shape.head_dim));
  const size_t floats = rows * dim + kPiece * dim + kPiece * width + rows * kPiece + 2 * rows * width + 8 * rows + 2 * kPiece;
  return (floats * 4 + 14 * 64 + 63) / 64 * 64;
}

// One head's keys and values and the query heads that share them, on one thread.
class Worker {
 public:
  Worker(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, const Plan& plan, const float* q,
         int64_t q_stride, float* out, int64_t out_stride, uint8_t* memory)
      : shape_(shape), kv_(kv), step_(step), plan_(plan), layout_(kv), q_(q), q_stride_(q_stride), out_(out),
        out_stride_(out_stride), desk_(shape, memory), heads_(shape.heads / shape.kv_heads), dim_(shape.head_dim) {}

  // Pieces of the task from `begin` to `end`. Without `split` they are the whole task; else the first thread leaves the
  // state of the rows, and others leave a record for each row and piece.
  void work(int32_t head, const PlanGroup& group, const PlanMark& begin, const PlanMark& end, const PlanSplit* split,
            float* shared) {
    head_ = head;
    group_ = &group;
    const int rows = (group.token_end - group.token_begin) * heads_;
    const bool whole = begin.item == group.item_begin && begin.piece == plan_.item[begin.item].piece_begin;
    record_ = nullptr;
    if (whole) {
      for (int64_t i = 0; i < rows * desk_.width; ++i) desk_.state[i] = 0;
      for (int r = 0; r < rows; ++r) desk_.peaks[r] = {-__builtin_inff(), 0.f};
    } else {
      record_ = shared + split->records + records_between(*split, begin) * record_floats(dim_);
    }
    for (int32_t i = begin.item; i < group.item_end && i <= end.item; ++i) {
      const PlanItem& item = plan_.item[i];
      const int32_t from = i == begin.item ? begin.piece : item.piece_begin;
      const int32_t to = i == end.item ? end.piece : item.piece_end;
      if (from < to) run(item, from, to);
    }
    if (!whole) return;
    for (int r = 0; r < rows; ++r) {
      if (!split) {
        finish(r, desk_.state + r * desk_.width, desk_.peaks[r]);
        continue;
      }
      float* state = shared + split->state + r * record_floats(dim_);
      for (int64_t i = 0; i < desk_.width; ++i) state[i] = desk_.state[r * desk_.width + i];
      state[desk_.width] = desk_.peaks[r].top;
      state[desk_.width + 1] = desk_.peaks[r].total;
    }
  }

  // Phase 1: puts a split task's rows together, every `threads`th from `thread` on.
  void combine(int32_t head, const PlanGroup& group, const PlanSplit& split, float* shared, int thread, int threads) {
    head_ = head;
    group_ = &group;
    const int64_t floats = record_floats(dim_);
    const int rows = (group.token_end - group.token_begin) * heads_;
    for (int r = thread; r < rows; r += threads) {
      float* state = shared + split.state + r * floats;
      Peak peak = {state[desk_.width], state[desk_.width + 1]};
      const float* record = shared + split.records;
      for (int32_t i = split.begin.item; i < group.item_end; ++i) {
        const PlanItem& item = plan_.item[i];
        const int32_t from = i == split.begin.item ? split.begin.piece : item.piece_begin;
        const int low = (item.token_begin - group.token_begin) * heads_;
        const int high = (item.token_end - group.token_begin) * heads_;
        for (int32_t piece = from; piece < item.piece_end; ++piece, record += (high - low) * floats) {
          if (r < low || r >= high) continue;
          int32_t first, last;
          visible(plan_.token[group.token_begin + r / heads_], piece, first, last);
          if (first >= last) continue;
          const float* found = record + (r - low) * floats;
          float keep, add;
          add_peak(peak, Peak{found[desk_.width], found[desk_.width + 1]}, keep, add);
          for (int64_t d = 0; d < desk_.width; d += Vec::N)
            Vec::fma(Vec::load(found + d), Vec::set(add), Vec::load(state + d) * Vec::set(keep)).store(state + d);
        }
      }
      finish(r, state, peak);
    }
  }

 private:
  // Rows of pieces that lie between a split's beginning and a later mark of the same task.
  int64_t records_between(const PlanSplit& split, const PlanMark& mark) const {
    int64_t count = 0;
    for (int32_t i = split.begin.item; i <= mark.item; ++i) {
      const PlanItem& item = plan_.item[i];
      const int32_t from = i == split.begin.item ? split.begin.piece : item.piece_begin;
      const int32_t to = i == mark.item ? mark.piece : item.piece_end;
      count += int64_t(item.token_end - item.token_begin) * heads_ * (to - from);
    }
    return count;
  }

  int64_t lowest(int64_t position) const {
    return shape_.window > 0 && position >= shape_.window ? position - shape_.window + 1 : 0;
  }

  // The positions of a piece that a token sees, counted from the piece's first.
  void visible(const PlanToken& token, int32_t piece, int32_t& first, int32_t& last) const {
    const int64_t base = int64_t(piece) * kPiece;
    const int64_t low = lowest(token.position) - base, high = token.position + 1 - base;
    first = int32_t(low < 0 ? 0 : low > kPiece ? kPiece : low);
    last = int32_t(high < 0 ? 0 : high > kPiece ? kPiece : high);
  }

  void finish(int row, const float* state, const Peak& peak) const {
    const int64_t head = int64_t(head_) * heads_ + row % heads_;
    const PlanToken& token = plan_.token[group_->token_begin + row / heads_];
    finish_row(state, peak, shape_.sinks ? shape_.sinks + head : nullptr, dim_,
               out_ + token.row * out_stride_ + head * dim_);
  }

  // All pieces of an item that are this thread's.
  void run(const PlanItem& item, int32_t from, int32_t to) {
    row0_ = (item.token_begin - group_->token_begin) * heads_;
    rows_ = (item.token_end - item.token_begin) * heads_;
    table_ = step_.tables + item.sequence * step_.table_stride;
    direct_ = rows_ <= kMostDirectRows && kv_.block_size % Vec::N == 0 && dim_ % Vec::N == 0;
    tile_ = direct_ ? kDirectRows : kRows;
    gather_queries(item);
    for (int32_t piece = from; piece < to; ++piece) {
      base_ = int64_t(piece) * kPiece;
      low_ = kPiece;
      high_ = 0;
      for (int r = 0; r < rows_; ++r) {
        visible(plan_.token[item.token_begin + r / heads_], piece, desk_.first[r], desk_.last[r]);
        if (desk_.first[r] >= desk_.last[r]) continue;
        low_ = desk_.first[r] < low_ ? desk_.first[r] : low_;
        high_ = desk_.last[r] > high_ ? desk_.last[r] : high_;
      }
      if (low_ < high_) switch (kv_.element) {
          case Element::bf16: compute<Element::bf16>(); break;
          case Element::f16: compute<Element::f16>(); break;
          case Element::i8: compute<Element::i8>(); break;
          default: compute<Element::f32>();
        }
      if (record_) record_ += rows_ * record_floats(dim_);
    }
  }

  // Queries of an item times the scale, in tiles of rows [dim][rows of the tile].
  void gather_queries(const PlanItem& item) {
    for (int tile = 0; tile < rows_; tile += tile_) {
      const int count = rows_ - tile < tile_ ? rows_ - tile : tile_;
      float* to = desk_.query + int64_t(tile) * dim_;
      for (int r = 0; r < count; ++r) {
        const int row = tile + r;
        const int64_t head = int64_t(head_) * heads_ + row % heads_;
        const float* from = q_ + plan_.token[item.token_begin + row / heads_].row * q_stride_ + head * dim_;
        for (int d = 0; d < dim_; ++d) to[d * count + r] = from[d] * shape_.scale;
      }
    }
  }

  template <Element E>
  void compute() {
    find_runs();
    if (direct_)
      score_direct<E>();
    else
      score_copy<E>();
    const ScoreRules rules = {shape_.softcap, E == Element::i8 ? desk_.key_scales : nullptr,
                              E == Element::i8 ? desk_.value_scales : nullptr};
    for (int r = 0; r < rows_; ++r) {
      if (desk_.first[r] >= desk_.last[r]) continue;
      const Peak piece = soften(desk_.scores + r * kPiece, desk_.first[r], desk_.last[r], rules);
      if (record_) {
        float* record = record_ + r * record_floats(dim_);
        record[desk_.width] = piece.top;
        record[desk_.width + 1] = piece.total;
      } else {
        add_peak(desk_.peaks[row0_ + r], piece, desk_.keep[r], desk_.add[r]);
      }
    }
    if (direct_)
      weigh_direct<E>();
    else
      weigh_copy<E>();
  }

  // Where the visible positions of the piece lie, and in int8 their scales. No other block is touched.
  void find_runs() {
    run_count_ = 0;
    for (int position = low_; position < high_;) {
      const int64_t at = base_ + position;
      const int64_t block = table_[at / kv_.block_size];
      const int32_t offset = int32_t(at % kv_.block_size);
      int32_t count = kv_.block_size - offset;
      if (count > high_ - position) count = high_ - position;
      const int64_t begin = block * layout_.block_bytes;
      Place& place = places_[run_count_];
      place.keys = kv_.keys + begin + head_ * layout_.head_bytes;
      place.offset = offset;
      runs_[run_count_++] = {kv_.values + begin + head_ * layout_.head_bytes +
                                 layout_.value_at(offset) * element_bytes(kv_.element),
                             position, count};
      if (kv_.element == Element::i8) {
        const int64_t scale = int64_t(head_) * kv_.block_size + offset;
        const float* keys = reinterpret_cast<const float*>(kv_.keys + begin + layout_.scales) + scale;
        const float* values = reinterpret_cast<const float*>(kv_.values + begin + layout_.scales) + scale;
        for (int32_t i = 0; i < count; ++i) {
          desk_.key_scales[position + i] = keys[i];
          desk_.value_scales[position + i] = values[i];
        }
      }
      position += count;
    }
  }

  // Scores from the blocks themselves. Blocks are whole vectors here, so a vector never leaves its panel; lanes before or
  // after the visible positions come from the same panel and are hidden later.
  template <Element E>
  void score_direct() {
    using T = typename Stored<E>::Type;
    const T* keys[kPieceVecs];
    int place[kPieceVecs];
    int stride[kPieceVecs];
    int count = 0;
    for (int i = 0; i < run_count_; ++i) {
      const Run& run = runs_[i];
      const int32_t shift = run.first - places_[i].offset;  // from a block's offsets to the piece's positions
      for (int32_t at = places_[i].offset / Vec::N * Vec::N; at < places_[i].offset + run.count; at += Vec::N) {
        keys[count] = reinterpret_cast<const T*>(places_[i].keys) + layout_.key_at(at);
        stride[count] = layout_.panel_width(at);
        place[count++] = at + shift;
      }
    }
    for (int v = 0; v < count;) {
      int same = 1;
      while (v + same < count && same < 4 && stride[v + same] == stride[v]) ++same;
      const int taken = same == 3 ? 2 : same;
      for (int tile = 0; tile < rows_; tile += kDirectRows)
        with_count<kDirectRows>(rows_ - tile, [&](auto rows) {
          constexpr int R = decltype(rows)::value;
          const float* q = desk_.query + int64_t(tile) * dim_;
          float* out = desk_.scores + tile * kPiece;
          if (taken == 4)
            score<E, R, 4>(q, keys + v, stride[v], dim_, out, place + v);
          else if (taken == 2)
            score<E, R, 2>(q, keys + v, stride[v], dim_, out, place + v);
          else
            score<E, R, 1>(q, keys + v, stride[v], dim_, out, place + v);
        });
      v += taken;
    }
  }

  template <Element E>
  void weigh_direct() {
    const int vectors = dim_ / Vec::N;
    each_tile<kDirectRows>([&](auto rows, int row, int begin, int end, const Sums& sums) {
      constexpr int R = decltype(rows)::value;
      const float* weights = desk_.scores + row * kPiece;
      int v = 0;
      for (; v + 4 <= vectors; v += 4)
        weigh<E, R, 4>(weights, runs_, dim_, v * Vec::N, begin, end, v * Vec::N, sums);
      for (; v + 2 <= vectors; v += 2)
        weigh<E, R, 2>(weights, runs_, dim_, v * Vec::N, begin, end, v * Vec::N, sums);
      for (; v < vectors; ++v) weigh<E, R, 1>(weights, runs_, dim_, v * Vec::N, begin, end, v * Vec::N, sums);
    });
  }

  // Copies the visible keys and values as float32: keys [vectors of kWide positions][dim][kWide], values [columns of
  // kWide dimensions][kPiece][kWide].
  template <Element E>
  void copy() {
    using T = typename Stored<E>::Type;
    const int64_t columns = whole_vectors(dim_) / kWide;
    for (int i = 0; i < run_count_; ++i) {
      const Run& run = runs_[i];
      const T* keys = reinterpret_cast<const T*>(places_[i].keys);
      const int32_t offset = places_[i].offset;
      if (kv_.block_size % Vec::N == 0) {
        for (int32_t at = offset / Vec::N * Vec::N; at < offset + run.count; at += Vec::N) {
          const int position = run.first - offset + at;
          const T* from = keys + layout_.key_at(at);
          const int stride = layout_.panel_width(at);
          float* to = desk_.keys + int64_t(position / kWide) * kWide * dim_ + position % kWide;
          for (int d = 0; d < dim_; ++d) Stored<E>::load(from + d * stride).store(to + d * kWide);
        }
      } else {
        for (int32_t at = offset; at < offset + run.count; ++at) {
          const int position = run.first - offset + at;
          const int64_t from = layout_.key_at(at);
          const int stride = layout_.panel_width(at);
          float* to = desk_.keys + int64_t(position / kWide) * kWide * dim_ + position % kWide;
          for (int d = 0; d < dim_; ++d) to[d * kWide] = read_element(keys, from + d * stride, E);
        }
      }
      for (int32_t n = 0; n < run.count; ++n) {
        const T* from = reinterpret_cast<const T*>(run.values) + int64_t(n) * dim_;
        float* to = desk_.values + (run.first + n) * kWide;
        for (int64_t column = 0; column < columns; ++column, to += kPiece * kWide)
          for (int part = 0; part < kWide; part += Vec::N) {
            const int64_t d = column * kWide + part;
            if (d + Vec::N <= dim_)
              Stored<E>::load(from + d).store(to + part);
            else
              for (int lane = 0; lane < Vec::N; ++lane)
                to[part + lane] = d + lane < dim_ ? read_element(from, d + lane, E) : 0.f;
          }
      }
    }
  }

  template <Element E>
  void score_copy() {
    copy<E>();
    for (int panel = low_ / kWide; panel * kWide < high_; ++panel) {
      const float* base = desk_.keys + int64_t(panel) * kWide * dim_;
      const float* keys[2] = {base, base + Vec::N};
      const int place[2] = {panel * kWide, panel * kWide + Vec::N};
      for (int tile = 0; tile < rows_; tile += kRows)
        with_count<kRows>(rows_ - tile, [&](auto rows) {
          constexpr int R = decltype(rows)::value;
          score<Element::f32, R, 2>(desk_.query + int64_t(tile) * dim_, keys, kWide, dim_,
                                    desk_.scores + tile * kPiece, place);
        });
    }
  }

  template <Element E>
  void weigh_copy() {
    const int64_t columns = whole_vectors(dim_) / kWide;
    for (int64_t column = 0; column < columns; ++column) {
      const Run run = {reinterpret_cast<const uint8_t*>(desk_.values + column * kPiece * kWide), 0, kPiece};
      each_tile<kRows>([&](auto rows, int row, int begin, int end, const Sums& sums) {
        constexpr int R = decltype(rows)::value;
        weigh<Element::f32, R, 2>(desk_.scores + row * kPiece, &run, kWide, 0, begin, end, column * kWide, sums);
      });
    }
  }

  Sums raw_sums(int row) const {
    if (record_) return {record_ + row * record_floats(dim_), record_floats(dim_), false, nullptr, 0, nullptr, nullptr};
    return {desk_.raw + row * desk_.width, desk_.width, false, nullptr, 0, nullptr, nullptr};
  }

  Sums final_sums(int row) const {
    Sums sums = raw_sums(row);
    if (record_) return sums;
    sums.state = desk_.state + (row0_ + row) * desk_.width;
    sums.state_stride = desk_.width;
    sums.keep = desk_.keep + row;
    sums.add = desk_.add + row;
    return sums;
  }

  // Calls weigh(rows, first row, begin, end, sums) so that each row that sees anything has its own visible positions
  // summed, in order, and no others: what rows of a tile see together in one go, what only some see row by row.
  template <int Most, class Weigh>
  void each_tile(const Weigh& weigh) const {
    const int32_t *first = desk_.first, *last = desk_.last;
    for (int row = 0; row < rows_;) {
      if (first[row] >= last[row]) {
        ++row;
        continue;
      }
      int count = 1, begin = first[row], end = last[row], least = begin, most = end;
      for (; count < Most && row + count < rows_ && first[row + count] < last[row + count]; ++count) {
        const int32_t f = first[row + count], l = last[row + count];
        begin = f > begin ? f : begin;
        least = f < least ? f : least;
        end = l < end ? l : end;
        most = l > most ? l : most;
      }
      if (begin == least && end == most) {
        with_count<Most>(count, [&](auto rows) { weigh(rows, row, begin, end, final_sums(row)); });
      } else if (begin < end) {
        for (int r = row; r < row + count; ++r) weigh(Count<1>(), r, first[r], begin, raw_sums(r));
        Sums middle = raw_sums(row);
        middle.resume = true;
        with_count<Most>(count, [&](auto rows) { weigh(rows, row, begin, end, middle); });
        for (int r = row; r < row + count; ++r) {
          Sums sums = final_sums(r);
          sums.resume = true;
          weigh(Count<1>(), r, end, last[r], sums);
        }
      } else {
        for (int r = row; r < row + count; ++r) weigh(Count<1>(), r, first[r], last[r], final_sums(r));
      }
      row += count;
    }
  }

  struct Place {
    const uint8_t* keys;  // of the head, in the run's block
    int32_t offset;       // of the run's first position in its block
  };

  const AttentionShape& shape_;
  const KvLayer& kv_;
  const StepRows& step_;
  const Plan& plan_;
  const BlockLayout layout_;
  const float* q_;
  const int64_t q_stride_;
  float* out_;
  const int64_t out_stride_;
  const Desk desk_;
  const int heads_;  // query heads that share a key's head
  const int dim_;
  int32_t head_ = 0;
  const PlanGroup* group_ = nullptr;
  const int64_t* table_ = nullptr;
  float* record_ = nullptr;  // of the item's first row and the piece at hand; null where sums go to the state
  int row0_ = 0, rows_ = 0;  // of the item, in the group
  int tile_ = 1;
  bool direct_ = false;
  int64_t base_ = 0;         // position of the piece at hand
  int low_ = 0, high_ = 0;   // what any row sees of it
  int run_count_ = 0;
  Run runs_[kPiece];
  Place places_[kPiece];
};

inline size_t attention_scratch_bytes(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, int threads) {
  return desk_bytes(shape) * size_t(threads) + attention_split_bytes(shape, kv, step, threads);
}

inline void attend(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, const void* plan_memory,
                   const float* q, int64_t q_stride, float* out, int64_t out_stride, uint8_t* scratch, int thread,
                   int threads, int phase) {
  const Plan& plan = *static_cast<const Plan*>(plan_memory);
  float* shared = reinterpret_cast<float*>(scratch + desk_bytes(shape) * size_t(threads));
  Worker worker(shape, kv, step, plan, q, q_stride, out, out_stride, scratch + desk_bytes(shape) * size_t(thread));
  if (phase == 1) {
    for (int32_t s = 0; s < plan.splits; ++s) {
      const int64_t task = plan.split[s].begin.task;
      worker.combine(int32_t(task / plan.groups), plan.group[task % plan.groups], plan.split[s], shared, thread, threads);
    }
    return;
  }
  PlanMark at = plan.mark[thread];
  const PlanMark stop = plan.mark[thread + 1];
  int32_t s = 0;
  while (at.task < stop.task || (at.task == stop.task && (at.item < stop.item || at.piece < stop.piece))) {
    const PlanGroup& group = plan.group[at.task % plan.groups];
    while (s < plan.splits && plan.split[s].begin.task < at.task) ++s;
    const PlanSplit* split = s < plan.splits && plan.split[s].begin.task == at.task ? &plan.split[s] : nullptr;
    const PlanMark end = at.task == stop.task ? stop : PlanMark{at.task, group.item_end, 0};
    worker.work(int32_t(at.task / plan.groups), group, at, end, split, shared);
    const int64_t next = at.task + 1;
    if (at.task == stop.task || next == int64_t(plan.groups) * shape.kv_heads) break;
    const int32_t item = plan.group[next % plan.groups].item_begin;
    at = {next, item, plan.item[item].piece_begin};
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
