// The table of kernels: what each path provides, and the plain structures that they work on.
//
// All activations are float32, rows contiguous in memory `stride` elements apart. Pointers and numbers only: nothing here
// knows torch or Python. No kernel keeps state, allocates, throws or starts a thread; what is shared out over threads takes the
// range that the caller's thread is to do, and ranges of one call write to separate memory.
//
// The promise that every kernel keeps: a row of a result is the same bits whatever other rows are computed with it, however
// the work is shared out, and however a sequence was cut into steps. Each element is one chain of operations in one fixed order.
#pragma once
#include <cstdint>
#include <cstddef>
#include <string>

#include "cpu.h"

namespace armillary {

enum class Element : int32_t { f32 = 0, bf16 = 1, f16 = 2, i8 = 3, i4 = 4 };
enum class Activation : int32_t { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3 };

// ---- linear layers ---------------------------------------------------------------------------------------------------

// A weight matrix [out, in] to be packed.
struct MatrixShape {
  int64_t out = 0;
  int64_t in = 0;
  Element element = Element::f32;  // as it is kept
  int32_t group = 0;               // i4: inputs that share one scale (32, 64, 128), a divisor of `in`; else 0
  Element scales = Element::f32;   // i4: as groups' scales are kept, f32, f16 or bf16
  bool zero_points = false;        // i4: whether groups have a zero point; else symmetric
  bool paired = false;             // rows 0..out/2 are gates and the others their partners: `linear` yields act(gate) * up
  bool int8_activations = false;   // i8, i4: multiply integers with integers, rows quantised as they come (per token)
};

// A packed matrix: the shape, and memory of `matrix_bytes(shape)`, aligned to 64 bytes, that someone else owns.
struct Matrix {
  MatrixShape shape;
  uint8_t* data = nullptr;
};

// Rows of an unpacked matrix. Element f32, bf16 or f16: values, quantised on the way where the packed matrix is i8 (per
// row, symmetric) or i4 (per group, round to nearest, at scales that the matrix can keep). Element i8 or i4: integers as some other
// tool quantised them, with their scales and zero points, kept exactly: the scales must be numbers of the format that the matrix
// keeps them in.
struct MatrixRows {
  const void* data = nullptr;      // [rows, in]; i8 and i4: one int8 an element
  Element element = Element::f32;
  int64_t stride = 0;              // elements from row to row
  const float* scales = nullptr;   // i8: [rows]; i4: [rows, in / group]
  const float* zeros = nullptr;    // i4 with zero points: [rows, in / group], in units of the integers
};

// What happens to a product before it is written; all pointers may be null.
struct Epilogue {
  const float* bias = nullptr;      // [out], added first
  const float* residual = nullptr;  // [rows, outputs], added last; may be the result's own memory
  int64_t residual_stride = 0;
  Activation activation = Activation::silu;  // of paired matrices
};

// ---- attention -------------------------------------------------------------------------------------------------------

// One layer's keys and values, in blocks. The layout inside a block is the kernels' own (`kv_block_bytes` each for keys and
// for values), so blocks are copied, exported and imported whole.
struct KvLayer {
  uint8_t* keys = nullptr;    // [blocks] of kv_block_bytes
  uint8_t* values = nullptr;
  Element element = Element::f32;  // f32, bf16, f16, i8 (one scale a head and token, kept in the block)
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t block_size = 0;     // any number from 1 on
};

struct AttentionShape {
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;          // 1 to 512
  float scale = 1;
  int32_t window = 0;            // a token sees itself and the window - 1 before it; 0: all before it
  float softcap = 0;             // 0: none
  const float* sinks = nullptr;  // [heads], logits of a key without a value; null: none
};

// The sequences of a step: flat rows, sequence after sequence.
struct StepRows {
  int64_t sequences = 0;
  int64_t rows = 0;
  const int64_t* first_row = nullptr;  // [sequences]
  const int64_t* counts = nullptr;     // [sequences] rows of this step, at least 1
  const int64_t* starts = nullptr;     // [sequences] position of the first of them: keys before it are in the cache
  const int64_t* tables = nullptr;     // [sequences, table_stride] block numbers
  int64_t table_stride = 0;
};

// Rotary embedding and head norms of a layer's new queries and keys.
struct Rotary {
  const float* cos = nullptr;  // [rows, dim], both halves equal
  const float* sin = nullptr;  // [rows, dim], negative in the first half
  int32_t dim = 0;             // leading dimensions of a head that are rotated; even, at most head_dim
  const float* q_norm = nullptr;  // [head_dim], or with full_norm [heads * head_dim]; null: no norm
  const float* k_norm = nullptr;  // [head_dim], or with full_norm [kv_heads * head_dim]
  bool full_norm = false;      // norm over all heads at once instead of one head
  bool norm_offset = false;    // multiply by (1 + weight)
  float eps = 0;
};

// ---- sampling --------------------------------------------------------------------------------------------------------

// How a row's token is chosen: `armillary.runtime.sampling.SamplingParams` says what the numbers mean.
struct Draw {
  float temperature = 0;  // 0: the largest score, the first of equals; the rest is not looked at then
  int64_t top_k = 0;      // 0, or the width and more: no limit
  double top_p = 1;       // above 0
  double min_p = 0;
  double uniform = 0;     // from 0 to below 1
};

constexpr int64_t kNoneLeft = -1;   // instead of a token: all scores are -infinity
constexpr int64_t kNotFinite = -2;  // instead of a token: some score is NaN, or +infinity

// ---- the table -------------------------------------------------------------------------------------------------------

struct Kernels {
  Path path = Path::portable;

