#include "attention_plan.h"

#include <algorithm>

namespace armillary {
namespace {

struct Bounds {
  int64_t groups = 0;
  int64_t tokens = 0;
};

int32_t group_heads(const AttentionShape& shape) { return shape.heads / shape.kv_heads; }

int64_t tile_tokens(const AttentionShape& shape) { return std::max(1, kTileRows / group_heads(shape)); }

Bounds bounds(const AttentionShape& shape, const StepRows& step) {
  Bounds found;
  const int64_t most = tile_tokens(shape);
  for (int64_t s = 0; s < step.sequences; ++s) {
    found.groups += (step.counts[s] + most - 1) / most;
    found.tokens += step.counts[s];
  }
  return found;
}

template <class T>
T* take(uint8_t*& memory, int64_t count) {
  T* found = reinterpret_cast<T*>(memory);
  memory += (size_t(count) * sizeof(T) + 15) / 16 * 16;
  return found;
}

int64_t first_visible(const AttentionShape& shape, int64_t position) {
  return shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
}

// About the processor's cycles that a piece takes: five bytes a cycle from memory, sixteen multiply-adds, and what the
// softmax of a row costs.
double piece_cost(const AttentionShape& shape, const KvLayer& kv, int64_t rows) {
  const double bytes = 2.0 * shape.head_dim * (kv.element == Element::f32 ? 4 : kv.element == Element::i8 ? 1 : 2);
  return kPiece * (bytes / 5 + double(rows) * shape.head_dim / 8 + double(rows) * 1.5);
}

class Planner {
 public:
  Planner(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, Plan& plan, int32_t* order,
          int32_t* common)
      : shape_(shape), kv_(kv), step_(step), plan_(plan), order_(order), common_(common) {}

  void cut() {
    const int64_t most = tile_tokens(shape_);
    int64_t few = 0;  // sequences of few rows, which may share a task with others
    for (int64_t s = 0; s < step_.sequences; ++s)
      if (step_.counts[s] * 2 <= most) order_[few++] = int32_t(s);
    if (few > 1) {
      std::sort(order_, order_ + few, [this](int32_t a, int32_t b) { return before(a, b); });
      for (int64_t i = 1; i < few; ++i) common_[i] = shared_pieces(order_[i - 1], order_[i]);
    }
    for (int64_t begin = 0; begin < few;) {
      int64_t tokens = step_.counts[order_[begin]], end = begin + 1;
      for (; end < few && common_[end] > 0 && tokens + step_.counts[order_[end]] <= most; ++end)
        tokens += step_.counts[order_[end]];
      open();
      offsets_begin_ = begin;
      group(begin, end);
      begin = end;
    }
    for (int64_t s = 0; s < step_.sequences; ++s) {
      if (step_.counts[s] * 2 <= most) continue;
      for (int64_t token = 0; token < step_.counts[s]; token += most) {
        open();
        add(int32_t(s), token, std::min(step_.counts[s], token + most));
        close(plan_.tokens, int32_t(s), 0, 1 << 30);
      }
    }
  }

  void share_out(int threads) {
    plan_.threads = threads;
    double head_cost = 0;
    for (int32_t g = 0; g < plan_.groups; ++g) head_cost += cost(plan_.group[g]);
    const double share = head_cost * shape_.kv_heads / threads;
    plan_.mark[0] = start(0);
    for (int t = 1; t <= threads; ++t) {
      plan_.mark[t] = t == threads ? start(tasks()) : find(share * t, head_cost, share);
      if (before(plan_.mark[t], plan_.mark[t - 1])) plan_.mark[t] = plan_.mark[t - 1];
    }
    int64_t floats = 0;
    for (int t = 1; t < threads; ++t) {
      const PlanMark& mark = plan_.mark[t];
      if (mark.task == tasks() || same(mark, start(mark.task))) continue;
      if (plan_.splits && plan_.split[plan_.splits - 1].begin.task == mark.task) continue;
      const PlanGroup& group = plan_.group[mark.task % plan_.groups];
      PlanSplit& split = plan_.split[plan_.splits++];
      split.begin = mark;
      split.state = floats;
      floats += rows(group.token_end - group.token_begin) * record_floats(shape_.head_dim);
      split.records = floats;
      floats += records(group, mark) * record_floats(shape_.head_dim);
    }
  }

 private:
  int64_t rows(int64_t tokens) const { return tokens * group_heads(shape_); }
  int64_t tasks() const { return int64_t(plan_.groups) * shape_.kv_heads; }

  int64_t blocks(int32_t sequence) const {
    return (step_.starts[sequence] + step_.counts[sequence] + kv_.block_size - 1) / kv_.block_size;
  }

  const int64_t* table(int32_t sequence) const { return step_.tables + sequence * step_.table_stride; }

