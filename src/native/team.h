// A team of threads that goes through one body together.
//
// A step of a model is some hundred small operations. Forking and joining threads for each costs more than many of them
// take, so a team is forked once for a whole step, every member runs the same code, takes its own share of each operation, and
// waits for the others at `barrier`.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace armillary {

// One member's view of its team while a body runs.
class Member {
 public:
  Member(int index, int size, std::atomic<int>* arrived, std::atomic<int>* round)
      : index(index), size(size), arrived_(arrived), round_(round) {}

  const int index;
  const int size;

  // Waits until every member has come here as often. Writes before it are seen by all after it.
  void barrier();

  // This member's share of `count` equal items, as [begin, end): contiguous, and a function of count, index and size only.
  void share(int64_t count, int64_t& begin, int64_t& end) const {
    begin = count * index / size;
    end = count * (index + 1) / size;
  }

 private:
  std::atomic<int>* arrived_;
  std::atomic<int>* round_;
};

// `size` threads, of which the caller of `run` is one. The others spin for a short time between runs and then sleep.
// A team runs one body at a time; two callers of the same team wait for each other.
class Team {
 public:
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs body on every member and returns when all have returned. An exception of any member is thrown again here, once
  // all have ended; a body that can throw must do so before its first barrier, on every member alike.
  void run(const std::function<void(Member&)>& body);

 private:
  void work(int index);
  bool next(int64_t seen, int64_t& generation);

  const int size_;
  const std::function<void(Member&)>* body_ = nullptr;
  std::atomic<int64_t> generation_{0};
  std::atomic<int> running_{0};
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
  std::atomic<bool> closing_{false};
  std::mutex mutex_;
  std::condition_variable awake_;
  std::mutex runs_;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

}  // namespace armillary
