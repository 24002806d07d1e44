// A thread's part of a step's attention.
#pragma once
#include "attention_floats.inl"
#include "attention_int8.inl"
#include "attention_pairs.inl"

namespace armillary {
namespace ARMILLARY_PATH {

class Worker {
 public:
  Worker(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, const Plan& plan, const float* q,
         int64_t q_stride, float* out, int64_t out_stride, uint8_t* memory)
      : shape_(shape), step_(step), plan_(plan), q_(q), q_stride_(q_stride), out_(out), out_stride_(out_stride),
        desk_(shape, memory), pieces_(shape, kv, desk_), heads_(shape.heads / shape.kv_heads), dim_(shape.head_dim),
        element_(kv.element), record_(record_floats(shape.head_dim)) {}

  // Pieces of a task from `begin` to `end`. Without `split` they are the whole task; else the thread that begins it leaves
  // the state of the rows, and others leave a record for each row and piece.
  void work(int32_t head, const PlanGroup& group, const PlanMark& begin, const PlanMark& end, const PlanSplit* split,
            float* shared) {
    head_ = head;
    group_ = &group;
    const int rows = (group.token_end - group.token_begin) * heads_;
    const bool first = begin.item == group.item_begin && begin.piece == plan_.item[begin.item].piece_begin;
    float* records = nullptr;
    if (first) {
      for (int64_t i = 0; i < rows * desk_.width; ++i) desk_.state[i] = 0;
      for (int r = 0; r < rows; ++r) desk_.top[r] = -__builtin_inff();
      for (int r = 0; r < rows; ++r) desk_.total[r] = 0;
    } else {
      records = shared + split->records + rows_between(*split, begin) * record_;
    }
    for (int32_t i = begin.item; i < group.item_end && i <= end.item; ++i) {
      const PlanItem& item = plan_.item[i];
      const int32_t from = i == begin.item ? begin.piece : item.piece_begin;
      const int32_t to = i == end.item ? end.piece : item.piece_end;
      if (from < to) records = run(item, from, to, records);
    }
    if (!first) return;
    for (int r = 0; r < rows; ++r) {
      const float* state = desk_.state + r * desk_.width;
      if (!split) {
        finish(r, state, desk_.top[r], desk_.total[r]);
        continue;
      }
      float* left = shared + split->state + r * record_;
      for (int64_t i = 0; i < desk_.width; ++i) left[i] = state[i];
      left[desk_.width] = desk_.top[r];
      left[desk_.width + 1] = desk_.total[r];
    }
  }

  // Phase 1: puts a split task's rows together, every `threads`th from `thread` on.
  void combine(int32_t head, const PlanGroup& group, const PlanSplit& split, float* shared, int thread, int threads) {
    head_ = head;
    group_ = &group;
    const int rows = (group.token_end - group.token_begin) * heads_;
    for (int r = thread; r < rows; r += threads) {
      float* state = shared + split.state + r * record_;
      float top = state[desk_.width], total = state[desk_.width + 1];
      const float* record = shared + split.records;
      for (int32_t i = split.begin.item; i < group.item_end; ++i) {
        const PlanItem& item = plan_.item[i];
        const int32_t from = i == split.begin.item ? split.begin.piece : item.piece_begin;
        const int low = (item.token_begin - group.token_begin) * heads_;
        const int high = (item.token_end - group.token_begin) * heads_;
        for (int32_t piece = from; piece < item.piece_end; ++piece, record += (high - low) * record_) {
          if (r < low || r >= high) continue;
          int first, last;
          visible(plan_.token[group.token_begin + r / heads_].position, piece, first, last);
          if (first >= last) continue;
          const float* found = record + (r - low) * record_;
          float keep, add;
          add_peaks({&top, &total}, found + desk_.width, found + desk_.width + 1, &keep, &add, 1);
          for (int64_t d = 0; d < desk_.width; d += Vec::N)
            Vec::fma(Vec::load(found + d), Vec::set(add), Vec::load(state + d) * Vec::set(keep)).store(state + d);
        }
      }
      finish(r, state, top, total);
    }
  }

