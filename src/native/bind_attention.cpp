#include <memory>

#include "arena.h"
#include "bind.h"
#include "team.h"

namespace armillary {
namespace {

using OptionalFloats = std::optional<ConstFloats>;

// Attention alone may also be computed by an emulated path that has it, which no program runs.
const Kernels& kernels_of_attention(const std::string& path) {
  const Kernels* emulated = emulated_kernels(path);
  return emulated && emulated->attend ? *emulated : kernels_named(path);
}

// One layer's keys and values, for tests and measurements of attention by itself.
class KvCache {
 public:
  KvCache(const std::string& path, int64_t blocks, int element, int kv_heads, int head_dim, int block_size)
      : kernels_(kernels_of_attention(path)), blocks_(blocks) {
    require(blocks > 0 && blocks < kMostPositions, "blocks must be positive, given " + std::to_string(blocks));
    layer_ = kv_layer(element, kv_heads, head_dim, block_size);
    block_bytes_ = kernels_.kv_block_bytes(layer_);
    require(block_bytes_ <= (size_t(1) << 56) / size_t(blocks),
            "blocks must be of at most 2^56 bytes in all, given " + std::to_string(blocks) + " of " +
                std::to_string(block_bytes_));
    layer_.keys = keys_.take(bytes());
    layer_.values = values_.take(bytes());
    for (size_t i = 0; i < bytes(); ++i) layer_.keys[i] = layer_.values[i] = 0;
  }

  size_t bytes() const { return block_bytes_ * size_t(blocks_); }
  size_t block_bytes() const { return block_bytes_; }
  // What attention took so far besides the cache and its results: plans and scratch.
  size_t workspace_bytes() const { return plan_.size() + scratch_.size(); }
  uint8_t* memory(bool values) { return values ? layer_.values : layer_.keys; }
  const KvLayer& layer() const { return layer_; }

  void store(Floats qkv, int heads, const StepRows& step, const Rotary& rotary, int threads) {
    AttentionShape shape = shape_of(heads);
    const int64_t width = int64_t(heads + 2 * layer_.kv_heads) * layer_.head_dim;
    require(qkv.ndim() == 2 && int64_t(qkv.shape(0)) == step.rows && int64_t(qkv.shape(1)) == width,
            "qkv must be [rows, (heads + 2 kv_heads) * head_dim]");
    float* data = qkv.data();
    nb::gil_scoped_release free;
    team(threads).run([&](Member& member) {
      int64_t begin, end;
      member.share(step.rows, begin, end);
      kernels_.store(shape, layer_, step, rotary, data, width, begin, end);
    });
  }

  void attend(ConstFloats qkv, Floats out, int heads, const StepRows& step, float scale, int window, float softcap,
              const OptionalFloats& sinks, int threads) {
    AttentionShape shape = shape_of(heads);
    shape.scale = scale;
    shape.window = window;
    shape.softcap = softcap;
    shape.sinks = sinks ? sinks->data() : nullptr;
    require(!sinks || int64_t(sinks->size()) == heads, "sinks must be [heads]");
    const int64_t width = int64_t(heads) * layer_.head_dim;
    require(qkv.ndim() == 2 && int64_t(qkv.shape(0)) == step.rows && int64_t(qkv.shape(1)) >= width,
            "qkv must be [rows, at least heads * head_dim]");
    require(out.ndim() == 2 && int64_t(out.shape(0)) == step.rows && int64_t(out.shape(1)) == width,
            "out must be [rows, heads * head_dim]");
    const int64_t q_stride = int64_t(qkv.shape(1));
    const float* q = qkv.data();
    float* y = out.data();
    checked_threads(threads);
    nb::gil_scoped_release free;
    uint8_t* plan = plan_.take(kernels_.attention_plan_bytes(shape, layer_, step, threads));
    kernels_.attention_plan(shape, layer_, step, threads, plan);
    uint8_t* scratch = scratch_.take(kernels_.attention_scratch_bytes(shape, layer_, step, threads));
    team(threads).run([&](Member& member) {
      for (int phase = 0; phase < 2; ++phase) {
        kernels_.attend(shape, layer_, step, plan, q, q_stride, y, width, scratch, member.index, member.size, phase);
        if (phase == 0) member.barrier();
      }
    });
  }

