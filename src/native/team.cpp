#include "team.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace armillary {
namespace {

// Waiting costs a processor that others may need, so it is kept to about what a kernel call of a small model takes; past
// that the waiter offers its time slice, which on a machine with fewer free cores than threads is what lets the others arrive.
constexpr int kSpins = 4000;
constexpr int kYields = 200;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Member::barrier() {
  if (size == 1) return;
  const int round = round_->load(std::memory_order_relaxed);
  if (arrived_->fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    arrived_->store(0, std::memory_order_relaxed);
    round_->store(round + 1, std::memory_order_release);
    return;
  }
  for (int spin = 0; round_->load(std::memory_order_acquire) == round; ++spin) {
    if (spin < kSpins)
      relax();
    else
      std::this_thread::yield();
  }
}

Team::Team(int size) : size_(size < 1 ? 1 : size) {
  for (int index = 1; index < size_; ++index) threads_.emplace_back(&Team::work, this, index);
}

Team::~Team() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_.store(true);
  }
  awake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Team::run(const std::function<void(Member&)>& body) {
  std::lock_guard<std::mutex> one(runs_);
  error_ = nullptr;
  body_ = &body;
  arrived_.store(0);
  running_.store(size_ - 1);
  if (size_ > 1) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    awake_.notify_all();
  }
  Member self(0, size_, &arrived_, &round_);
  std::exception_ptr mine;
  try {
    body(self);
  } catch (...) {
    mine = std::current_exception();
  }
  for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins)
      relax();
    else
      std::this_thread::yield();
  }
  body_ = nullptr;
  if (!mine) mine = error_;
  if (mine) std::rethrow_exception(mine);
}

bool Team::next(int64_t seen, int64_t& generation) {
  for (int spin = 0; spin < kSpins + kYields; ++spin) {
    generation = generation_.load(std::memory_order_acquire);
    if (generation != seen) return true;
    if (closing_.load(std::memory_order_relaxed)) return false;
    if (spin < kSpins)
      relax();
    else
      std::this_thread::yield();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  awake_.wait(lock, [&] { return closing_.load() || generation_.load() != seen; });
  generation = generation_.load();
  return generation != seen;
}

void Team::work(int index) {
  int64_t seen = 0;
  int64_t generation = 0;
  while (next(seen, generation)) {
    seen = generation;
    Member self(index, size_, &arrived_, &round_);
    try {
      (*body_)(self);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace armillary
