// Keys and values in blocks: where each lies, and single elements in and out.
//
// Keys of a head stand in panels of up to 16 positions, dimension after dimension: [panel][head_dim][positions of the panel].
// So a vector holds the same dimension of neighbouring positions, a dot product needs no sum over lanes, and a panel is read
// from end to end. Values of a head stand [position][head_dim].
//
// int8: what is summed over stands in pairs, keys [panel][pair of dimensions][positions of the panel][2] and values [pair of
// positions][head_dim][2], as instructions want them that multiply pairs of 16-bit numbers and add the two products. The last
// pair may lack a partner. Float32 scales of the positions follow each head.
//
// bfloat16 stands in such pairs too where the path multiplies pairs of it and none lacks a partner; else, as all other formats,
// the layout is the same on every path. No path takes more bytes than another.
#pragma once
#include "attention_plan.h"
#include "numbers.h"

namespace armillary {
namespace ARMILLARY_PATH {

constexpr int kPanel = 16;

#if defined(ARMILLARY_PAIRED_ATTENTION)
constexpr bool kBf16InPairs = true;
#else
constexpr bool kBf16InPairs = false;
#endif
// Whether pairs of bfloat16 are multiplied on the matrix unit.
#if defined(ARMILLARY_TILES)
constexpr bool kOnTiles = true;
#else
constexpr bool kOnTiles = false;
#endif

inline int64_t element_bytes(Element element) {
  return element == Element::f32 ? 4 : element == Element::i8 ? 1 : 2;
}

struct BlockLayout {
  Element element;
  bool paired;          // what is summed over stands in pairs
  int32_t head_dim, block_size;
  int64_t head_bytes;   // of one head's keys, or values, with their scales
  int64_t scales;       // int8: offset of the scales from the head's beginning
  int64_t block_bytes;

  explicit BlockLayout(const KvLayer& kv) : element(kv.element), head_dim(kv.head_dim), block_size(kv.block_size) {
    paired = element == Element::i8 ||
             (kBf16InPairs && element == Element::bf16 && head_dim % 2 == 0 && block_size % 2 == 0);
    head_bytes = int64_t(kv.head_dim) * kv.block_size * element_bytes(kv.element);
    scales = (int64_t(kv.head_dim) + 1) / 2 * ((int64_t(kv.block_size) + 1) / 2) * 4;
    if (kv.element == Element::i8) head_bytes = scales + int64_t(kv.block_size) * 4;
    block_bytes = (head_bytes * kv.kv_heads + 63) / 64 * 64;
  }

