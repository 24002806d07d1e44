// How a step's attention is cut into tasks and shared out over threads.
//
// Compiled once, not for every path: functions of a header or of the standard library that a path's compilation would emit
// could otherwise be called on a processor that lacks its instructions.
#pragma once
#include "kernels.h"

namespace armillary {

// Positions of a piece. Every sum over a context is a sum over pieces, which begin at multiples of this, so this is the one
// number here that results depend on.
constexpr int kPiece = 64;
// Rows (query tokens times the heads that share a key) of a tile, unless more heads than that share a key.
constexpr int kTileRows = 192;
// Bytes of pieces' results that a task split over threads may leave for phase 1 whatever it reads.
constexpr int64_t kSplitBytes = 1 << 20;

struct PlanToken {
  int32_t row;  // of the step
  int32_t sequence;
  int64_t position;
};

// Tokens [token_begin, token_end) of the plan, against the pieces [piece_begin, piece_end) of one table: one sequence's tokens
// against its own context, or those of several against what they share.
struct PlanItem {
  int32_t token_begin, token_end;
  int32_t piece_begin, piece_end;
  int32_t sequence;
};

// Items that bring a set of tokens through their whole contexts, piece after piece. A group and a key's head are a task; tasks
// are counted head after head, so that groups that share blocks follow each other while these are in the cache.
struct PlanGroup {
  int32_t token_begin, token_end;
  int32_t item_begin, item_end;
};

// A place between two pieces in the order of all work.
struct PlanMark {
  int64_t task;
  int32_t item;   // of the plan; the group's first item and its first piece where a task begins
  int32_t piece;
};

// A task that more than one thread works at. The first leaves the state of its rows, the others one record for each row and
// piece; phase 1 puts them together in order.
struct PlanSplit {
  PlanMark begin;   // where the second thread begins
  int64_t state;    // floats into the shared scratch: one record a row
  int64_t records;  // likewise: one record for each row of each piece from `begin` on
};

struct Plan {
  int32_t threads = 0;
  int32_t tokens = 0, items = 0, groups = 0, splits = 0;
  PlanToken* token = nullptr;
  PlanItem* item = nullptr;
  PlanGroup* group = nullptr;
  PlanMark* mark = nullptr;    // [threads + 1]: thread t works from mark[t] to mark[t + 1]
  PlanSplit* split = nullptr;  // in order of tasks
};

// Floats of a record: the weighted values of a row, padded to whole vectors of any path, its largest score and its sum.
static inline int64_t padded_width(int32_t head_dim) { return (int64_t(head_dim) + 31) / 32 * 32; }
static inline int64_t record_floats(int32_t head_dim) { return padded_width(head_dim) + 16; }

size_t attention_plan_bytes(const AttentionShape&, const KvLayer&, const StepRows&, int threads);
void attention_plan(const AttentionShape&, const KvLayer&, const StepRows&, int threads, void* plan);
// Bytes of what threads leave for phase 1: at most this, whatever the plan.
size_t attention_split_bytes(const AttentionShape&, const KvLayer&, const StepRows&, int threads);

}  // namespace armillary
