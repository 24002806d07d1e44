// Exercises src/native/team.cpp and team_size.cpp: built and run by test_sanitizers.py, with the thread sanitiser too. Ends with a line of what
// was wrong, and a status other than 0, at the first thing that is not as it must be.
#include "team.h"
#include "team_size.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace armillary;

namespace {

void must(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  std::fflush(stdout);
  std::_Exit(1);
}

// Plain memory, written before each barrier and read by all others after it.
void check_barriers(int size, int rounds) {
  Team team(size);
  must(team.size() == size, "a team has as many members as asked for");
  std::vector<int> slots(size_t(size), 0), seen(size_t(size), 0);
  for (int run = 0; run < 3; ++run)
    team.run([&](Member& m) {
      for (int round = 1; round <= rounds; ++round) {
        slots[size_t(m.index)] = run * rounds + round;
        m.barrier();
        for (int value : slots) seen[size_t(m.index)] += value == run * rounds + round;
        m.barrier();
      }
    });
  for (int count : seen) must(count == 3 * rounds * size, "writes before a barrier are seen after it");
}

void check_shares() {
  for (int64_t count : {0, 1, 5, 64, 1001})
    for (int size : {1, 2, 3, 7}) {
      int64_t last = 0;
      for (int index = 0; index < size; ++index) {
        int64_t begin = -1, end = -1;
        Member(index, size, nullptr).share(count, begin, end);
        must(begin == last && end >= begin, "shares follow each other");
        last = end;
      }
      must(last == count, "shares cover everything");
    }
}

// Many short runs, and some after the members have fallen asleep.
void check_runs(int size) {
  Team team(size);
  std::vector<int64_t> counts(size_t(size), 0);
  for (int run = 0; run < 2000; ++run) {
    if (run % 500 == 499) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    team.run([&](Member& m) { ++counts[size_t(m.index)]; });
  }
  for (int64_t count : counts) must(count == 2000, "every member takes part in every run");
}

// Runs of ever other parts of a team: who sits out takes no part, and is there again for the next.
void check_parts(int size) {
  Team team(size);
  std::vector<int64_t> counts(size_t(size), 0), wanted(size_t(size), 0);
  for (int run = 0; run < 3000; ++run) {
    const int members = 1 + (run * 7 + run / 5) % size;
    for (int index = 0; index < members; ++index) ++wanted[size_t(index)];
    if (run % 700 == 699) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    team.run(members, [&](Member& m) {
      must(m.size == members, "members know how many take part");
      ++counts[size_t(m.index)];
      m.barrier();
    });
  }
  must(counts == wanted, "so many members take part as were asked for");
  for (int members : {0, size + 1}) {
    bool refused = false;
    try {
      team.run(members, [](Member&) {});
    } catch (const std::logic_error&) {
      refused = true;
    }
    must(refused, "no members, and more than there are, are refused");
  }
}

// All members while they wait little for each other; else what is quickest is found, left when that changes, and others are
// seldom tried.
void check_sizes() {
  must(TeamSize(4, false).choose(1e6) == 4 && TeamSize(1, true).choose(1e6) == 1, "without a choice there is none");
  TeamSize size(8, true);
  auto run = [&](double work, int best, int steps, double lost) {
    int chosen = 0;
    for (int step = 0; step < steps; ++step) {
      const int members = size.choose(work);
      chosen += members == best;
      size.learn(work, members, 1e-9 * work * (members == best ? 1.0 : 3.0 + 0.1 * members), members == 8 ? lost : 0.0);
    }
    return chosen;
  };
  must(run(1e3, 8, 1000, 0.1) == 1000, "where little is lost, nothing else is tried");
  run(1e6, 8, 100, 0.4);
  must(run(1e6, 8, 1000, 0.4) > 980, "what is quickest is chosen, and others seldom tried");
  run(1e9, 1, 100, 0.7);
  must(run(1e9, 1, 1000, 0.7) > 980 && run(1e6, 8, 1000, 0.4) > 980, "steps of other work are remembered apart");
  run(1e6, 1, 1000, 0.7);
  must(run(1e6, 1, 1000, 0.7) > 980, "what becomes quickest is found");
  run(1e6, 7, 2000, 0.7);
  must(run(1e6, 7, 1000, 0.7) > 980, "also where it has not been for long");
  run(1e6, 8, 2000, 0.1);
  must(run(1e6, 8, 1000, 0.1) == 1000, "and all of them are gone back to, for good, once that is quickest and little is lost");
}

// What the caller of a run waits is told: nothing of note alone, and as long as another member takes longer.
void check_waiting() {
  Team team(2);
  auto slow = [&](int slow_one) {
    return team.run([&](Member& m) {
      m.barrier();
      if (m.index == slow_one) std::this_thread::sleep_for(std::chrono::milliseconds(30));
      m.barrier();
    });
  };
  must(slow(1) > 0.02, "a caller that waits at a barrier says so");
  must(team.run([](Member& m) {
    if (m.index == 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
  }) > 0.02, "and where it waits for the end");
  must(team.run(1, [](Member& m) { m.barrier(); }) < 0.02, "alone there is nobody to wait for");
}

#if defined(__linux__)
// Two members that find themselves on one processor are on two a barrier later, and may use the same ones as before.
void check_places() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  constexpr int kTries = 15, kBarriers = 400;
  Team team(2);
  pid_t other = 0;
  std::vector<int> longest;
  for (int turn = 0; turn < kTries; ++turn) {
    team.run([&](Member& m) {
      if (m.index == 1) other = pid_t(syscall(SYS_gettid));
    });
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    if (sched_setaffinity(other, sizeof one, &one) != 0) return;  // not everywhere may threads be moved
    must(sched_setaffinity(other, sizeof allowed, &allowed) == 0, "a thread may go where it might before");
    int places[2][kBarriers] = {};
    team.run([&](Member& m) {
      for (int barrier = 0; barrier < kBarriers; ++barrier) {
        places[m.index][barrier] = sched_getcpu();
        m.barrier();
      }
    });
    int most = 0, together = 0;
    for (int barrier = 0; barrier < kBarriers; ++barrier) {
      together = places[0][barrier] == places[1][barrier] ? together + 1 : 0;
      most = std::max(most, together);
    }
    longest.push_back(most);
  }
  std::sort(longest.begin(), longest.end());
  must(longest[kTries / 2] <= 3, "members do not stay on one processor");
}

// However many are moved by however many at once, all may use the same processors as before.
void check_allowed(int size) {
  cpu_set_t allowed, after;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  Team team(size);
  std::vector<pid_t> threads(size_t(size), 0);
  for (int run = 0; run < 300; ++run) {
    if (run % 20 == 19) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    team.run([&](Member& m) {
      threads[size_t(m.index)] = pid_t(syscall(SYS_gettid));
      for (int barrier = 0; barrier < 20; ++barrier) m.barrier();
    });
    for (pid_t thread : threads) {
      CPU_ZERO(&after);
      must(sched_getaffinity(thread, sizeof after, &after) == 0 && CPU_EQUAL(&after, &allowed),
           "members may run where they might before");
    }
  }
}
#endif

// A member that throws ends the run for all, wherever the others are; the team works on afterwards.
void check_exceptions(int size) {
  Team team(size);
  for (int thrower = 0; thrower < size; ++thrower)
    for (int before = 0; before < 3; ++before) {
      std::string caught;
      try {
        team.run([&](Member& m) {
          for (int barrier = 0; barrier < 4; ++barrier) {
            if (m.index == thrower && barrier == before) throw std::runtime_error("as planned");
            m.barrier();
          }
        });
      } catch (const std::runtime_error& error) {
        caught = error.what();
      }
      must(caught == "as planned", "an exception of a member comes out of run");
      std::vector<int> passed(size_t(size), 0);
      team.run([&](Member& m) {
        m.barrier();
        passed[size_t(m.index)] = 1;
        m.barrier();
        for (int value : passed) must(value == 1, "barriers work after an exception");
      });
    }
  bool all = false;
  try {
    team.run([](Member&) { throw std::runtime_error("all"); });
  } catch (const std::runtime_error&) {
    all = true;
  }
  must(all, "an exception of all members comes out once");
}

void check_nesting() {
  Team team(2), other(2);
  bool refused = false;
  try {
    team.run([&](Member& m) {
      if (m.index == 0) other.run([](Member& inner) { inner.barrier(); });
      m.barrier();
      team.run([](Member&) {});
    });
  } catch (const std::logic_error&) {
    refused = true;
  }
  must(refused, "a team within its own body is refused, another team is not");
}

// Two teams in two threads, and two threads that share one team.
void check_callers() {
  Team shared(2);
  std::vector<int64_t> totals(2, 0);
  int64_t common = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller)
    callers.emplace_back([&, caller] {
      Team own(2);
      std::vector<int64_t> parts(2, 0);
      for (int run = 0; run < 300; ++run) {
        own.run([&](Member& m) {
          parts[size_t(m.index)] += 1;
          m.barrier();
          if (m.index == 0) totals[size_t(caller)] = parts[0] + parts[1];
        });
        shared.run([&](Member& m) {
          m.barrier();
          if (m.index == 1) ++common;
        });
      }
    });
  for (std::thread& thread : callers) thread.join();
  must(totals[0] == 600 && totals[1] == 600, "teams do not disturb each other");
  must(common == 600, "two callers of one team wait for each other");
}