  void clear(Ints table, int64_t first, int64_t count) {
    const int64_t held = int64_t(table.size()) * layer_.block_size;
    require(first >= 0 && count >= 0 && count <= held && first <= held - count, "positions must lie within the table");
    check_blocks(table.data(), int64_t(table.size()));
    kernels_.kv_clear(layer_, table.data(), first, count);
  }

  void read(int64_t block, Floats keys, Floats values) {
    require(block >= 0 && block < blocks_, "block must be one of the cache");
    const size_t size = size_t(layer_.kv_heads) * size_t(layer_.head_dim) * size_t(layer_.block_size);
    require(keys.size() == size && values.size() == size, "keys and values must be [kv_heads, block_size, head_dim]");
    kernels_.kv_read(layer_, block, keys.data(), values.data());
  }

  // The step that these arrays describe, once it has been seen to name only what is there.
  StepRows step(const Ints& counts, const Ints& starts, const Ints& first_row, const Ints& tables) const {
    StepRows step;
    step.sequences = int64_t(counts.size());
    require(int64_t(starts.size()) == step.sequences && int64_t(first_row.size()) == step.sequences &&
                tables.ndim() == 2 && int64_t(tables.shape(0)) == step.sequences,
            "counts, starts, first_row and tables must have one entry a sequence");
    step.counts = counts.data();
    step.starts = starts.data();
    step.first_row = first_row.data();
    step.tables = tables.data();
    step.table_stride = int64_t(tables.shape(1));
    for (int64_t s = 0; s < step.sequences; ++s) {
      require(step.counts[s] > 0 && step.counts[s] < kMostPositions && step.starts[s] >= 0 &&
                  step.starts[s] < kMostPositions,
              "counts must be positive and starts not negative");
      require(step.first_row[s] == step.rows, "first_row must follow from counts");
      step.rows += step.counts[s];
      const int64_t used = (step.starts[s] + step.counts[s] + layer_.block_size - 1) / layer_.block_size;
      require(used <= step.table_stride, "tables must name a block for every position");
      check_blocks(step.tables + s * step.table_stride, used);
    }
    return step;
  }

 private:
  void check_blocks(const int64_t* table, int64_t count) const {
    require_below(table, count, blocks_, "blocks");
  }

  AttentionShape shape_of(int heads) const {
    require(heads > 0 && heads <= kMostHeads && heads % layer_.kv_heads == 0, "heads must be a multiple of kv_heads");
    AttentionShape shape;
    shape.heads = heads;
    shape.kv_heads = layer_.kv_heads;
    shape.head_dim = layer_.head_dim;
    return shape;
  }

  Team& team(int threads) {
    if (!team_ || team_->size() != threads) team_ = std::make_unique<Team>(checked_threads(threads));
    return *team_;
  }

