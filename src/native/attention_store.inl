// Norms and rotary embedding of a step's new queries and keys, and the way of keys and values into the cache.
#pragma once
#include "attention_layout.inl"

namespace armillary {
namespace ARMILLARY_PATH {

// The factor of an RMS norm over `count` numbers.
inline float inverse_size(const float* x, int64_t count, float eps) {
  Vec squares = Vec::zero();
  for (int64_t i = 0; i < count; i += Vec::N) {
    const Vec v = count - i < Vec::N ? Vec::load(x + i, int(count - i)) : Vec::load(x + i);
    squares = Vec::fma(v, v, squares);
  }
  return 1.f / __builtin_sqrtf(sum(squares) / float(count) + eps);
}

// y = norm(x), where `weight` is given: x times `factor` times the weight.
inline void norm_head(const float* x, int count, float factor, const float* weight, bool offset, float* y) {
  const Vec f = Vec::set(factor), one = Vec::set(offset ? 1.f : 0.f);
  for (int i = 0; i < count; i += Vec::N) {
    const int lanes = count - i < Vec::N ? count - i : Vec::N;
    const Vec v = Vec::load(x + i, lanes);
    (weight ? v * f * (one + Vec::load(weight + i, lanes)) : v).store(y + i, lanes);
  }
}

// y = x with its leading `dim` dimensions rotated; x and y are separate.
inline void rotate_head(const float* x, int count, const float* cos, const float* sin, int dim, float* y) {
  const int half = dim / 2;
  for (int part = 0; part < 2; ++part) {
    const int at = part * half, partner = half - at;
    for (int i = 0; i < half; i += Vec::N) {
      const int lanes = half - i < Vec::N ? half - i : Vec::N;
      const Vec straight = Vec::load(x + at + i, lanes) * Vec::load(cos + at + i, lanes);
      Vec::fma(Vec::load(x + partner + i, lanes), Vec::load(sin + at + i, lanes), straight).store(y + at + i, lanes);
    }
  }
  for (int i = dim; i < count; ++i) y[i] = x[i];
}

inline void store(const AttentionShape& shape, const KvLayer& kv, const StepRows& step, const Rotary& rotary, float* qkv,
                  int64_t qkv_stride, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const BlockLayout layout(kv);
  const int dim = kv.head_dim;
  int64_t sequence = 0;
  for (int64_t high = step.sequences; high - sequence > 1;) {
    const int64_t middle = sequence + (high - sequence) / 2;
    if (step.first_row[middle] <= begin)
      sequence = middle;
    else
      high = middle;
  }
  float normed[512], key[512], value[512];
  for (int64_t row = begin; row < end; ++row) {
    while (row >= step.first_row[sequence] + step.counts[sequence]) ++sequence;
    const int64_t position = step.starts[sequence] + row - step.first_row[sequence];
    const int64_t block = step.tables[sequence * step.table_stride + position / kv.block_size];
    const int32_t offset = int32_t(position % kv.block_size);
    float* q = qkv + row * qkv_stride;
    const float* k = q + int64_t(shape.heads) * dim;
    const float* v = k + int64_t(kv.kv_heads) * dim;
    const float* cos = rotary.cos + row * rotary.dim;
    const float* sin = rotary.sin + row * rotary.dim;
    float q_factor = 1, k_factor = 1;
    if (rotary.full_norm && rotary.q_norm) q_factor = inverse_size(q, int64_t(shape.heads) * dim, rotary.eps);
    if (rotary.full_norm && rotary.k_norm) k_factor = inverse_size(k, int64_t(kv.kv_heads) * dim, rotary.eps);
    if (rotary.dim > 0 || rotary.q_norm)
      for (int32_t head = 0; head < shape.heads; ++head) {
        float* x = q + int64_t(head) * dim;
        const float* weight = rotary.q_norm;
        if (weight && rotary.full_norm) weight += int64_t(head) * dim;
        if (weight && !rotary.full_norm) q_factor = inverse_size(x, dim, rotary.eps);
        norm_head(x, dim, q_factor, weight, rotary.norm_offset, normed);
        rotate_head(normed, dim, cos, sin, rotary.dim, x);
      }
    for (int32_t head = 0; head < kv.kv_heads; ++head) {
      const float* x = k + int64_t(head) * dim;
      const float* weight = rotary.k_norm;
      if (weight && rotary.full_norm) weight += int64_t(head) * dim;
      if (weight && !rotary.full_norm) k_factor = inverse_size(x, dim, rotary.eps);
      norm_head(x, dim, k_factor, weight, rotary.norm_offset, normed);
      rotate_head(normed, dim, cos, sin, rotary.dim, key);
      for (int i = 0; i < dim; ++i) value[i] = v[int64_t(head) * dim + i];
      write_position(layout, kv, block, head, offset, key, value);
    }
  }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