void check_short_lives() {
  for (int round = 0; round < 50; ++round) {
    Team unused(3);
    Team used(3);
    used.run([](Member& m) { m.barrier(); });
  }
}

// A forked process has none of the other threads: it is told so, and can end and have a team of its own.
void check_fork() {
  auto team = std::make_unique<Team>(3);
  team->run([](Member& m) { m.barrier(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // asleep: the condition has waiters
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    int status = 1;
    try {
      team->run([](Member&) {});
    } catch (const std::logic_error&) {
      status = 0;
    }
    team.reset();
    Team own(2);
    own.run([](Member& m) { m.barrier(); });
    std::_Exit(status);
  }
  int status = 1;
  must(waitpid(child, &status, 0) == child && status == 0, "a forked process is refused the team, and ends");
  team->run([](Member& m) { m.barrier(); });
}

}  // namespace

int main() {
  check_shares();
  for (int size : {1, 2, 3, 9}) check_barriers(size, 200);
  for (int size : {1, 2, 5}) check_runs(size);
  for (int size : {1, 2, 3, 5}) check_parts(size);
  check_sizes();
  check_waiting();
#if defined(__linux__)
  check_places();
  for (int size : {2, 3, 4}) check_allowed(size);
#endif
  for (int size : {1, 2, 4}) check_exceptions(size);
  check_nesting();
  check_callers();
  check_short_lives();
#if !defined(__SANITIZE_THREAD__)
  check_fork();
#endif
  std::puts("well");
}
