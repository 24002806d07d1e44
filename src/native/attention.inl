// Paged attention of a path.
#include "attention_step.inl"
#include "attention_store.inl"
#include "attention_probe.inl"

namespace armillary {
namespace ARMILLARY_PATH {

inline void fill_attention(Kernels& k) {
  k.kv_block_bytes = kv_block_bytes;
  k.store = store;
  k.attention_plan_bytes = attention_plan_bytes;
  k.attention_plan = attention_plan;
  k.attention_scratch_bytes = attention_scratch_bytes;
  k.attend = attend;
  k.kv_clear = kv_clear;
  k.kv_read = kv_read;
  k.probe_read = probe_read;
  k.probe_multiply = probe_multiply;
}

}  // namespace ARMILLARY_PATH
}  // namespace armillary