  int panel_width(int32_t offset) const {
    const int32_t begin = offset / kPanel * kPanel;
    return block_size - begin < kPanel ? block_size - begin : kPanel;
  }
  // Elements from the start of a head's keys to dimension 0 of a position; the next dimension is panel_width on. Not in pairs.
  int64_t key_at(int32_t offset) const {
    return int64_t(offset / kPanel) * kPanel * head_dim + offset % kPanel;
  }
  int64_t value_at(int32_t offset) const { return int64_t(offset) * head_dim; }
  // The same of any dimension, in pairs too.
  int64_t key_at(int32_t offset, int32_t d) const {
    if (!paired) return key_at(offset) + int64_t(d) * panel_width(offset);
    const int64_t pairs = (int64_t(head_dim) + 1) / 2;
    return (offset / kPanel * kPanel * pairs + d / 2 * panel_width(offset) + offset % kPanel) * 2 + d % 2;
  }
  int64_t value_at(int32_t offset, int32_t d) const {
    return !paired ? value_at(offset) + d : (int64_t(offset / 2) * head_dim + d) * 2 + offset % 2;
  }
};

inline float read_element(const void* from, int64_t index, Element element) {
  switch (element) {
    case Element::bf16: return from_bf16(static_cast<const uint16_t*>(from)[index]);
    case Element::f16: return from_f16(static_cast<const uint16_t*>(from)[index]);
    case Element::i8: return float(static_cast<const int8_t*>(from)[index]);
    default: return static_cast<const float*>(from)[index];
  }
}

// `count` floats to elements `stride` apart. Not int8.
inline void write_elements(const float* x, int count, void* to, int64_t index, int64_t stride, Element element) {
  switch (element) {
    case Element::bf16: {
      uint16_t* p = static_cast<uint16_t*>(to) + index;
      for (int i = 0; i < count; ++i) p[i * stride] = to_bf16(x[i]);
      break;
    }
    case Element::f16: {
      uint16_t* p = static_cast<uint16_t*>(to) + index;
      for (int i = 0; i < count; ++i) p[i * stride] = to_f16(x[i]);
      break;
    }
    default: {
      float* p = static_cast<float*>(to) + index;
      for (int i = 0; i < count; ++i) p[i * stride] = x[i];
    }
  }
}

// The nearest of 127 steps to either side, in place, and the step; infinity or NaN among them makes the step NaN, and so
// whatever is computed with this position.
inline float quantise(float* x, int count) {
  float most = 0;
  bool finite = true;
  for (int i = 0; i < count; ++i) {
    const float size = x[i] < 0 ? -x[i] : x[i];
    finite = finite && size < __builtin_inff();
    most = size > most ? size : most;
  }
  if (!finite || most < 1e-35f) {  // the inverse of a smaller step would be infinite
    for (int i = 0; i < count; ++i) x[i] = 0;
    return finite ? 0.f : __builtin_nanf("");
  }
  const Vec inverse = Vec::set(127.f / most);
  for (int i = 0; i < count; i += Vec::N) {
    const int lanes = count - i < Vec::N ? count - i : Vec::N;
    Vec::round(Vec::load(x + i, lanes) * inverse).store(x + i, lanes);
  }
  return most / 127.f;
}

inline size_t kv_block_bytes(const KvLayer& kv) { return size_t(BlockLayout(kv).block_bytes); }

// One position of one head; `key` and `value` [head_dim] are overwritten where they are quantised.
inline void write_position(const BlockLayout& layout, const KvLayer& kv, int64_t block, int32_t head, int32_t offset,
                           float* key, float* value) {
  uint8_t* keys = kv.keys + block * layout.block_bytes;
  uint8_t* values = kv.values + block * layout.block_bytes;
  if (layout.element == Element::i8) {
    const int64_t scales = head * layout.head_bytes + layout.scales;
    reinterpret_cast<float*>(keys + scales)[offset] = quantise(key, layout.head_dim);
    reinterpret_cast<float*>(values + scales)[offset] = quantise(value, layout.head_dim);
    int8_t* k = reinterpret_cast<int8_t*>(keys + head * layout.head_bytes);
    int8_t* v = reinterpret_cast<int8_t*>(values + head * layout.head_bytes);
    for (int32_t d = 0; d < layout.head_dim; ++d) {
      k[layout.key_at(offset, d)] = int8_t(key[d]);
      v[layout.value_at(offset, d)] = int8_t(value[d]);
    }
    return;
  }
  if (layout.paired) {
    uint16_t* k = reinterpret_cast<uint16_t*>(keys + head * layout.head_bytes) + layout.key_at(offset, 0);
    uint16_t* v = reinterpret_cast<uint16_t*>(values + head * layout.head_bytes) + layout.value_at(offset, 0);
    const int64_t next = 2 * layout.panel_width(offset);
    for (int32_t d = 0; d < layout.head_dim; d += 2, k += next) {
      k[0] = to_bf16(key[d]);
      k[1] = to_bf16(key[d + 1]);
    }
    for (int32_t d = 0; d < layout.head_dim; ++d) v[2 * d] = to_bf16(value[d]);
    return;
  }
  write_elements(key, layout.head_dim, keys + head * layout.head_bytes, layout.key_at(offset),
                 layout.panel_width(offset), layout.element);
  write_elements(value, layout.head_dim, values + head * layout.head_bytes, layout.value_at(offset), 1, layout.element);
}

inline void kv_clear(const KvLayer& kv, const int64_t* table, int64_t first, int64_t count) {
  const BlockLayout layout(kv);
  float key[512], value[512];
  for (int64_t position = first; position < first + count; ++position)
    for (int32_t head = 0; head < kv.kv_heads; ++head) {
      for (int i = 0; i < kv.head_dim; ++i) key[i] = value[i] = 0;
      write_position(layout, kv, table[position / kv.block_size], head, int32_t(position % kv.block_size), key, value);
    }
}

inline void kv_read(const KvLayer& kv, int64_t block, float* keys, float* values) {
  const BlockLayout layout(kv);
  const uint8_t* from[2] = {kv.keys + block * layout.block_bytes, kv.values + block * layout.block_bytes};
  float* to[2] = {keys, values};
  for (int side = 0; side < 2; ++side)
    for (int32_t head = 0; head < kv.kv_heads; ++head)
      for (int32_t offset = 0; offset < kv.block_size; ++offset) {
        const int64_t row = int64_t(head) * kv.block_size + offset;
        float scale = 1;
        const uint8_t* data = from[side] + head * layout.head_bytes;
        if (kv.element == Element::i8) scale = reinterpret_cast<const float*>(data + layout.scales)[offset];
        for (int i = 0; i < kv.head_dim; ++i) {
          const int64_t at = side ? layout.value_at(offset, i) : layout.key_at(offset, i);
          to[side][row * kv.head_dim + i] = scale * read_element(data, at, kv.element);
        }
      }
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
