#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

namespace armillary {

struct Program::Work {
  const StepRows* step = nullptr;
  int64_t rows = 0;
  float* x = nullptr;         // the residual stream [rows, hidden]
  float* normed = nullptr;    // [rows, hidden]
  float* qkv = nullptr;
  float* mixed = nullptr;     // what attention gave [rows, heads * head_dim]
  float* half = nullptr;      // a half layer's result before its norm [rows, hidden]
  float* inner = nullptr;     // [rows (times experts per token), intermediate]
  uint8_t* prepared = nullptr;
  std::vector<const float*> cos, sin;  // by rope
  std::vector<uint8_t*> plans;         // by layer; layers of one shape share one
  uint8_t* attention_scratch = nullptr;
  uint8_t* linear_scratch = nullptr;
  size_t linear_stride = 0;
  // Of mixtures.
  float* scores = nullptr;
  float* weights = nullptr;
  int64_t* chosen = nullptr;
  int64_t* places = nullptr;   // [rows, per_token]: where a token's term stands among the gathered rows
  int64_t* sources = nullptr;  // [rows * per_token]: the token of each gathered row
  float* gathered = nullptr;
  float* terms = nullptr;
};

namespace {

constexpr size_t kLine = 64;

size_t whole_lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

int64_t outputs(const MatrixShape& shape) { return shape.paired ? shape.out / 2 : shape.out; }

bool same_work(const Layer& a, const Layer& b) {
  const AttentionShape &p = a.attention, &q = b.attention;
  return p.heads == q.heads && p.kv_heads == q.kv_heads && p.head_dim == q.head_dim && p.window == q.window;
}

double size_of(const Matrix& matrix) { return double(matrix.shape.in) * double(matrix.shape.out); }

double row_work(const Layer& layer) {
  double total = size_of(layer.qkv) + size_of(layer.out);
  if (!layer.mixture) return total + size_of(layer.gate_up) + size_of(layer.down);
  const Mixture& mixture = *layer.mixture;
  total += size_of(mixture.router);
  return total + double(mixture.per_token) * (size_of(mixture.gate_up[0]) + size_of(mixture.down[0]));
}

// Every matrix that rows of a step are multiplied with.
template <class Do>
void each_matrix(const Layer& layer, int64_t rows, Do&& visit) {
  visit(layer.qkv, rows);
  visit(layer.out, rows);
  if (layer.mixture) {
    visit(layer.mixture->router, rows);
    for (const Matrix& m : layer.mixture->gate_up) visit(m, rows * layer.mixture->per_token);
    for (const Matrix& m : layer.mixture->down) visit(m, rows * layer.mixture->per_token);
  } else {
    visit(layer.gate_up, rows);
    visit(layer.down, rows);
  }
}

}  // namespace

Program::Program(const Kernels& kernels, const Model& model, int threads, bool adapt)
    : k_(kernels),
      model_(model),
      team_(std::make_shared<Team>(threads)),
      layers_size_(threads, adapt),
      head_size_(threads, adapt) {
  for (const Layer& layer : model_.layers) {
    row_work_ += row_work(layer);
    pair_work_ += 2.0 * double(layer.attention.heads) * double(layer.attention.head_dim);
  }
}

size_t Program::bytes() const {
  std::lock_guard<std::mutex> lock(steps_);
  size_t total = 0;
  for (const Buffer* b : {&x_, &normed_, &qkv_, &mixed_, &half_, &inner_, &prepared_, &cos_, &sin_, &plan_,
                          &attention_scratch_, &linear_scratch_, &scores_, &weights_, &chosen_, &places_, &sources_,
                          &gathered_, &terms_, &picked_})
    total += b->size();
  return total;
}

void Program::hidden(const StepRows& step, const int64_t* tokens, const std::vector<KvLayer>& kv, float* out) {
  std::lock_guard<std::mutex> lock(steps_);
  const int64_t rows = step.rows;
  if (rows == 0) return;
  double pairs = 0;
  for (int64_t s = 0; s < step.sequences; ++s)
    pairs += double(step.counts[s]) * (double(step.starts[s]) + 0.5 * double(step.counts[s] + 1));
  const double work = double(rows) * row_work_ + pairs * pair_work_;
  const int threads = layers_size_.choose(work);
  Work w;
  w.step = &step;
  w.rows = rows;
  int64_t qkv = 0, mixed = 0, inner = 0, per_token = 0, experts = 0;
  size_t prepared = 0, scratch = 0, attention_scratch = 0, plans = 0;
  for (size_t i = 0; i < model_.layers.size(); ++i) {
    const Layer& layer = model_.layers[i];
    const AttentionShape& a = layer.attention;
    qkv = std::max<int64_t>(qkv, int64_t(a.heads + 2 * a.kv_heads) * a.head_dim);
    mixed = std::max<int64_t>(mixed, int64_t(a.heads) * a.head_dim);
    int64_t times = 1;
    if (layer.mixture) {
      times = layer.mixture->per_token;
      per_token = std::max(per_token, times);
      experts = std::max<int64_t>(experts, int64_t(layer.mixture->gate_up.size()));
      inner = std::max(inner, times * outputs(layer.mixture->gate_up[0].shape));
    } else {
      inner = std::max(inner, outputs(layer.gate_up.shape));
    }
    each_matrix(layer, rows, [&](const Matrix& m, int64_t most) {
      prepared = std::max(prepared, k_.prepared_bytes(m.shape, most));
      scratch = std::max(scratch, k_.linear_scratch_bytes(m.shape, most));
    });
    attention_scratch = std::max(attention_scratch, k_.attention_scratch_bytes(a, kv[i], step, threads));
    plans += whole_lines(k_.attention_plan_bytes(a, kv[i], step, threads));
  }
  w.x = x_.floats(rows * model_.hidden);
  w.normed = normed_.floats(rows * model_.hidden);
  w.half = half_.floats(rows * model_.hidden);
  w.qkv = qkv_.floats(rows * qkv);
  w.mixed = mixed_.floats(rows * mixed);
  w.inner = inner_.floats(rows * inner);
  w.prepared = prepared_.take(prepared);
  w.linear_stride = whole_lines(scratch);
  w.linear_scratch = linear_scratch_.take(w.linear_stride * size_t(threads));
  w.attention_scratch = attention_scratch_.take(attention_scratch);
  if (per_token) {
    const int64_t terms = rows * per_token;
    w.scores = scores_.floats(rows * experts);
    w.weights = weights_.floats(terms);
    w.chosen = chosen_.ints(terms);
    w.places = places_.ints(terms);
    w.sources = sources_.ints(terms);
    w.gathered = gathered_.floats(terms * model_.hidden);
    w.terms = terms_.floats(terms * model_.hidden);
    expert_begin_.assign(size_t(experts) + 1, 0);
  }

  uint8_t* plan = plan_.take(plans);
  for (size_t i = 0; i < model_.layers.size(); ++i) {
    uint8_t* found = nullptr;
    for (size_t j = 0; j < i && !found; ++j)
      if (same_work(model_.layers[i], model_.layers[j])) found = w.plans[j];
    if (!found) {
      found = plan;
      k_.attention_plan(model_.layers[i].attention, kv[i], step, threads, found);
      plan += whole_lines(k_.attention_plan_bytes(model_.layers[i].attention, kv[i], step, threads));
    }
    w.plans.push_back(found);
  }

  positions_.resize(size_t(rows));
  for (int64_t s = 0; s < step.sequences; ++s)
    for (int64_t r = 0; r < step.counts[s]; ++r) positions_[size_t(step.first_row[s] + r)] = step.starts[s] + r;
  int64_t widths = 0;
  for (const Rope& rope : model_.ropes) widths += rope.dim;
  float* cosines = cos_.floats(rows * widths);
  float* sines = sin_.floats(rows * widths);
  for (const Rope& rope : model_.ropes) {
    w.cos.push_back(cosines);
    w.sin.push_back(sines);
    cosines += rows * rope.dim;
    sines += rows * rope.dim;
  }

  layers_size_.run(*team_, work, threads, [&](Member& m) {
    int64_t begin, end;
    m.share(rows, begin, end);
    if (model_.embed != nullptr) {
      k_.embed(model_.embed, model_.embed_element, model_.hidden, tokens, model_.embed_scale, w.x, model_.hidden, begin,
               end);
    } else {
      k_.matrix_rows(model_.head, tokens + begin, end - begin, w.x + begin * model_.hidden, model_.hidden);
      if (model_.embed_scale != 1)
        for (int64_t i = begin * model_.hidden; i < end * model_.hidden; ++i) w.x[i] *= model_.embed_scale;
    }
    for (size_t index = 0; index < model_.ropes.size(); ++index) {
      const Rope& rope = model_.ropes[index];
      const int32_t halfway = rope.dim / 2;
      for (int64_t r = begin; r < end; ++r) {
        float* cos = const_cast<float*>(w.cos[index]) + r * rope.dim;
        float* sin = const_cast<float*>(w.sin[index]) + r * rope.dim;
        for (int32_t d = 0; d < halfway; ++d) {
          const float angle = float(positions_[size_t(r)]) * rope.inverse[d];
          cos[d] = cos[d + halfway] = std::cos(angle) * rope.scale;
          sin[d + halfway] = std::sin(angle) * rope.scale;
          sin[d] = -sin[d + halfway];
        }
      }
    }
    for (size_t index = 0; index < model_.layers.size(); ++index) {
      const Layer& layer = model_.layers[index];
      // The rows that this member norms are those that it wrote or that a barrier has made visible.
      normed(m, w, layer.attention_norm, layer.qkv.shape);
      m.barrier();
      multiply(m, w, layer.qkv, layer.attention_norm ? w.normed : w.x, model_.hidden, rows, w.qkv, layer.qkv.shape.out,
               {layer.qkv_bias});
      m.barrier();
      Rotary rotary;
      rotary.cos = w.cos[size_t(layer.rope)];
      rotary.sin = w.sin[size_t(layer.rope)];
      rotary.dim = model_.ropes[size_t(layer.rope)].dim;
      rotary.q_norm = layer.q_norm;
      rotary.k_norm = layer.k_norm;
      rotary.full_norm = layer.full_qk_norm;
      rotary.norm_offset = model_.norm_offset;
      rotary.eps = model_.eps;
      k_.store(layer.attention, kv[index], step, rotary, w.qkv, layer.qkv.shape.out, begin, end);
      m.barrier();
      for (int phase = 0; phase < 2; ++phase) {
        k_.attend(layer.attention, kv[index], step, w.plans[index], w.qkv, layer.qkv.shape.out, w.mixed,
                  layer.out.shape.in, w.attention_scratch, m.index, m.size, phase);
        m.barrier();
      }
      prepare(m, w, layer.out.shape, w.mixed, layer.out.shape.in, rows);
      Epilogue after{layer.out_bias};
      if (layer.attention_out_norm == nullptr) {
        after.residual = w.x;
        after.residual_stride = model_.hidden;
      }
      multiply(m, w, layer.out, w.mixed, layer.out.shape.in, rows, layer.attention_out_norm ? w.half : w.x,
               model_.hidden, after);
      m.barrier();
      if (layer.attention_out_norm)
        k_.add_norm(w.x, model_.hidden, w.half, model_.hidden, layer.attention_out_norm, model_.eps,
                    model_.norm_offset, model_.hidden, begin, end);
      if (layer.mixture)
        mixture(m, w, layer);
      else
        feed_forward(m, w, layer);
      if (layer.mlp_out_norm)
        k_.add_norm(w.x, model_.hidden, w.half, model_.hidden, layer.mlp_out_norm, model_.eps, model_.norm_offset,
                    model_.hidden, begin, end);
    }
    k_.rms_norm(w.x, model_.hidden, model_.norm, model_.eps, model_.norm_offset, model_.hidden, out, model_.hidden, begin,
                end);
  });
}

// Norms this member's rows for `reader`, or only prepares them where there is no norm.
void Program::normed(Member& m, Work& w, const float* weight, const MatrixShape& reader) {
  int64_t begin, end;
  m.share(w.rows, begin, end);
  const float* x = w.x;
  if (weight) {
    k_.rms_norm(w.x, model_.hidden, weight, model_.eps, model_.norm_offset, model_.hidden, w.normed, model_.hidden,
                begin, end);
    x = w.normed;
  }
  if (k_.prepared_bytes(reader, w.rows)) k_.prepare(reader, x, model_.hidden, w.rows, w.prepared, begin, end);
}

// Prepares rows that all members wrote, and makes that visible.
void Program::prepare(Member& m, Work& w, const MatrixShape& shape, const float* x, int64_t stride, int64_t rows) {
  if (!k_.prepared_bytes(shape, rows)) return;
  int64_t begin, end;
  m.share(rows, begin, end);
  k_.prepare(shape, x, stride, rows, w.prepared, begin, end);
  m.barrier();
}

void Program::multiply(Member& m, Work& w, const Matrix& matrix, const float* x, int64_t stride, int64_t rows, float* y,
                       int64_t y_stride, const Epilogue& epilogue, const uint8_t* prepared) {
  int64_t begin, end;
  m.share(k_.matrix_units(matrix.shape), begin, end);
  const bool needs = k_.prepared_bytes(matrix.shape, rows) > 0;
  if (begin < end)
    k_.linear(matrix, x, stride, needs ? (prepared ? prepared : w.prepared) : nullptr, rows, y, y_stride, epilogue,
              begin, end, w.linear_scratch + w.linear_stride * size_t(m.index));
}

void Program::feed_forward(Member& m, Work& w, const Layer& layer) {
  const int64_t wide = outputs(layer.gate_up.shape);
  normed(m, w, layer.mlp_norm, layer.gate_up.shape);
  m.barrier();
  Epilogue gate{layer.gate_up_bias};
  gate.activation = layer.activation;
  multiply(m, w, layer.gate_up, layer.mlp_norm ? w.normed : w.x, model_.hidden, w.rows, w.inner, wide, gate);
  m.barrier();
  prepare(m, w, layer.down.shape, w.inner, wide, w.rows);
  Epilogue after{layer.down_bias};
  if (layer.mlp_out_norm == nullptr) {
    after.residual = w.x;
    after.residual_stride = model_.hidden;
  }
  multiply(m, w, layer.down, w.inner, wide, w.rows, layer.mlp_out_norm ? w.half : w.x, model_.hidden, after);
  m.barrier();
}

// Tokens gathered by expert, each expert's rows multiplied together, and each token's terms added in order of rank.
void Program::mixture(Member& m, Work& w, const Layer& layer) {
  const Mixture& mix = *layer.mixture;
  const int64_t experts = int64_t(mix.gate_up.size()), terms = w.rows * mix.per_token;
  const int64_t wide = outputs(mix.gate_up[0].shape), hidden = model_.hidden;
  const float* x = layer.mlp_norm ? w.normed : w.x;
  int64_t begin, end;
  normed(m, w, layer.mlp_norm, mix.router.shape);
  m.barrier();
  multiply(m, w, mix.router, x, hidden, w.rows, w.scores, experts, {});
  m.barrier();
  m.share(w.rows, begin, end);
  k_.route(w.scores, experts, experts, mix.per_token, mix.renormalize, w.weights, w.chosen, begin, end);
  m.barrier();
  if (m.index == 0) {
    std::fill(expert_begin_.begin(), expert_begin_.end(), 0);
    for (int64_t i = 0; i < terms; ++i) ++expert_begin_[size_t(w.chosen[i]) + 1];
    for (int64_t e = 0; e < experts; ++e) expert_begin_[size_t(e) + 1] += expert_begin_[size_t(e)];
    std::vector<int64_t>& next = positions_;  // done with: angles are computed
    next.assign(expert_begin_.begin(), expert_begin_.begin() + experts);
    for (int64_t i = 0; i < terms; ++i) {
      const int64_t place = next[size_t(w.chosen[i])]++;
      w.places[i] = place;
      w.sources[place] = i / mix.per_token;
    }
  }
  m.barrier();
  m.share(terms, begin, end);
  for (int64_t i = begin; i < end; ++i)
    std::copy_n(x + w.sources[i] * hidden, hidden, w.gathered + i * hidden);
  m.barrier();
  Epilogue gate;
  gate.activation = layer.activation;
  for (int stage = 0; stage < 2; ++stage) {
    const std::vector<Matrix>& matrices = stage ? mix.down : mix.gate_up;
    const float* from = stage ? w.inner : w.gathered;
    float* to = stage ? w.terms : w.inner;
    const int64_t from_width = stage ? wide : hidden, to_width = stage ? hidden : wide;
    const MatrixShape& shape = matrices[0].shape;
    prepare(m, w, shape, from, from_width, terms);
    // A row's prepared form takes the same bytes whatever the number of rows, so an expert's rows begin at a multiple.
    const size_t row_bytes = k_.prepared_bytes(shape, 1);
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t first = expert_begin_[size_t(e)], count = expert_begin_[size_t(e) + 1] - first;
      if (count)
        multiply(m, w, matrices[size_t(e)], from + first * from_width, from_width, count, to + first * to_width,
                 to_width, stage ? Epilogue{} : gate, w.prepared + size_t(first) * row_bytes);
    }
    m.barrier();
  }
  m.share(w.rows, begin, end);
  const bool normed_after = layer.mlp_out_norm != nullptr;
  k_.combine(w.terms, hidden, w.places, w.weights, mix.per_token, normed_after ? nullptr : w.x, hidden, hidden,
             normed_after ? w.half : w.x, hidden, begin, end);
}

