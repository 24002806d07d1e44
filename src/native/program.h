// A decoder as a program: what to compute is described once, and a whole step runs in one call.
//
// Every member of a team walks through the same operations and takes its share of each; the barriers stand where one member
// reads what others wrote. Nothing is interpreted, looked up or allocated per operation.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "team.h"
#include "team_size.h"

namespace armillary {

enum class Norms : int32_t { pre = 0, post = 1, sandwich = 2 };

struct Mixture {
  Matrix router;
  std::vector<Matrix> gate_up;  // one an expert, paired
  std::vector<Matrix> down;
  int64_t per_token = 0;
  bool renormalize = false;
};

// One decoder layer. Pointers to vectors are float32 and may be null where the model has none.
struct Layer {
  AttentionShape attention;
  int32_t rope = 0;
  const float* attention_norm = nullptr;
  Matrix qkv;
  const float* qkv_bias = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  bool full_qk_norm = false;
  Matrix out;
  const float* out_bias = nullptr;
  const float* attention_out_norm = nullptr;
  const float* mlp_norm = nullptr;
  Matrix gate_up;  // of a dense layer, paired
  const float* gate_up_bias = nullptr;
  Matrix down;
  const float* down_bias = nullptr;
  std::unique_ptr<Mixture> mixture;  // instead of gate_up and down
  Activation activation = Activation::silu;
  const float* mlp_out_norm = nullptr;
};

struct Rope {
  const float* inverse = nullptr;  // [dim / 2]: radians per position
  int32_t dim = 0;
  float scale = 1;                 // of both cosine and sine
};

struct Model {
  int64_t hidden = 0;
  int64_t vocab = 0;
  const void* embed = nullptr;      // plain [vocab, hidden], or null: rows of `head`
  Element embed_element = Element::f32;
  float embed_scale = 1;
  std::vector<Rope> ropes;
  std::vector<Layer> layers;
  const float* norm = nullptr;
  float eps = 0;
  bool norm_offset = false;
  Matrix head;
  float logit_softcap = 0;          // 0: none
};

// Runs steps of one model. Two callers of one program wait for each other; programs share nothing.
class Program {
 public:
  // The model and its memory belong to the caller and must outlive the program. `adapt`: run each step on as many of the
  // threads as are quickest (team_size.h), instead of on all.
  Program(const Kernels& kernels, const Model& model, int threads, bool adapt);

  // Hidden states after the final norm, [rows, hidden]. kv: one a layer. tokens [rows], all below vocab.
  void hidden(const StepRows& step, const int64_t* tokens, const std::vector<KvLayer>& kv, float* out);

  // Scores of chosen rows: hidden [*, hidden], rows [count] -> out [count, vocab].
  void logits(const float* hidden, const int64_t* rows, int64_t count, float* out);

  const Model& model() const { return model_; }
  const Kernels& kernels() const { return k_; }
  int threads() const { return team_->size(); }
  // The threads that steps run on, for what is to run between steps: a second team would have to share the processors with
  // this one's members, who wait for the next step for a while before they sleep.
  const std::shared_ptr<Team>& team() const { return team_; }
  // Memory held for steps.
  size_t bytes() const;

 private:
  struct Work;  // the pointers of one step
  void feed_forward(Member& m, Work& w, const Layer& layer);
  void mixture(Member& m, Work& w, const Layer& layer);
  void normed(Member& m, Work& w, const float* weight, const MatrixShape& reader);
  void multiply(Member& m, Work& w, const Matrix& matrix, const float* x, int64_t stride, int64_t rows, float* y,
                int64_t y_stride, const Epilogue& epilogue, const uint8_t* prepared = nullptr);
  void prepare(Member& m, Work& w, const MatrixShape& shape, const float* x, int64_t stride, int64_t rows);

  const Kernels& k_;
  const Model& model_;
  std::shared_ptr<Team> team_;
  TeamSize layers_size_, head_size_;
  double row_work_ = 0;   // multiply-adds of one row in all layers, without attention
  double pair_work_ = 0;  // of one row with one position of its context, in all layers
  mutable std::mutex steps_;
  Buffer x_, normed_, qkv_, mixed_, half_, inner_, prepared_, cos_, sin_, plan_, attention_scratch_, linear_scratch_;
  Buffer scores_, weights_, chosen_, places_, sources_, gathered_, terms_, picked_;
  std::vector<int64_t> positions_, expert_begin_;
};

}  // namespace armillary