 private:
  // Rows of pieces that lie between a split's beginning and a later mark of the same task.
  int64_t rows_between(const PlanSplit& split, const PlanMark& mark) const {
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
  void visible(int64_t position, int32_t piece, int& first, int& last) const {
    const int64_t base = int64_t(piece) * kPiece;
    const int64_t low = lowest(position) - base, high = position + 1 - base;
    first = int(low < 0 ? 0 : low > kPiece ? kPiece : low);
    last = int(high < 0 ? 0 : high > kPiece ? kPiece : high);
  }

  void finish(int row, const float* state, float top, float total) const {
    const int64_t head = int64_t(head_) * heads_ + row % heads_;
    const PlanToken& token = plan_.token[group_->token_begin + row / heads_];
    finish_row(state, top, total, shape_.sinks ? shape_.sinks + head : nullptr, dim_,
               out_ + token.row * out_stride_ + head * dim_);
  }

  // Pieces [from, to) of an item, into the state or, where `records` is given, into records; the end of those.
  float* run(const PlanItem& item, int32_t from, int32_t to, float* records) {
    const Next after = first_of(&item + 1, group_);
    const int row0 = (item.token_begin - group_->token_begin) * heads_;
    const int rows = (item.token_end - item.token_begin) * heads_;
    const int64_t* table = step_.tables + item.sequence * step_.table_stride;
    pieces_.open(head_, table, rows);
    gather_queries(item, rows);
    // What all tokens see: from the highest of the lowest positions to the lowest of the highest.
    int64_t all_from = 0, all_to = INT64_MAX, most = 0;
    for (int32_t i = item.token_begin; i < item.token_end; ++i) {
      const int64_t position = plan_.token[i].position;
      all_from = lowest(position) > all_from ? lowest(position) : all_from;
      all_to = position + 1 < all_to ? position + 1 : all_to;
      most = position + 1 > most ? position + 1 : most;
    }
    for (int32_t piece = from; piece < to; ++piece) {
      const int64_t base = int64_t(piece) * kPiece;
      const bool whole = all_from <= base && base + kPiece <= all_to;
      int low = 0, high = kPiece;
      if (!whole) find_visible(item, piece, low, high);
      if (low < high) {
        pieces_.weigh_up(base, low, high, whole, piece + 1 < to ? Next{table, head_, base + kPiece, most} : after);
        if (records) {
          for (int r = 0; r < rows; ++r) {
            records[r * record_ + desk_.width] = desk_.piece_top[r];
            records[r * record_ + desk_.width + 1] = desk_.piece_total[r];
          }
          pieces_.sum_values({records, record_, nullptr, nullptr});
        } else {
          add_peaks({desk_.top + row0, desk_.total + row0}, desk_.piece_top, desk_.piece_total, desk_.keep, desk_.add,
                    rows);
          pieces_.sum_values({desk_.state + row0 * desk_.width, desk_.width, desk_.keep, desk_.add});
        }
      }
      if (records) records += rows * record_;
    }
    return records;
  }

  // What is read first of the item after this group's last one, or of the group's next.
  Next first_of(const PlanItem* item, const PlanGroup* group) const {
    int32_t head = head_;
    if (item == plan_.item + group->item_end) {
      if (++group == plan_.group + plan_.groups) {
        if (++head == shape_.kv_heads) return {nullptr, 0, 0, 0};
        group = plan_.group;
      }
      item = plan_.item + group->item_begin;
    }
    // The first token sees the item's first piece, or in a window at least what lies before its own position.
    const int64_t base = int64_t(item->piece_begin) * kPiece;
    return {step_.tables + item->sequence * step_.table_stride, head, base,
            plan_.token[item->token_begin].position + 1};
  }

  // What each row sees of a piece, and what any does.
  void find_visible(const PlanItem& item, int32_t piece, int& low, int& high) const {
    low = kPiece;
    high = 0;
    int row = 0;
    for (int32_t i = item.token_begin; i < item.token_end; ++i) {
      int first, last;
      visible(plan_.token[i].position, piece, first, last);
      for (int head = 0; head < heads_; ++head, ++row) {
        desk_.first[row] = first;
        desk_.last[row] = last;
      }
      if (first >= last) continue;
      low = first < low ? first : low;
      high = last > high ? last : high;
    }
  }

  // The query of an item's row.
  const float* query(const PlanItem& item, int row) const {
    const int64_t head = int64_t(head_) * heads_ + row % heads_;
    return q_ + plan_.token[item.token_begin + row / heads_].row * q_stride_ + head * dim_;
  }

  // Queries of an item times the scale, in tiles, for logits in base 2. Rounded ones, row by row, without it.
  void gather_queries(const PlanItem& item, int rows) {
    const float scale = shape_.scale * kBase2;
    if (element_ == Element::i8) {
      for (int r = 0; r < rows; ++r) {
        int16_t* to = reinterpret_cast<int16_t*>(desk_.query + r * desk_.width / 2);
        desk_.query_step[r] = scale * round_to_16(query(item, r), dim_, to);
      }
      return;
    }
#if defined(ARMILLARY_PAIRED_ATTENTION)
    if (element_ == Element::bf16) {
      for (int r = 0; r < rows; ++r) {
        const float* from = query(item, r);
        uint16_t* to = reinterpret_cast<uint16_t*>(desk_.query) + r * desk_.width;
        const auto part = [&](int at) {
          const int left = dim_ - at;
          return Vec::load(from + (left > 0 ? at : 0), left < 0 ? 0 : left < Vec::N ? left : Vec::N);
        };
        for (int d = 0; d < dim_; d += 2 * Vec::N) Bf16Pairs::of(part(d), part(d + Vec::N)).store(to + d);
      }
      return;
    }
#endif
    const int most = pieces_.tile();
    for (int tile = 0; tile < rows; tile += most) {
      const int count = rows - tile < most ? rows - tile : most;
      float* to = desk_.query + int64_t(tile) * dim_;
      for (int r = 0; r < count; ++r) {
        const float* from = query(item, tile + r);
        for (int d = 0; d < dim_; ++d) to[d * count + r] = from[d] * scale;
      }
    }
  }

  const AttentionShape& shape_;
  const StepRows& step_;
  const Plan& plan_;
  const float* q_;
  const int64_t q_stride_;
  float* out_;
  const int64_t out_stride_;
  const Desk desk_;
  Pieces pieces_;
  const int heads_;  // query heads that share a key's head
  const int dim_;
  const Element element_;  // of keys and values
  const int64_t record_;
  int32_t head_ = 0;
  const PlanGroup* group_ = nullptr;
};

inline size_t attention_scratch_bytes(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, int threads) {
  return Desk::bytes(shape) * size_t(threads) + attention_split_bytes(shape, kv, step, threads);
}

inline void attend(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, const void* plan_memory,
                   const float* q, int64_t q_stride, float* out, int64_t out_stride, uint8_t* scratch, int thread,
                   int threads, int phase) {
  const Plan& plan = *static_cast<const Plan*>(plan_memory);
  if (phase == 1 && plan.splits == 0) return;
  float* shared = reinterpret_cast<float*>(scratch + Desk::bytes(shape) * size_t(threads));
  Worker worker(shape, kv, step, plan, q, q_stride, out, out_stride, scratch + Desk::bytes(shape) * size_t(thread));
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
