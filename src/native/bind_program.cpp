#include <algorithm>

#include "bind.h"
#include "numbers.h"
#include "program.h"

namespace armillary {
namespace {

// A model with what keeps its memory alive.
struct ModelParts {
  ModelParts() = default;
  ModelParts(const ModelParts&) = delete;
  ModelParts& operator=(const ModelParts&) = delete;

  const Kernels* kernels = nullptr;
  Model model;
  std::vector<nb::object> kept;
};

// Keys and values of all layers, in memory that Python owns.
struct KvStore {
  const Kernels* kernels = nullptr;
  std::vector<KvLayer> layers;
  std::vector<Bytes> kept;
  int64_t blocks = 0;
};

// The memory of a vector itself: a converted copy of it would not outlive this call.
const float* vector_of(ModelParts& parts, nb::handle value, int64_t size, const char* what) {
  if (value.is_none()) return nullptr;
  ConstFloats array;
  require(nb::try_cast(value, array, false), std::string(what) + " must be float32 and contiguous");
  require(int64_t(array.size()) == size, std::string(what) + " must have " + std::to_string(size) + " numbers, given " +
                                             std::to_string(array.size()));
  parts.kept.push_back(nb::borrow(value));
  return array.data();
}

Matrix matrix_of(ModelParts& parts, nb::handle value, int64_t out, int64_t in, const char* what, bool paired = false) {
  const Weight& weight = nb::cast<const Weight&>(value);
  const MatrixShape& shape = weight.matrix.shape;
  require(shape.paired == paired, std::string(what) + (paired ? " must be paired" : " must not be paired"));
  require(shape.out == out && shape.in == in, std::string(what) + " must be " + std::to_string(out) + " x " +
                                                  std::to_string(in) + ", given " + std::to_string(shape.out) + " x " +
                                                  std::to_string(shape.in));
  require(weight.kernels == parts.kernels, std::string(what) + " must be packed for the model's path");
  parts.kept.push_back(nb::borrow(value));
  return weight.matrix;
}

bool same_format(const MatrixShape& a, const MatrixShape& b) {
  return a.element == b.element && a.group == b.group && a.zero_points == b.zero_points &&
         a.int8_activations == b.int8_activations;
}

void add_layer(ModelParts& parts, nb::dict given) {
  auto has = [&](const char* name) { return given.contains(name) && !given[name].is_none(); };
  auto value = [&](const char* name) -> nb::object {
    return given.contains(name) ? nb::borrow(given[name]) : nb::none();
  };
  auto number = [&](const char* name) { return nb::cast<double>(given[name]); };
  auto whole = [&](const char* name) { return nb::cast<int64_t>(given[name]); };
  auto vector = [&](const char* name, int64_t size) { return vector_of(parts, value(name), size, name); };
  const int64_t hidden = parts.model.hidden;
  Layer layer;
  AttentionShape& a = layer.attention;
  a.heads = nb::cast<int32_t>(given["heads"]);
  a.kv_heads = nb::cast<int32_t>(given["kv_heads"]);
  a.head_dim = nb::cast<int32_t>(given["head_dim"]);
  kv_layer(0, a.kv_heads, a.head_dim, 1);
  require(a.heads > 0 && a.heads <= kMostHeads && a.heads % a.kv_heads == 0, "heads must be a multiple of kv_heads");
  a.scale = float(number("scale"));
  a.window = nb::cast<int32_t>(given["window"]);
  require(a.window >= 0, "window must be at least 0, given " + std::to_string(a.window));
  a.softcap = float(number("softcap"));
  a.sinks = vector("sinks", a.heads);
  layer.rope = nb::cast<int32_t>(given["rope"]);
  require(layer.rope >= 0 && size_t(layer.rope) < parts.model.ropes.size(), "rope must be one of the model's");
  require(parts.model.ropes[size_t(layer.rope)].dim <= a.head_dim, "a rope must not be wider than a head");
  const int64_t q = int64_t(a.heads) * a.head_dim, kv = int64_t(a.kv_heads) * a.head_dim;
  layer.full_qk_norm = nb::cast<bool>(given["full_qk_norm"]);
  layer.activation = activation_of(nb::cast<int>(given["activation"]));
  layer.attention_norm = vector("attention_norm", hidden);
  layer.qkv = matrix_of(parts, value("qkv"), q + 2 * kv, hidden, "qkv");
  layer.qkv_bias = vector("qkv_bias", q + 2 * kv);
  layer.q_norm = vector("q_norm", layer.full_qk_norm ? q : a.head_dim);
  layer.k_norm = vector("k_norm", layer.full_qk_norm ? kv : a.head_dim);
  layer.out = matrix_of(parts, value("out"), hidden, q, "out");
  layer.out_bias = vector("out_bias", hidden);
  layer.attention_out_norm = vector("attention_out_norm", hidden);
  layer.mlp_norm = vector("mlp_norm", hidden);
  layer.mlp_out_norm = vector("mlp_out_norm", hidden);
  const int64_t wide = whole("intermediate");
  if (has("router")) {
    layer.mixture = std::make_unique<Mixture>();
    Mixture& mix = *layer.mixture;
    nb::list gate_up = nb::cast<nb::list>(given["gate_up"]), down = nb::cast<nb::list>(given["down"]);
    require(gate_up.size() == down.size() && gate_up.size() > 0, "experts must have gate_up and down each");
    const int64_t experts = int64_t(gate_up.size());
    mix.router = matrix_of(parts, value("router"), experts, hidden, "router");
    for (nb::handle m : gate_up) mix.gate_up.push_back(matrix_of(parts, m, 2 * wide, hidden, "gate_up", true));
    for (nb::handle m : down) mix.down.push_back(matrix_of(parts, m, hidden, wide, "down"));
    // Rows are prepared once for all experts.
    for (const std::vector<Matrix>* all : {&mix.gate_up, &mix.down})
      for (const Matrix& m : *all) require(same_format(m.shape, (*all)[0].shape), "experts must be of one format");
    mix.per_token = whole("per_token");
    require(mix.per_token > 0 && mix.per_token <= experts, "per_token must be from 1 to the number of experts");
    mix.renormalize = nb::cast<bool>(given["renormalize"]);
  } else {
    layer.gate_up = matrix_of(parts, value("gate_up"), 2 * wide, hidden, "gate_up", true);
    layer.gate_up_bias = vector("gate_up_bias", 2 * wide);
    layer.down = matrix_of(parts, value("down"), hidden, wide, "down");
    layer.down_bias = vector("down_bias", hidden);
  }
  parts.model.layers.push_back(std::move(layer));
}

// Lists of Python's: for the few numbers of a step, arrays would take longer to make and to hand over.
using Numbers = std::vector<int64_t>;

struct Runner {
  Runner(ModelParts& parts, int threads, bool adapt)
      : program(*parts.kernels, parts.model, checked_threads(threads), adapt) {}
  Program program;
};

bool all_finite(const float* numbers, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = to_bits(numbers[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest < 0x7f800000u;
}

// A step as lists of Python's describe it. The tables lie side by side in one rectangle: kernels read of a row what its
// sequence needs, and the rest is zero.
class Rows {
 public:
  Rows(const Runner& self, const KvStore& kv, const Numbers& tokens, const Numbers& counts, const Numbers& starts,
       const std::vector<Numbers>& tables)
      : first_row_(counts.size()) {
    const Model& model = self.program.model();
    check_store(self, kv);
    require(starts.size() == counts.size() && tables.size() == counts.size(),
            "counts, starts and tables must have one entry a sequence");
    step.sequences = int64_t(counts.size());
    step.rows = int64_t(tokens.size());
    const int64_t block_size = kv.layers.empty() ? 1 : kv.layers[0].block_size;
    int64_t row = 0;
    for (size_t s = 0; s < counts.size(); ++s) {
      require(counts[s] > 0 && counts[s] <= step.rows && starts[s] >= 0 && starts[s] < kMostPositions,
              "every sequence must have rows, from position 0 on");
      first_row_[s] = row;
      row += counts[s];
      const int64_t needed = (starts[s] + counts[s] + block_size - 1) / block_size;
      require(needed <= int64_t(tables[s].size()), "a table must have a block for every position");
      require_below(tables[s].data(), needed, kv.blocks, "blocks");
      step.table_stride = std::max(step.table_stride, needed);
    }
    require(row == step.rows, "counts must add up to the number of tokens");
    require_below(tokens.data(), step.rows, model.vocab, "tokens");
    tables_.resize(counts.size() * size_t(step.table_stride));
    for (size_t s = 0; s < tables.size(); ++s)
      std::copy_n(tables[s].begin(), std::min(int64_t(tables[s].size()), step.table_stride),
                  tables_.begin() + int64_t(s) * step.table_stride);
    step.counts = counts.data();
    step.starts = starts.data();
    step.first_row = first_row_.data();
    step.tables = tables_.data();
  }

  StepRows step{};

 private:
  static void check_store(const Runner& self, const KvStore& kv) {
    const Model& model = self.program.model();
    require(kv.layers.size() == model.layers.size(), "kv must have as many layers as the model");
    require(kv.kernels == &self.program.kernels(), "kv must be laid out for the program's path");
    for (size_t i = 0; i < kv.layers.size(); ++i)
      require(kv.layers[i].kv_heads == model.layers[i].attention.kv_heads &&
                  kv.layers[i].head_dim == model.layers[i].attention.head_dim,
              "kv must have the heads of the model's layers");
  }

  Numbers first_row_, tables_;
};

}  // namespace

void bind_program(nb::module_& module) {
  nb::class_<ModelParts>(module, "Model", "A decoder's description and weights.")
      .def(
          "__init__",
          [](ModelParts* self, const std::string& path, int64_t hidden, int64_t vocab, double eps, bool norm_offset,
             nb::object norm, nb::object head, nb::object embed, double embed_scale, double logit_softcap) {
            const Kernels& kernels = kernels_named(path);
            require(hidden > 0 && vocab > 0, "hidden and vocab must be positive");
            new (self) ModelParts();
            self->kernels = &kernels;
            Model& model = self->model;
            model.hidden = hidden;
            model.vocab = vocab;
            model.eps = float(eps);
            model.norm_offset = norm_offset;
            model.embed_scale = float(embed_scale);
            model.logit_softcap = float(logit_softcap);
            model.norm = vector_of(*self, norm, hidden, "norm");
            model.head = matrix_of(*self, head, vocab, hidden, "head");
            if (!embed.is_none()) {
              nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu> table;
              require(nb::try_cast(embed, table, false), "embed must be [vocab, hidden], contiguous");
              require(int64_t(table.shape(0)) == vocab && int64_t(table.shape(1)) == hidden,
                      "embed must be [vocab, hidden]");
              model.embed_element = element_of(table.dtype(), "embed");
              model.embed = table.data();
              self->kept.push_back(embed);
            }
          },
          nb::arg("path"), nb::arg("hidden"), nb::arg("vocab"), nb::arg("eps"), nb::arg("norm_offset"), nb::arg("norm"),
          nb::arg("head"), nb::arg("embed").none(), nb::arg("embed_scale"), nb::arg("logit_softcap"))
      .def(
          "add_rope",
          [](ModelParts& self, nb::object inverse, double scale) {
            const int64_t half = int64_t(nb::cast<ConstFloats>(inverse).size());
            require(half <= 256, "inverse must have at most 256 numbers, given " + std::to_string(half));
            self.model.ropes.push_back({vector_of(self, inverse, half, "inverse"), int32_t(2 * half), float(scale)});
          },
          nb::arg("inverse"), nb::arg("scale"))
      .def("add_layer", &add_layer, nb::arg("parts"));

  nb::class_<KvStore>(module, "KvStore", "Keys and values of all layers, in memory that the caller brings.")
      .def_static(
          "block_bytes",
          [](const std::string& path, int element, int kv_heads, int head_dim, int block_size) {
            return kernels_named(path).kv_block_bytes(kv_layer(element, kv_heads, head_dim, block_size));
          },
          nb::arg("path"), nb::arg("element"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("block_size"),
          "Bytes of one block of keys, and of one of values.")
      .def(
          "__init__",
          [](KvStore* self, const std::string& path, int64_t blocks) {
            const Kernels& kernels = kernels_named(path);
            require(blocks > 0 && blocks < kMostPositions, "blocks must be positive, given " + std::to_string(blocks));
            new (self) KvStore();
            self->kernels = &kernels;
            self->blocks = blocks;
          },
          nb::arg("path"), nb::arg("blocks"))
      .def(
          "add_layer",
          [](KvStore& self, Bytes keys, Bytes values, int element, int kv_heads, int head_dim, int block_size) {
            KvLayer layer = kv_layer(element, kv_heads, head_dim, block_size);
            layer.keys = keys.data();
            layer.values = values.data();
            const size_t bytes = self.kernels->kv_block_bytes(layer);
            require(std::min(keys.size(), values.size()) / bytes >= size_t(self.blocks),
                    "keys and values must hold all blocks");
            require((reinterpret_cast<uintptr_t>(layer.keys) | reinterpret_cast<uintptr_t>(layer.values)) % 64 == 0,
                    "keys and values must be aligned to 64 bytes");
            require(self.layers.empty() || self.layers[0].block_size == block_size, "layers must have one block_size");
            self.layers.push_back(layer);
            self.kept.push_back(keys);
            self.kept.push_back(values);
          },
          nb::arg("keys").noconvert(), nb::arg("values").noconvert(), nb::arg("element"), nb::arg("kv_heads"),
          nb::arg("head_dim"), nb::arg("block_size"))
      .def(
          "clear",
          [](KvStore& self, Ints table, int64_t first, int64_t count) {
            require_below(table.data(), int64_t(table.size()), self.blocks, "blocks");
            for (const KvLayer& layer : self.layers) {
              const int64_t held = int64_t(table.size()) * layer.block_size;
              require(first >= 0 && count >= 0 && count <= held && first <= held - count,
                      "positions must lie within the table");
              self.kernels->kv_clear(layer, table.data(), first, count);
            }
          },
          nb::arg("table"), nb::arg("first"), nb::arg("count"), "Sets positions of one sequence to zero, in all layers.")
      .def(
          "read",
          [](const KvStore& self, int64_t layer, int64_t block, Floats keys, Floats values) {
            require(layer >= 0 && size_t(layer) < self.layers.size() && block >= 0 && block < self.blocks,
                    "layer and block must be those of the store");
            const KvLayer& found = self.layers[size_t(layer)];
            const size_t size = size_t(found.kv_heads) * size_t(found.head_dim) * size_t(found.block_size);
            require(keys.size() == size && values.size() == size, "keys and values must be [heads, positions, dims]");
            self.kernels->kv_read(found, block, keys.data(), values.data());
          },
          nb::arg("layer"), nb::arg("block"), nb::arg("keys").noconvert(), nb::arg("values").noconvert());

  nb::class_<Runner>(module, "Program", "Runs steps of a model on a team of threads.")
      .def(nb::init<ModelParts&, int, bool>(), nb::arg("model"), nb::arg("threads"), nb::arg("adapt") = false,
           nb::keep_alive<1, 2>())
      .def(
          "hidden",
          [](Runner& self, KvStore& kv, const Numbers& tokens, const Numbers& counts, const Numbers& starts,
             const std::vector<Numbers>& tables, Floats out) {
            const Rows rows(self, kv, tokens, counts, starts, tables);
            require(int64_t(out.size()) == rows.step.rows * self.program.model().hidden, "out must be [tokens, hidden]");
            nb::gil_scoped_release free;
            self.program.hidden(rows.step, tokens.data(), kv.layers, out.data());
            return all_finite(out.data(), int64_t(out.size()));
          },
          nb::arg("kv"), nb::arg("tokens"), nb::arg("counts"), nb::arg("starts"), nb::arg("tables"),
          nb::arg("out").noconvert(),
          "out [tokens, hidden] = hidden states after the final norm. Whether all of them are finite. Of each sequence: how "
          "many of the tokens are its own, the position of the first of them, and its blocks.")
      .def(
          "logits",
          [](Runner& self, ConstFloats hidden, const Numbers& rows, Floats out) {
            const Model& model = self.program.model();
            require(hidden.size() % size_t(model.hidden) == 0, "hidden must be [rows, hidden]");
            const int64_t count = int64_t(rows.size()), held = int64_t(hidden.size()) / model.hidden;
            require(int64_t(out.size()) == count * model.vocab, "out must be [rows, vocab]");
            require_below(rows.data(), count, held, "rows");
            nb::gil_scoped_release free;
            self.program.logits(hidden.data(), rows.data(), count, out.data());
          },
          nb::arg("hidden"), nb::arg("rows"), nb::arg("out").noconvert())
      .def_prop_ro("bytes", [](const Runner& self) { return self.program.bytes(); }, "Memory held for steps.")
      .def_prop_ro("threads", [](const Runner& self) { return self.program.threads(); })
      .def_prop_ro(
          "team", [](const Runner& self) { return self.program.team(); }, "The threads, for a sampler to share.");
}

}  // namespace armillary