  const Kernels& kernels_;
  const int64_t blocks_;
  size_t block_bytes_ = 0;
  KvLayer layer_;
  Buffer keys_, values_, plan_, scratch_;
  std::unique_ptr<Team> team_;
};

const float* pointer(const OptionalFloats& array, int64_t size, const char* what) {
  if (!array) return nullptr;
  require(int64_t(array->size()) == size, std::string(what) + " must have " + std::to_string(size) + " numbers");
  return array->data();
}

}  // namespace

void bind_attention(nb::module_& module) {
  nb::class_<KvCache>(module, "KvCache", "Keys and values of one layer, and attention over them.")
      .def(nb::init<const std::string&, int64_t, int, int, int, int>(), nb::arg("path"), nb::arg("blocks"),
           nb::arg("element"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("block_size"))
      .def_prop_ro("block_bytes", &KvCache::block_bytes)
      .def_prop_ro("workspace_bytes", &KvCache::workspace_bytes)
      .def(
          "memory",
          [](KvCache& self, bool values) {
            return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(self.memory(values), {self.bytes()}, nb::find(self));
          },
          nb::arg("values"), nb::rv_policy::reference_internal, "The cache's own bytes: of keys, or of values.")
      .def(
          "store",
          [](KvCache& self, Floats qkv, int heads, Ints counts, Ints starts, Ints first_row, Ints tables,
             OptionalFloats cos, OptionalFloats sin, OptionalFloats q_norm, OptionalFloats k_norm, bool full_norm,
             bool norm_offset, float eps, int threads) {
            const StepRows step = self.step(counts, starts, first_row, tables);
            const KvLayer& layer = self.layer();
            Rotary rotary;
            require(cos.has_value() == sin.has_value(), "cos and sin must be given together");
            if (cos) {
              require(cos->ndim() == 2 && cos->shape(1) % 2 == 0 && int64_t(cos->shape(1)) <= layer.head_dim,
                      "cos must be [rows, an even number of dimensions of a head]");
              rotary.dim = int32_t(cos->shape(1));
            }
            rotary.cos = pointer(cos, step.rows * rotary.dim, "cos");
            rotary.sin = pointer(sin, step.rows * rotary.dim, "sin");
            rotary.q_norm = pointer(q_norm, int64_t(layer.head_dim) * (full_norm ? heads : 1), "q_norm");
            rotary.k_norm = pointer(k_norm, int64_t(layer.head_dim) * (full_norm ? layer.kv_heads : 1), "k_norm");
            rotary.full_norm = full_norm;
            rotary.norm_offset = norm_offset;
            rotary.eps = eps;
            self.store(qkv, heads, step, rotary, threads);
          },
          nb::arg("qkv").noconvert(), nb::arg("heads"), nb::arg("counts"), nb::arg("starts"), nb::arg("first_row"),
          nb::arg("tables"), nb::arg("cos") = nb::none(), nb::arg("sin") = nb::none(), nb::arg("q_norm") = nb::none(),
          nb::arg("k_norm") = nb::none(), nb::arg("full_norm") = false, nb::arg("norm_offset") = false,
          nb::arg("eps") = 0.f, nb::arg("threads") = 1,
          "Norms and rotates the rows' queries in place, and stores their keys and values.")
      .def(
          "attend",
          [](KvCache& self, ConstFloats qkv, Floats out, int heads, Ints counts, Ints starts, Ints first_row,
             Ints tables, float scale, int window, float softcap, OptionalFloats sinks, int threads) {
            require(window >= 0, "window must be at least 0, given " + std::to_string(window));
            self.attend(qkv, out, heads, self.step(counts, starts, first_row, tables), scale, window, softcap, sinks,
                        threads);
          },
          nb::arg("qkv"), nb::arg("out").noconvert(), nb::arg("heads"), nb::arg("counts"), nb::arg("starts"),
          nb::arg("first_row"), nb::arg("tables"), nb::arg("scale"), nb::arg("window") = 0, nb::arg("softcap") = 0.f,
          nb::arg("sinks") = nb::none(), nb::arg("threads") = 1,
          "Attends with the queries that lead each row of qkv; out [rows, heads * head_dim].")
      .def("clear", &KvCache::clear, nb::arg("table"), nb::arg("first"), nb::arg("count"),
           "Sets positions of one sequence to zero.")
      .def("read", &KvCache::read, nb::arg("block"), nb::arg("keys").noconvert(), nb::arg("values").noconvert(),
           "One block's keys and values as float32 [kv_heads, block_size, head_dim].");
  module.def(
      "probe_read",
      [](const std::string& path, ConstFloats memory) {
        require(memory.size() % 64 == 0, "memory must be a multiple of 64 numbers");
        return kernels_named(path).probe_read(memory.data(), int64_t(memory.size()));
      },
      nb::arg("path"), nb::arg("memory"), "Reads an array once and returns its largest number, or 0.");
  module.def(
      "probe_multiply",
      [](const std::string& path, int64_t rounds) {
        float numbers[14];
        for (int i = 0; i < 14; ++i) numbers[i] = 1.f - 0.01f * float(i);
        return kernels_named(path).probe_multiply(rounds, numbers);
      },
      nb::arg("path"), nb::arg("rounds"), "Does nothing but fused multiply-adds and returns how many.");
}

}  // namespace armillary