void Program::logits(const float* hidden, const int64_t* rows, int64_t count, float* out) {
  std::lock_guard<std::mutex> lock(steps_);
  if (count == 0) return;
  const MatrixShape& shape = model_.head.shape;
  const int64_t width = model_.hidden;
  Work w;
  w.rows = count;
  float* picked = picked_.floats(count * width);
  w.prepared = prepared_.take(k_.prepared_bytes(shape, count));
  w.linear_stride = whole_lines(k_.linear_scratch_bytes(shape, count));
  const double work = double(count) * size_of(model_.head);
  const int threads = head_size_.choose(work);
  w.linear_scratch = linear_scratch_.take(w.linear_stride * size_t(threads));
  head_size_.run(*team_, work, threads, [&](Member& m) {
    int64_t begin, end;
    m.share(count, begin, end);
    for (int64_t r = begin; r < end; ++r) std::copy_n(hidden + rows[r] * width, width, picked + r * width);
    if (k_.prepared_bytes(shape, count)) k_.prepare(shape, picked, width, count, w.prepared, begin, end);
    m.barrier();
    multiply(m, w, model_.head, picked, width, count, out, shape.out, {});
    if (model_.logit_softcap != 0) {
      m.barrier();
      k_.softcap(out, shape.out, shape.out, model_.logit_softcap, begin, end);
    }
  });
}

}  // namespace armillary
