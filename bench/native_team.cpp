// What it costs to fork and join threads, and to wait at a barrier, against OpenMP, which torch computes with.
//
//     g++ -O2 -std=c++17 -fopenmp -Isrc/native bench/native_team.cpp src/native/team.cpp -o team && ./team [threads]
//
// Nanoseconds, medians of 31 rounds of 2,000 in which all kinds alternate, with the first and third quartile. A busy machine
// shows in the quartiles. "after a pause" runs one body after others have slept; OpenMP's threads spin on or sleep, as its
// environment says.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "team.h"

namespace {

double nanoseconds(const std::function<void()>& work) {
  const auto started = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - started).count();
}

struct Kind {
  const char* name;
  int count;  // of what is measured, in one call of `work`
  std::function<void()> work;
  std::vector<double> times;
};

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  constexpr int kRounds = 31, kTimes = 2000;
  armillary::Team team(threads);
  omp_set_num_threads(threads);
  std::vector<int64_t> slots(size_t(threads) * 16);
  auto touch = [&](int index) { ++slots[size_t(index) * 16]; };
  auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(5)); };
  std::vector<Kind> kinds = {
      {"team: fork and join", kTimes,
       [&] {
         for (int i = 0; i < kTimes; ++i) team.run([&](armillary::Member& m) { touch(m.index); });
       },
       {}},
      {"team: barrier", kTimes,
       [&] {
         team.run([&](armillary::Member& m) {
           for (int i = 0; i < kTimes; ++i) {
             touch(m.index);
             m.barrier();
           }
         });
       },
       {}},
      {"OpenMP: fork and join", kTimes,
       [&] {
         for (int i = 0; i < kTimes; ++i) {
#pragma omp parallel
           touch(omp_get_thread_num());
         }
       },
       {}},
      {"OpenMP: barrier", kTimes,
       [&] {
#pragma omp parallel
         for (int i = 0; i < kTimes; ++i) {
           touch(omp_get_thread_num());
#pragma omp barrier
         }
       },
       {}},
      {"team: after a pause", 1, [&] { team.run([&](armillary::Member& m) { touch(m.index); }); }, {}},
      {"OpenMP: after a pause", 1,
       [&] {
#pragma omp parallel
         touch(omp_get_thread_num());
       },
       {}},
  };
  for (int round = 0; round < kRounds; ++round)
    for (Kind& kind : kinds) {
      if (kind.count == 1) pause();
      kind.times.push_back(nanoseconds(kind.work) / kind.count);
    }
  for (Kind& kind : kinds) {
    std::sort(kind.times.begin(), kind.times.end());
    std::printf("%-24s %9.0f  (%.0f to %.0f)\n", kind.name, kind.times[kRounds / 2], kind.times[kRounds / 4],
                kind.times[3 * kRounds / 4]);
  }
}