  // Linear. A matrix is computed in `units` (panels of outputs); a thread takes some of them for all rows.
  size_t (*matrix_bytes)(const MatrixShape&) = nullptr;
  // Packs `count` rows from row `first` on. Calls for separate rows may run at once where `first` is a multiple of 64.
  void (*matrix_pack)(const Matrix&, const MatrixRows&, int64_t first, int64_t count) = nullptr;
  // The values that the kernels multiply with, as float32 [count, in]: for embeddings of tied models, and for tests.
  void (*matrix_rows)(const Matrix&, const int64_t* rows, int64_t count, float* out, int64_t out_stride) = nullptr;
  int64_t (*matrix_units)(const MatrixShape&) = nullptr;
  // What the product reads instead of x, made once for all units (bfloat16 rows, quantised rows). 0 bytes: x itself.
  // Row by row: prepared_bytes(rows) is rows times prepared_bytes(1), so a product of some rows begins in the middle.
  size_t (*prepared_bytes)(const MatrixShape&, int64_t rows) = nullptr;
  void (*prepare)(const MatrixShape&, const float* x, int64_t x_stride, int64_t rows, void* prepared, int64_t begin,
                  int64_t end) = nullptr;
  // y [rows, out] (paired: out / 2) = epilogue(x W^T), for units [begin, end). `prepared` is null where prepared_bytes
  // is 0. scratch: `linear_scratch_bytes` of this thread.
  void (*linear)(const Matrix&, const float* x, int64_t x_stride, const void* prepared, int64_t rows, float* y,
                 int64_t y_stride, const Epilogue&, int64_t begin, int64_t end, uint8_t* scratch) = nullptr;
  // Of one thread; more rows never need less.
  size_t (*linear_scratch_bytes)(const MatrixShape&, int64_t rows) = nullptr;

  // Attention.
  size_t (*kv_block_bytes)(const KvLayer&) = nullptr;
  // Norms and rotates queries in place and keys on their way into the cache, and stores keys and values, for rows
  // [begin, end). qkv [rows, (heads + 2 kv_heads) * head_dim]: queries, keys, values.
  void (*store)(const AttentionShape&, const KvLayer&, const StepRows&, const Rotary&, float* qkv, int64_t qkv_stride,
                int64_t begin, int64_t end) = nullptr;
  // How a step's attention is cut into items of work; the cut depends on the step but no result depends on the cut.
  // plan: attention_plan_bytes(...) written by one thread, read by all.
  size_t (*attention_plan_bytes)(const AttentionShape&, const KvLayer&, const StepRows&, int threads) = nullptr;
  void (*attention_plan)(const AttentionShape&, const KvLayer&, const StepRows&, int threads, void* plan) = nullptr;
  size_t (*attention_scratch_bytes)(const AttentionShape&, const KvLayer&, const StepRows&, int threads) = nullptr;
  // Attends, as thread `thread` of `threads`; out [rows, heads * head_dim]. scratch is shared by all threads.
  // Called twice with a barrier between: phase 0 computes, phase 1 combines pieces that were split over threads.
  void (*attend)(const AttentionShape&, const KvLayer&, const StepRows&, const void* plan, const float* q,
                 int64_t q_stride, float* out, int64_t out_stride, uint8_t* scratch, int thread, int threads,
                 int phase) = nullptr;
  // Keys and values of positions [first, first + count) of one sequence, set to zero.
  void (*kv_clear)(const KvLayer&, const int64_t* table, int64_t first, int64_t count) = nullptr;
  // For tests and export: keys or values of one block as float32 [kv_heads, block_size, head_dim].
  void (*kv_read)(const KvLayer&, int64_t block, float* keys, float* values) = nullptr;

