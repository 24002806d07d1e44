// Linear layers by themselves, for tests and measurements. The step program calls the table of kernels directly.
#include <cstdlib>
#include <memory>
#include <optional>

#include "bind.h"
#include "team.h"

namespace armillary {
namespace {

using Matrix2 = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using ConstMatrix2 = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;

struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};
using Memory = std::unique_ptr<uint8_t, Free>;

Memory lines(size_t bytes) {
  void* p = std::aligned_alloc(64, (bytes + 127) / 64 * 64);
  if (!p) throw std::bad_alloc();
  return Memory(static_cast<uint8_t*>(p));
}

std::string text(size_t number) { return std::to_string(number); }

template <class Array>
void check(const Array& array, size_t rows, size_t width, const char* name) {
  require(array.shape(0) == rows && array.shape(1) == width,
          std::string(name) + " must be " + text(rows) + " x " + text(width) + ", given " + text(array.shape(0)) + " x " +
              text(array.shape(1)));
  require(!rows || width < 2 || array.stride(1) == 1, std::string(name) + " must have contiguous rows");
  require(rows < 2 || array.stride(0) >= 0, std::string(name) + " must not run backwards");
}

// Everything that one product needs beside the matrix.
struct Product {
  Memory prepared;
  Memory scratch;
  size_t scratch_stride;

  Product(const Weight& weight, int64_t rows, int threads)
      : prepared(lines(weight.kernels->prepared_bytes(weight.matrix.shape, rows))),
        scratch_stride((weight.kernels->linear_scratch_bytes(weight.matrix.shape, rows) + 63) / 64 * 64) {
    scratch = lines(scratch_stride * size_t(threads));
  }

  void multiply(const Weight& weight, const ConstMatrix2& x, const Matrix2& y, const Epilogue& epilogue, Member& member,
                const std::vector<int64_t>& cuts) {
    const Kernels& k = *weight.kernels;
    const MatrixShape& shape = weight.matrix.shape;
    const int64_t rows = int64_t(x.shape(0));
    void* ready = k.prepared_bytes(shape, rows) ? prepared.get() : nullptr;
    int64_t begin, end;
    if (ready) {
      member.share(rows, begin, end);
      k.prepare(shape, x.data(), x.stride(0), rows, ready, begin, end);
      member.barrier();
    }
    const auto range = [&](int64_t from, int64_t to) {
      if (from < to)
        k.linear(weight.matrix, x.data(), x.stride(0), ready, rows, y.data(), y.stride(0), epilogue, from, to,
                 scratch.get() + scratch_stride * size_t(member.index));
    };
    if (cuts.empty()) {
      member.share(k.matrix_units(shape), begin, end);
      range(begin, end);
    } else {
      for (size_t i = size_t(member.index); i + 1 < cuts.size(); i += size_t(member.size)) range(cuts[i], cuts[i + 1]);
    }
    member.barrier();
  }
};

int64_t outputs(const Weight& weight) {
  const MatrixShape& shape = weight.matrix.shape;
  return shape.paired ? shape.out / 2 : shape.out;
}

void check_product(const Weight& weight, const ConstMatrix2& x, const Matrix2& y, int threads) {
  check(x, x.shape(0), size_t(weight.matrix.shape.in), "x");
  check(y, x.shape(0), size_t(outputs(weight)), "y");
  require(x.shape(0) < 2 || y.stride(0) >= outputs(weight), "y must have rows that do not overlap, as they are written to");
  checked_threads(threads);
}

void linear(const Weight& weight, ConstMatrix2 x, Matrix2 y, std::optional<ConstFloats> bias,
            std::optional<ConstMatrix2> residual, int activation, int threads, std::vector<int64_t> cuts) {
  check_product(weight, x, y, threads);
  Epilogue epilogue;
  epilogue.activation = activation_of(activation);
  if (bias) {
    require(bias->size() == size_t(weight.matrix.shape.out), "bias must have one number an output, given " +
                                                                 text(bias->size()));
    epilogue.bias = bias->data();
  }
  if (residual) {
    check(*residual, x.shape(0), size_t(outputs(weight)), "residual");
    epilogue.residual = residual->data();
    epilogue.residual_stride = residual->stride(0);
  }
  const int64_t units = weight.kernels->matrix_units(weight.matrix.shape);
  for (size_t i = 0; i < cuts.size(); ++i)
    require(cuts[i] >= 0 && cuts[i] <= units && (i == 0 || cuts[i - 1] <= cuts[i]),
            "cuts must rise from 0 to the matrix's " + std::to_string(units) + " units");
  if (x.shape(0) == 0) return;
  nb::gil_scoped_release free;
  Product product(weight, int64_t(x.shape(0)), threads);
  Team team(threads);
  team.run([&](Member& member) { product.multiply(weight, x, y, epilogue, member, cuts); });
}

void linear_all(std::vector<const Weight*> weights, ConstMatrix2 x, Matrix2 y, int threads) {
  for (const Weight* weight : weights) check_product(*weight, x, y, threads);
  if (weights.empty() || x.shape(0) == 0) return;
  nb::gil_scoped_release free;
  std::vector<std::unique_ptr<Product>> products;
  for (const Weight* weight : weights)
    products.push_back(std::make_unique<Product>(*weight, int64_t(x.shape(0)), threads));
  Team team(threads);
  team.run([&](Member& member) {
    for (size_t i = 0; i < weights.size(); ++i) products[i]->multiply(*weights[i], x, y, Epilogue{}, member, {});
  });
}

}  // namespace

void bind_linear(nb::module_& module) {
  module.def("linear", &linear, nb::arg("weight"), nb::arg("x"), nb::arg("y").noconvert(), nb::arg("bias") = nb::none(),
             nb::arg("residual") = nb::none(), nb::arg("activation") = 0, nb::arg("threads") = 1,
             nb::arg("cuts") = std::vector<int64_t>(),
             "y [rows, out] = x [rows, in] W^T + bias + residual; of paired matrices [rows, out / 2] = act(gate) * partner + "
             "residual. Activations: 0 silu, 1 gelu, 2 gelu_tanh, 3 relu. cuts: bounds of the ranges of units, in rising order, "
             "that threads take in turn; none: an equal share each.");
  module.def(
      "emulated_paths", [] { return std::vector<std::string>{"emulated_avx512", "emulated_avx512_bf16", "emulated_amx"}; },
      "Paths for tests, the code of others over plain C++: matrices can be packed and multiplied, and attention computed where\n"
      "pairs of bfloat16 are multiplied in it.");
  module.def("matrix_units", [](const Weight& weight) { return weight.kernels->matrix_units(weight.matrix.shape); },
             nb::arg("weight"), "Pieces in which a product is shared out over threads.");
  module.def("linear_all", &linear_all, nb::arg("weights"), nb::arg("x"), nb::arg("y").noconvert(), nb::arg("threads") = 1,
             "Products with all these matrices, one after the other into the same y, by one team: for measurements.");
}

}  // namespace armillary
