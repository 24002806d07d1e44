#include <memory>
#include <mutex>

#include "arena.h"
#include "bind.h"
#include "team_size.h"

namespace armillary {
namespace {

using Scores = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using NumbersOut = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Draws = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using LogprobsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using TopsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using IdsOut = nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Fewer scores than this are looked through sooner by one thread than a second one is woken.
constexpr int64_t kWorthTwo = 262144;

// The sampler's kernels with threads and memory. Rows are shared out whole, so the number of threads changes no result. One
// call runs at a time: a second caller waits.
class Sampler {
 public:
  Sampler(const std::string& path, std::shared_ptr<Team> team)
      : k_(kernels_named(path)), team_(std::move(team)), size_(team_->size(), true) {
    memory_ = std::make_unique<Buffer[]>(size_t(team_->size()));
  }

  void choose(Scores scores, Numbers rows, Draws draws, NumbersOut tokens) {
    const int64_t count = check(scores, rows);
    require(draws.shape(0) == size_t(count) && draws.shape(1) == 5, "draws must have five numbers a row");
    require(tokens.size() == size_t(count), "tokens must be as many as rows");
    std::vector<Draw> wanted;
    wanted.reserve(size_t(count));
    for (int64_t i = 0; i < count; ++i) {
      const double* d = draws.data() + 5 * i;
      require(d[0] >= 0 && d[0] < 1e30, "temperature must be at least 0");
      require(d[1] >= 0 && d[1] < 1e18, "top_k must be at least 0");
      require(d[2] > 0 && d[2] <= 1, "top_p must be above 0 and at most 1");
      require(d[3] >= 0 && d[3] <= 1, "min_p must be from 0 to 1");
      require(d[4] >= 0 && d[4] < 1, "a uniform number must be from 0 to below 1");
      wanted.push_back({float(d[0]), int64_t(d[1]), d[2], d[3], d[4]});
    }
    nb::gil_scoped_release released;
    share(scores, count, [&](int64_t begin, int64_t end, uint8_t* scratch) {
      k_.sample(scores.data(), scores.stride(0), int64_t(scores.shape(1)), rows.data(), wanted.data(), tokens.data(), begin,
                end, scratch);
    });
  }

  void logprobs(Scores scores, Numbers rows, Numbers tokens, LogprobsOut chosen, TopsOut values, IdsOut ids) {
    const int64_t count = check(scores, rows);
    const int64_t width = int64_t(scores.shape(1)), tops = int64_t(values.shape(1));
    require(tokens.size() == size_t(count) && chosen.size() == size_t(count), "tokens and logprobs must be as many as rows");
    require(values.shape(0) == size_t(count) && ids.shape(0) == size_t(count) && ids.shape(1) == size_t(tops),
            "values and ids must have a row for each row");
    require(tops <= width, "values must be at most " + std::to_string(width) + " wide, given " + std::to_string(tops));
    require_below(tokens.data(), count, width, "tokens");
    nb::gil_scoped_release released;
    share(scores, count, [&](int64_t begin, int64_t end, uint8_t* scratch) {
      k_.logprobs(scores.data(), scores.stride(0), width, rows.data(), tokens.data(), tops, chosen.data(), values.data(),
                  ids.data(), begin, end, scratch);
    });
  }

 private:
  static int64_t check(const Scores& scores, const Numbers& rows) {
    const int64_t height = int64_t(scores.shape(0)), width = int64_t(scores.shape(1));
    require(width > 0 && width < (int64_t(1) << 31), "scores must have a column for each token, given none or too many");
    require(width == 1 || scores.stride(1) == 1, "scores must have contiguous rows");
    require_below(rows.data(), int64_t(rows.size()), height, "rows");
    return int64_t(rows.size());
  }

  template <typename Body>
  void share(const Scores& scores, int64_t count, Body&& body) {
    std::lock_guard<std::mutex> one(calls_);
    const int64_t width = int64_t(scores.shape(1));
    const bool alone = count < 2 || count * width < kWorthTwo;
    const int members = alone ? 1 : size_.choose(double(count * width));
    for (int i = 0; i < members; ++i) memory_[size_t(i)].take(k_.sample_scratch_bytes(width));
    if (alone) {
      body(0, count, memory_[0].take(0));
      return;
    }
    size_.run(*team_, double(count * width), members, [&](Member& member) {
      int64_t begin = 0, end = 0;
      member.share(count, begin, end);
      body(begin, end, memory_[size_t(member.index)].take(0));
    });
  }

  const Kernels& k_;
  const std::shared_ptr<Team> team_;
  TeamSize size_;
  std::unique_ptr<Buffer[]> memory_;
  std::mutex calls_;
};

}  // namespace

void bind_sampler(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Team>(module, "Team", "Threads that wait for work.")
      .def(
          "__init__",
          [](Team* self, int size) {
            new (self) Team(checked_threads(size));
          },
          "size"_a)
      .def_prop_ro("size", &Team::size);
  nb::class_<Sampler>(module, "Sampler", "Chooses tokens from rows of scores.")
      .def(nb::init<const std::string&, std::shared_ptr<Team>>(), "path"_a, "team"_a)
      .def("choose", &Sampler::choose, "scores"_a, "rows"_a, "draws"_a, "tokens"_a.noconvert(),
           "Tokens for rows of scores float32 [*, vocab]. draws float64 [rows, 5]: temperature, top_k, top_p, min_p and a "
           "number from 0 to below 1. -1 where all scores are -infinity, -2 where one is NaN or +infinity.")
      .def("logprobs", &Sampler::logprobs, "scores"_a, "rows"_a, "tokens"_a, "chosen"_a.noconvert(), "values"_a.noconvert(),
           "ids"_a.noconvert(), "Log-softmax of a token of each row, and of the row's most probable tokens.");
}

}  // namespace armillary