  // By their tables, block after block, so that sequences with most in common stand next to each other.
  bool before(int32_t a, int32_t b) const {
    const int64_t *p = table(a), *q = table(b);
    const int64_t m = blocks(a), n = blocks(b);
    for (int64_t i = 0; i < m && i < n; ++i)
      if (p[i] != q[i]) return p[i] < q[i];
    return m != n ? m < n : a < b;
  }

  int32_t shared_pieces(int32_t a, int32_t b) const {
    const int64_t *p = table(a), *q = table(b);
    const int64_t count = std::min(blocks(a), blocks(b));
    int64_t same = 0;
    while (same < count && p[same] == q[same]) ++same;
    return int32_t(std::min(same * kv_.block_size, std::min(context(a), context(b))) / kPiece);
  }

  int64_t context(int32_t sequence) const { return step_.starts[sequence] + step_.counts[sequence]; }

  void open() {
    PlanGroup& group = plan_.group[plan_.groups];
    group.token_begin = plan_.tokens;
    group.item_begin = plan_.items;
  }

  void add(int32_t sequence, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      plan_.token[plan_.tokens++] = {int32_t(step_.first_row[sequence] + i), sequence, step_.starts[sequence] + i};
  }

  // Ends the group that `open` began, with one item for all its tokens.
  void close(int32_t token_end, int32_t sequence, int32_t piece_begin, int32_t piece_end) {
    item(plan_.group[plan_.groups].token_begin, token_end, sequence, piece_begin, piece_end);
    finish();
  }

  void finish() {
    PlanGroup& group = plan_.group[plan_.groups++];
    group.token_end = plan_.tokens;
    group.item_end = plan_.items;
  }

  // Adds an item, less the pieces that none of its tokens sees.
  void item(int32_t token_begin, int32_t token_end, int32_t sequence, int32_t piece_begin, int32_t piece_end) {
    int64_t low = INT64_MAX, high = 0;
    for (int32_t i = token_begin; i < token_end; ++i) {
      low = std::min(low, first_visible(shape_, plan_.token[i].position));
      high = std::max(high, plan_.token[i].position + 1);
    }
    piece_begin = std::max(piece_begin, int32_t(low / kPiece));
    piece_end = std::min(piece_end, int32_t((high + kPiece - 1) / kPiece));
    if (piece_begin < piece_end) plan_.item[plan_.items++] = {token_begin, token_end, piece_begin, piece_end, sequence};
  }

  void group(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) add(order_[i], 0, step_.counts[order_[i]]);
    walk(begin, end, 0);
    finish();
  }

  // The sequences order[begin, end) from piece `piece` on: first what all share, then, branch by branch, the rest.
  void walk(int64_t begin, int64_t end, int32_t piece) {
    if (end - begin == 1) return item(token_of(begin), token_of(end), order_[begin], piece, 1 << 30);
    int32_t least = common_[begin + 1];
    for (int64_t i = begin + 2; i < end; ++i) least = std::min(least, common_[i]);
    if (least > piece) {
      item(token_of(begin), token_of(end), order_[begin], piece, least);
      piece = least;
    }
    int64_t first = begin;
    for (int64_t i = begin + 1; i <= end; ++i)
      if (i == end || common_[i] <= piece) {
        walk(first, i, piece);
        first = i;
      }
  }

  // Where the tokens of order[index] begin, in the group being made.
  int32_t token_of(int64_t index) const {
    int32_t token = plan_.group[plan_.groups].token_begin;
    for (int64_t i = offsets_begin_; i < index; ++i) token += int32_t(step_.counts[order_[i]]);
    return token;
  }

  double cost(const PlanItem& item) const {
    return (item.piece_end - item.piece_begin) * piece_cost(shape_, kv_, rows(item.token_end - item.token_begin));
  }

  double cost(const PlanGroup& group) const {
    double sum = 0;
    for (int32_t i = group.item_begin; i < group.item_end; ++i) sum += cost(plan_.item[i]);
    return sum;
  }

  // Records that a task cut at `mark` leaves: one for each row of each piece after it.
  int64_t records(const PlanGroup& group, const PlanMark& mark) const {
    int64_t count = 0;
    for (int32_t i = mark.item; i < group.item_end; ++i) {
      const PlanItem& item = plan_.item[i];
      const int32_t begin = i == mark.item ? mark.piece : item.piece_begin;
      count += rows(item.token_end - item.token_begin) * (item.piece_end - begin);
    }
    return count;
  }

  PlanMark start(int64_t task) const {
    if (task == tasks()) return {task, 0, 0};
    const int32_t item = plan_.group[task % plan_.groups].item_begin;
    return {task, item, plan_.item[item].piece_begin};
  }

  static bool same(const PlanMark& a, const PlanMark& b) {
    return a.task == b.task && a.item == b.item && a.piece == b.piece;
  }

