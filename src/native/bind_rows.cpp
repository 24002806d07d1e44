#include "bind.h"

namespace armillary {
namespace {

using Rows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using RowsOut = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Places = nb::ndarray<const int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using PlacesOut = nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using VectorOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using TokensOut = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require_size(size_t given, size_t wanted, const char* what) {
  require(given == wanted, std::string(what) + " must be " + std::to_string(wanted) + ", given " + std::to_string(given));
}

// Elements from row to row. What is written to must have its rows apart.
template <typename Array>
int64_t stride_of(const Array& rows, const char* what, bool written = false) {
  require(rows.shape(1) <= 1 || rows.stride(1) == 1, std::string(what) + " must have contiguous rows");
  require(!written || rows.shape(0) <= 1 || rows.stride(0) >= int64_t(rows.shape(1)),
          std::string(what) + " must have rows that do not overlap, as they are written to");
  return rows.stride(0);
}

void rms_norm(const std::string& path, Rows x, Vector weight, float eps, bool offset, RowsOut y) {
  require_size(weight.size(), x.shape(1), "the weight's size");
  require_size(y.shape(0), x.shape(0), "the result's number of rows");
  require_size(y.shape(1), x.shape(1), "the result's width");
  kernels_named(path).rms_norm(x.data(), stride_of(x, "x"), weight.data(), eps, offset, int64_t(x.shape(1)), y.data(),
                               stride_of(y, "y", true), 0, int64_t(x.shape(0)));
}

void add_norm(const std::string& path, RowsOut x, Rows y, Vector weight, float eps, bool offset) {
  require_size(weight.size(), x.shape(1), "the weight's size");
  require_size(y.shape(0), x.shape(0), "y's number of rows");
  require_size(y.shape(1), x.shape(1), "y's width");
  kernels_named(path).add_norm(x.data(), stride_of(x, "x", true), y.data(), stride_of(y, "y"), weight.data(), eps, offset,
                               int64_t(x.shape(1)), 0, int64_t(x.shape(0)));
}

void embed(const std::string& path, Table table, Tokens tokens, float scale, RowsOut y) {
  const Element element = element_of(table.dtype(), "the table");
  require_size(y.shape(0), tokens.size(), "the result's number of rows");
  require_size(y.shape(1), table.shape(1), "the result's width");
  require_below(tokens.data(), int64_t(tokens.size()), int64_t(table.shape(0)), "tokens");
  kernels_named(path).embed(table.data(), element, int64_t(table.shape(1)), tokens.data(), scale, y.data(),
                            stride_of(y, "y", true), 0, int64_t(tokens.size()));
}

void route(const std::string& path, Rows scores, bool renormalize, RowsOut weights, PlacesOut experts) {
  require_size(weights.shape(0), scores.shape(0), "the weights' number of rows");
  require_size(experts.shape(0), scores.shape(0), "the experts' number of rows");
  require_size(experts.shape(1), weights.shape(1), "the experts' width");
  const size_t count = weights.shape(1);
  require(count >= 1 && count <= scores.shape(1), "the number of experts a token takes must be from 1 to " +
                                                      std::to_string(scores.shape(1)) + ", given " + std::to_string(count));
  const int64_t stride = stride_of(weights, "weights");
  require(weights.shape(0) <= 1 || stride == int64_t(count), "weights must be contiguous");
  kernels_named(path).route(scores.data(), stride_of(scores, "scores"), int64_t(scores.shape(1)), int64_t(count),
                            renormalize, weights.data(), experts.data(), 0, int64_t(scores.shape(0)));
}

void combine(const std::string& path, Rows terms, Places places, Vector weights, std::optional<Rows> residual, RowsOut y) {
  require_size(weights.size(), places.size(), "the number of weights");
  require_size(y.shape(0), places.shape(0), "the result's number of rows");
  require_size(y.shape(1), terms.shape(1), "the result's width");
  require_below(places.data(), int64_t(places.size()), int64_t(terms.shape(0)), "places");
  if (residual) {
    require_size(residual->shape(0), y.shape(0), "the residual's number of rows");
    require_size(residual->shape(1), y.shape(1), "the residual's width");
  }
  kernels_named(path).combine(terms.data(), stride_of(terms, "terms"), places.data(), weights.data(),
                              int64_t(places.shape(1)), residual ? residual->data() : nullptr,
                              residual ? stride_of(*residual, "residual") : 0, int64_t(terms.shape(1)), y.data(),
                              stride_of(y, "y", true), 0, int64_t(y.shape(0)));
}

void softcap(const std::string& path, RowsOut scores, float cap) {
  require(cap > 0, "cap must be above 0, given " + std::to_string(cap));
  kernels_named(path).softcap(scores.data(), stride_of(scores, "scores", true), int64_t(scores.shape(1)), cap, 0,
                              int64_t(scores.shape(0)));
}

void argmax(const std::string& path, Rows scores, VectorOut peaks, TokensOut places) {
  require_size(peaks.size(), scores.shape(0), "the number of peaks");
  require_size(places.size(), scores.shape(0), "the number of places");
  require(scores.shape(1) > 0, "rows must have a largest value, given rows of no width");
  kernels_named(path).argmax(scores.data(), stride_of(scores, "scores"), int64_t(scores.shape(1)), peaks.data(),
                             places.data(), 0, int64_t(scores.shape(0)));
}

void log_sum_exp(const std::string& path, Rows scores, VectorOut out) {
  require_size(out.size(), scores.shape(0), "the result's size");
  kernels_named(path).log_sum_exp(scores.data(), stride_of(scores, "scores"), int64_t(scores.shape(1)), out.data(), 0,
                                  int64_t(scores.shape(0)));
}

}  // namespace

void bind_rows(nb::module_& module) {
  using namespace nb::literals;
  // What is written to must be the caller's own memory: a converted copy would be lost.
  module.def("rms_norm", rms_norm, "path"_a, "x"_a, "weight"_a, "eps"_a, "offset"_a, "y"_a.noconvert(),
             "y [rows, width] = RMS norm of x, times weight, or 1 + weight with offset.");
  module.def("add_norm", add_norm, "path"_a, "x"_a.noconvert(), "y"_a, "weight"_a, "eps"_a, "offset"_a,
             "x += RMS norm of y, row by row.");
  module.def("embed", embed, "path"_a, "table"_a, "tokens"_a, "scale"_a, "y"_a.noconvert(),
             "y = rows of a table of float32, bfloat16 or float16, times scale.");
  module.def("route", route, "path"_a, "scores"_a, "renormalize"_a, "weights"_a.noconvert(), "experts"_a.noconvert(),
             "Softmax weights and numbers of the best experts, as many as weights is wide.");
  module.def("combine", combine, "path"_a, "terms"_a, "places"_a, "weights"_a, "residual"_a.none(), "y"_a.noconvert(),
             "y = residual + sum of weights [rows * count] times the terms at places [rows, count].");
  module.def("softcap", softcap, "path"_a, "scores"_a.noconvert(), "cap"_a, "scores = cap * tanh(scores / cap).");
  module.def("argmax", argmax, "path"_a, "scores"_a, "peaks"_a.noconvert(), "places"_a.noconvert(),
             "Each row's largest value and its first place; NaN and the first NaN's place where there is one.");
  module.def("log_sum_exp", log_sum_exp, "path"_a, "scores"_a, "out"_a.noconvert(), "log(sum(exp(row))) of each row.");
}

}  // namespace armillary
