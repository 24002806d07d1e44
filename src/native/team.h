// A team of threads that goes through one body together.
//
// A step of a model is some hundred small operations. Forking and joining threads for each costs more than many of them
// take, so a team is forked once for a whole step, every member runs the same code, takes its own share of each operation, and
// waits for the others at `barrier`.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace armillary {

struct TeamState;

// One member's view of its team while a body runs.
class Member {
 public:
  Member(int index, int size, TeamState* team) : index(index), size(size), team_(team) {}

  const int index;
  const int size;

  // Waits until every member has come here as often. Writes before it are seen by all after it. Throws, for nobody but `run`
  // to catch, where another member has left the body by an exception and will not come.
  void barrier();

  // Seconds that this member has waited at barriers, those aside that were over at once.
  double waited() const { return waited_; }

  // This member's share of `count` equal items, as [begin, end): contiguous, and a function of count, index and size only.
  void share(int64_t count, int64_t& begin, int64_t& end) const {
    begin = count * index / size;
    end = count * (index + 1) / size;
  }

 private:
  TeamState* team_;
  double waited_ = 0;
};

// `size` threads, of which the caller of `run` is one. The others spin for a short time between runs and then sleep. On Linux, where
// there is a processor for each, a member that waits for one on its own processor moves that to another; which processors threads
// may use is as before a moment later, though what a container is given afterwards is not for those that were moved.
// A team runs one body at a time; two callers of the same team wait for each other.
class Team {
 public:
  // Throws std::system_error where the system gives no more threads.
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs body on the first `members` of the team, the caller first, and returns when all of them have returned: how many seconds
  // the caller waited for others. If members throw, one of their exceptions is thrown again here, once all have ended. Throws
  // std::logic_error from within a body of the same team, which would wait for itself, and in a process forked from the team's
  // own, where the other members do not exist.
  double run(int members, const std::function<void(Member&)>& body);
  double run(const std::function<void(Member&)>& body) { return run(size_, body); }

 private:
  const int size_;
  std::unique_ptr<TeamState> state_;
};

}  // namespace armillary