  // Everything else, for rows [begin, end).
  void (*rms_norm)(const float* x, int64_t x_stride, const float* weight, float eps, bool offset, int64_t width,
                   float* y, int64_t y_stride, int64_t begin, int64_t end) = nullptr;
  // x[r] += norm(y[r]): the norm after a half layer, and its residual.
  void (*add_norm)(float* x, int64_t x_stride, const float* y, int64_t y_stride, const float* weight, float eps,
                   bool offset, int64_t width, int64_t begin, int64_t end) = nullptr;
  // Rows of a plain table [vocab, width] of f32, bf16 or f16 as float32, times scale.
  void (*embed)(const void* table, Element, int64_t width, const int64_t* tokens, float scale, float* y,
                int64_t y_stride, int64_t begin, int64_t end) = nullptr;
  // The `count` most probable of `experts` scores, ties to the lower number, most probable first; their softmax weights,
  // scaled to sum to one if renormalize.
  void (*route)(const float* scores, int64_t stride, int64_t experts, int64_t count, bool renormalize, float* weights,
                int64_t* chosen, int64_t begin, int64_t end) = nullptr;
  // y[r] = residual[r] + sum over rank of weights[r, rank] * terms[places[r, rank]], in order of rank.
  void (*combine)(const float* terms, int64_t terms_stride, const int64_t* places, const float* weights, int64_t count,
                  const float* residual, int64_t residual_stride, int64_t width, float* y, int64_t y_stride,
                  int64_t begin, int64_t end) = nullptr;
  // scores = cap * tanh(scores / cap), in place.
  void (*softcap)(float* scores, int64_t stride, int64_t width, float cap, int64_t begin, int64_t end) = nullptr;
  // Largest value of each row and the first place it stands at; NaN anywhere in a row gives NaN.
  void (*argmax)(const float* scores, int64_t stride, int64_t width, float* peaks, int64_t* places, int64_t begin,
                 int64_t end) = nullptr;
  // log(sum(exp(row))) of each row, in one fixed order of addition.
  void (*log_sum_exp)(const float* scores, int64_t stride, int64_t width, float* out, int64_t begin,
                      int64_t end) = nullptr;

  // Limits to measure kernels against. Reads `count` floats, a multiple of 64, once; the largest.
  float (*probe_read)(const float* memory, int64_t count) = nullptr;
  // Nothing but fused multiply-adds, beginning with the 14 numbers of `result` and ending in its first; how many.
  int64_t (*probe_multiply)(int64_t rounds, float* result) = nullptr;

  // Sampling. scratch: sample_scratch_bytes(width) of this thread, aligned to 64 bytes. Widths are below 2^31.
  size_t (*sample_scratch_bytes)(int64_t width) = nullptr;
  // tokens[r]: chosen from row places[r] of scores as draws[r] says.
  void (*sample)(const float* scores, int64_t stride, int64_t width, const int64_t* places, const Draw* draws,
                 int64_t* tokens, int64_t begin, int64_t end, uint8_t* scratch) = nullptr;
  // Of row places[r]: the log-softmax of tokens[r] -> chosen[r], and the `count` (at most width) largest, best first and
  // the lower number first among equals -> values and ids [rows, count]. All NaN where a row's largest is not finite.
  void (*logprobs)(const float* scores, int64_t stride, int64_t width, const int64_t* places, const int64_t* tokens,
                   int64_t count, float* chosen, float* values, int64_t* ids, int64_t begin, int64_t end,
                   uint8_t* scratch) = nullptr;
};

// The kernels of a path that `available_paths` lists.
const Kernels& kernels(Path path);

// "emulated_avx512", "emulated_avx512_bf16" and "emulated_amx": the linear layers of those paths, and of the last two the attention,
// over plain C++ in place of their instructions, slow, for tests on any machine; all else in these tables is null. Null for other
// names.
const Kernels* emulated_kernels(const std::string& name);

}  // namespace armillary
