#include "bind.h"
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

const float* vector_of(ModelParts& parts, nb::handle value, int64_t size, const char* what) {
  if (value.is_none()) return nullptr;
  ConstFloats array = nb::cast<ConstFloats>(value);
  require(int64_t(array.size()) == size, std::string(what) + " must have " + std::to_string(size) + " numbers, given " +
                                             std::to_string(array.size()));
  parts.kept.push_back(nb::borrow(value));
  return array.data();
}

Matrix matrix_of(ModelParts& parts, nb::handle value, int64_t out, int64_t in, const char* what) {
  const Weight& weight = nb::cast<const Weight&>(value);
  const MatrixShape& shape = weight.matrix.shape;
  require(shape.out == out && shape.in == in, std::string(what) + " must be " + std::to_string(out) + " x " +
                                                  std::to_string(in) + ", given " + std::to_string(shape.out) + " x " +
                                                  std::to_string(shape.in));
  require(weight.kernels == parts.kernels, std::string(what) + " must be packed for the model's path");
  parts.kept.push_back(nb::borrow(value));
  return weight.matrix;
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
  a.heads = int32_t(whole("heads"));
  a.kv_heads = int32_t(whole("kv_heads"));
  a.head_dim = int32_t(whole("head_dim"));
  require(a.kv_heads > 0 && a.heads > 0 && a.heads % a.kv_heads == 0, "heads must be a multiple of kv_heads");
  require(a.head_dim > 0 && a.head_dim <= 512, "head_dim must be from 1 to 512, given " + std::to_string(a.head_dim));
  a.scale = float(number("scale"));
  a.window = int32_t(whole("window"));
  a.softcap = float(number("softcap"));
  a.sinks = vector("sinks", a.heads);
  layer.rope = int32_t(whole("rope"));
  require(layer.rope >= 0 && size_t(layer.rope) < parts.model.ropes.size(), "rope must be one of the model's");
  require(parts.model.ropes[size_t(layer.rope)].dim <= a.head_dim, "a rope must not be wider than a head");
  const int64_t q = int64_t(a.heads) * a.head_dim, kv = int64_t(a.kv_heads) * a.head_dim;
  layer.full_qk_norm = nb::cast<bool>(given["full_qk_norm"]);
  layer.activation = Activation(int32_t(whole("activation")));
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
    for (nb::handle m : gate_up) mix.gate_up.push_back(matrix_of(parts, m, 2 * wide, hidden, "gate_up"));
    for (nb::handle m : down) mix.down.push_back(matrix_of(parts, m, hidden, wide, "down"));
    for (const Matrix& m : mix.gate_up) require(m.shape.paired, "gate_up must be paired");
    mix.per_token = whole("per_token");
    require(mix.per_token > 0 && mix.per_token <= experts, "per_token must be from 1 to the number of experts");
    mix.renormalize = nb::cast<bool>(given["renormalize"]);
  } else {
    layer.gate_up = matrix_of(parts, value("gate_up"), 2 * wide, hidden, "gate_up");
    require(layer.gate_up.shape.paired, "gate_up must be paired");
    layer.gate_up_bias = vector("gate_up_bias", 2 * wide);
    layer.down = matrix_of(parts, value("down"), hidden, wide, "down");
    layer.down_bias = vector("down_bias", hidden);
  }
  parts.model.layers.push_back(std::move(layer));
}

struct Runner {
  Runner(ModelParts& parts, int threads) : program(*parts.kernels, parts.model, threads) {}
  Program program;
};

void check_step(const Runner& self, const KvStore& kv, const StepRows& step, const Ints& tokens) {
  const Model& model = self.program.model();
  require(kv.layers.size() == model.layers.size(), "kv must have as many layers as the model");
  require(kv.kernels == &self.program.kernels(), "kv must be laid out for the program's path");
  int64_t row = 0;
  for (int64_t s = 0; s < step.sequences; ++s) {
    require(step.counts[s] > 0 && step.starts[s] >= 0, "every sequence must have rows, from position 0 on");
    require(step.first_row[s] == row, "rows must be flat, sequence after sequence");
    row += step.counts[s];
    const int64_t block_size = kv.layers.empty() ? 1 : kv.layers[0].block_size;
    const int64_t needed = (step.starts[s] + step.counts[s] + block_size - 1) / block_size;
    require(needed <= step.table_stride, "a table must have a block for every position");
    for (int64_t i = 0; i < needed; ++i) {
      const int64_t block = step.tables[s * step.table_stride + i];
      require(block >= 0 && block < kv.blocks, "blocks must be from 0 to " + std::to_string(kv.blocks - 1) +
                                                   ", given " + std::to_string(block));
    }
  }
  require(row == step.rows, "counts must add up to the number of tokens");
  for (int64_t i = 0; i < step.rows; ++i)
    require(tokens.data()[i] >= 0 && tokens.data()[i] < model.vocab, "tokens must be those of the vocabulary");
}

}  // namespace