  static bool before(const PlanMark& a, const PlanMark& b) {
    if (a.task != b.task) return a.task < b.task;
    return a.item != b.item ? a.item < b.item : a.piece < b.piece;
  }

  // The mark before which work of about `target` lies. Between tasks where that is near enough, or where a split would
  // leave more for phase 1 than it is worth.
  PlanMark find(double target, double head_cost, double share) const {
    int64_t head = int64_t(target / head_cost);
    if (head >= shape_.kv_heads) return start(tasks());
    double rest = target - double(head) * head_cost;
    int32_t g = 0;
    double size = 0;
    for (; g < plan_.groups; ++g) {
      size = cost(plan_.group[g]);
      if (rest < size) break;
      rest -= size;
    }
    const int64_t task = head * plan_.groups + g;
    if (g == plan_.groups) return start(task);
    const PlanMark left = start(task), right = start(task + 1);
    const double slack = share * 0.03;
    if (rest < slack) return left;
    if (size - rest < slack) return right;
    const PlanGroup& group = plan_.group[g];
    const bool near_left = rest * 2 < size;
    for (int32_t i = group.item_begin; i < group.item_end; ++i) {
      const PlanItem& item = plan_.item[i];
      const double whole = cost(item);
      if (rest >= whole) {
        rest -= whole;
        continue;
      }
      const PlanMark mark = {task, i, item.piece_begin + int32_t(rest / whole * (item.piece_end - item.piece_begin))};
      if (worth(group, mark)) return mark;
      break;
    }
    return near_left ? left : right;
  }

  bool worth(const PlanGroup& group, const PlanMark& mark) const {
    const int64_t all = records(group, mark) + rows(group.token_end - group.token_begin);
    return all * record_floats(shape_.head_dim) * 4 <= split_limit(group);
  }

  int64_t split_limit(const PlanGroup& group) const {
    if (group.item_end - group.item_begin > 1) return kSplitBytes;
    const PlanItem& item = plan_.item[group.item_begin];
    return limit_of(shape_, item.piece_end - item.piece_begin);
  }

 public:
  // A quarter of what the task reads, were it bfloat16.
  static int64_t limit_of(const AttentionShape& shape, int64_t pieces) {
    return std::max<int64_t>(kSplitBytes, pieces * kPiece * shape.head_dim);
  }

 private:
  const AttentionShape& shape_;
  const KvLayer& kv_;
  const StepRows& step_;
  Plan& plan_;
  int32_t* order_;
  int32_t* common_;  // [i]: whole pieces that order[i] shares with order[i - 1]
  int64_t offsets_begin_ = 0;
};

}  // namespace

size_t attention_plan_bytes(const AttentionShape& shape, const KvLayer&, const StepRows& step, int threads) {
  const Bounds found = bounds(shape, step);
  return sizeof(Plan) + size_t(found.tokens) * sizeof(PlanToken) + size_t(found.groups) * sizeof(PlanGroup) +
         size_t(found.groups) * 2 * sizeof(PlanItem) + size_t(threads + 1) * (sizeof(PlanMark) + sizeof(PlanSplit)) +
         size_t(step.sequences + 1) * 2 * sizeof(int32_t) + 9 * 16;
}

void attention_plan(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, int threads, void* memory) {
  uint8_t* at = static_cast<uint8_t*>(memory);
  Plan& plan = *take<Plan>(at, 1);
  plan = Plan();
  plan.threads = threads;
  const Bounds found = bounds(shape, step);
  plan.token = take<PlanToken>(at, found.tokens);
  plan.item = take<PlanItem>(at, found.groups * 2);
  plan.group = take<PlanGroup>(at, found.groups);
  plan.mark = take<PlanMark>(at, threads + 1);
  plan.split = take<PlanSplit>(at, threads + 1);
  int32_t* order = take<int32_t>(at, step.sequences + 1);
  int32_t* common = take<int32_t>(at, step.sequences + 1);
  if (found.tokens == 0) {
    for (int t = 0; t <= threads; ++t) plan.mark[t] = {0, 0, 0};
    return;
  }
  Planner planner(shape, kv, step, plan, order, common);
  planner.cut();
  planner.share_out(threads);
}

size_t attention_split_bytes(const AttentionShape& shape, const KvLayer&, const StepRows& step, int threads) {
  if (threads < 2 || step.sequences == 0) return 0;
  int64_t most = step.sequences > 1 ? kSplitBytes : 0;
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t rows = std::min(step.counts[s], tile_tokens(shape)) * group_heads(shape);
    const int64_t pieces = (step.starts[s] + step.counts[s]) / kPiece + 1;
    const int64_t all = rows * (pieces + 1) * record_floats(shape.head_dim) * 4;
    most = std::max(most, std::min(all, Planner::limit_of(shape, pieces)));
  }
  return size_t(most) * size_t(threads - 1);
}

}  // namespace armillary