void bind_program(nb::module_& module) {
  nb::class_<ModelParts>(module, "Model", "A decoder's description and weights.")
      .def(
          "__init__",
          [](ModelParts* self, const std::string& path, int64_t hidden, int64_t vocab, double eps, bool norm_offset,
             nb::object norm, nb::object head, nb::object embed, double embed_scale, double logit_softcap) {
            new (self) ModelParts();
            self->kernels = &kernels_named(path);
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
              auto table = nb::cast<nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>>(embed);
              require(int64_t(table.shape(0)) == vocab && int64_t(table.shape(1)) == hidden,
                      "embed must be [vocab, hidden]");
              const nb::dlpack::dtype type = table.dtype();
              require(type.bits == 32 || type.bits == 16, "embed must be float32, bfloat16 or float16");
              model.embed_element = type.bits == 32 ? Element::f32
                                    : type.code == uint8_t(nb::dlpack::dtype_code::Bfloat) ? Element::bf16
                                                                                            : Element::f16;
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
            self.model.ropes.push_back({vector_of(self, inverse, half, "inverse"), int32_t(2 * half), float(scale)});
          },
          nb::arg("inverse"), nb::arg("scale"))
      .def("add_layer", &add_layer, nb::arg("parts"));

  nb::class_<KvStore>(module, "KvStore", "Keys and values of all layers, in memory that the caller brings.")
      .def_static(
          "block_bytes",
          [](const std::string& path, int element, int kv_heads, int head_dim, int block_size) {
            KvLayer layer;
            layer.element = Element(element);
            layer.kv_heads = kv_heads;
            layer.head_dim = head_dim;
            layer.block_size = block_size;
            return kernels_named(path).kv_block_bytes(layer);
          },
          nb::arg("path"), nb::arg("element"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("block_size"),
          "Bytes of one block of keys, and of one of values.")
      .def(
          "__init__",
          [](KvStore* self, const std::string& path, int64_t blocks) {
            new (self) KvStore();
            self->kernels = &kernels_named(path);
            self->blocks = blocks;
          },
          nb::arg("path"), nb::arg("blocks"))
      .def(
          "add_layer",
          [](KvStore& self, Bytes keys, Bytes values, int element, int kv_heads, int head_dim, int block_size) {
            KvLayer layer;
            layer.keys = keys.data();
            layer.values = values.data();
            layer.element = Element(element);
            layer.kv_heads = kv_heads;
            layer.head_dim = head_dim;
            layer.block_size = block_size;
            const size_t bytes = self.kernels->kv_block_bytes(layer) * size_t(self.blocks);
            require(keys.size() >= bytes && values.size() >= bytes, "keys and values must hold all blocks");
            self.layers.push_back(layer);
            self.kept.push_back(keys);
            self.kept.push_back(values);
          },
          nb::arg("keys"), nb::arg("values"), nb::arg("element"), nb::arg("kv_heads"), nb::arg("head_dim"),
          nb::arg("block_size"))
      .def(
          "clear",
          [](KvStore& self, Ints table, int64_t first, int64_t count) {
            for (const KvLayer& layer : self.layers) {
              require(first >= 0 && count >= 0 && first + count <= int64_t(table.size()) * layer.block_size,
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
          nb::arg("layer"), nb::arg("block"), nb::arg("keys"), nb::arg("values"));

  nb::class_<Runner>(module, "Program", "Runs steps of a model on a team of threads.")
      .def(nb::init<ModelParts&, int>(), nb::arg("model"), nb::arg("threads"), nb::keep_alive<1, 2>())
      .def(
          "hidden",
          [](Runner& self, KvStore& kv, Ints tokens, Ints counts, Ints starts, Ints first_row, Ints tables, Floats out) {
            StepRows step;
            step.sequences = int64_t(counts.size());
            step.rows = int64_t(tokens.size());
            step.counts = counts.data();
            step.starts = starts.data();
            step.first_row = first_row.data();
            step.tables = tables.data();
            require(tables.ndim() == 2 && int64_t(tables.shape(0)) == step.sequences &&
                        int64_t(starts.size()) == step.sequences && int64_t(first_row.size()) == step.sequences,
                    "counts, starts, first_row and tables must have one entry a sequence");
            step.table_stride = int64_t(tables.shape(1));
            require(int64_t(out.size()) == step.rows * self.program.model().hidden, "out must be [tokens, hidden]");
            check_step(self, kv, step, tokens);
            nb::gil_scoped_release free;
            self.program.hidden(step, tokens.data(), kv.layers, out.data());
          },
          nb::arg("kv"), nb::arg("tokens"), nb::arg("counts"), nb::arg("starts"), nb::arg("first_row"),
          nb::arg("tables"), nb::arg("out"))
      .def(
          "logits",
          [](Runner& self, ConstFloats hidden, Ints rows, Floats out) {
            const Model& model = self.program.model();
            const int64_t count = int64_t(rows.size()), held = int64_t(hidden.size()) / model.hidden;
            require(int64_t(out.size()) == count * model.vocab, "out must be [rows, vocab]");
            for (int64_t i = 0; i < count; ++i)
              require(rows.data()[i] >= 0 && rows.data()[i] < held, "rows must be those of hidden");
            nb::gil_scoped_release free;
            self.program.logits(hidden.data(), rows.data(), count, out.data());
          },
          nb::arg("hidden"), nb::arg("rows"), nb::arg("out"))
      .def_prop_ro("bytes", [](const Runner& self) { return self.program.bytes(); }, "Memory held for steps.")
      .def_prop_ro("threads", [](const Runner& self) { return self.program.threads(); })
      .def_prop_ro(
          "team", [](const Runner& self) { return self.program.team(); }, "The threads, for a sampler to share.");
}

}  // namespace armillary
