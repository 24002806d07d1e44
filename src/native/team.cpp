#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#include <unistd.h>

namespace armillary {

constexpr int kUnknown = -1, kAsleep = -2;

// Where a member last said it was: on which processor, and which of the system's threads it is.
struct alignas(64) Place {
  std::atomic<int> processor{kUnknown};
  std::atomic<pid_t> thread{0};
  std::atomic<bool> moving{false};  // somebody is about to move it: one at a time, for between two calls it may not go everywhere
};

// What the members share. Each atomic that one member writes while another waits for a different one has its own cache line.
struct TeamState {
  alignas(64) std::atomic<uint32_t> arrived{0};  // members at the barrier
  alignas(64) std::atomic<uint32_t> round{0};    // barriers passed, over all runs
  std::atomic<bool> failed{false};               // a member has left the body by an exception; read where `round` is
  alignas(64) std::atomic<uint64_t> generation{0};  // bodies begun, times kMost, plus the members of the last one
  std::atomic<bool> closing{false};
  alignas(64) std::atomic<int> running{0};  // members besides the caller that have not ended

  const std::function<void(Member&)>* body = nullptr;
  std::exception_ptr error;
  std::mutex mutex;  // of `error`, and of what sleepers wait for
  std::condition_variable awake;
  std::mutex runs;
  std::vector<std::thread> threads;
  std::vector<Place> places;  // by member
  int spins = 0;
  std::atomic<bool> movable{true};  // the system lets members be moved
  const pid_t process = getpid();
};

namespace {

// Waiting costs a processor that others may need, so it is kept to about what a kernel call of a small model takes; past
// that the waiter offers its time slice, which on a machine with fewer free cores than threads is what lets the others arrive.
constexpr int kSpins = 4000;
constexpr int kYields = 200;

constexpr uint64_t kMost = 1u << 16;  // members that a generation can tell of

struct Abandoned {};  // thrown at a barrier that will never be complete

thread_local const TeamState* inside = nullptr;  // whose body this thread runs

// Threads of a process that may run at once, as far as the system tells: fewer than the machine's where it was given a part.
int usable_processors() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : int(count);
}

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline void wait_a_little(int turn, int spins) {
  if (turn < spins)
    relax();
  else
    std::this_thread::yield();
}

#if defined(__linux__)
int processor() { return sched_getcpu(); }
pid_t this_thread() { return pid_t(syscall(SYS_gettid)); }
#else
int processor() { return kUnknown; }
pid_t this_thread() { return 0; }
#endif

void tell_place(Place& place) {
  const int now = processor();
  if (place.processor.load(std::memory_order_relaxed) != now) place.processor.store(now, std::memory_order_release);
}

// Moves a member, if it is on this processor, to one where no member is, or at least to another. What processors it may use is
// as before then. False where the system does not allow it.
bool move_off(TeamState& team, pid_t thread, int size, int here) {
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(thread, sizeof allowed, &allowed) != 0) return false;
  cpu_set_t others = allowed;
  for (int index = 0; index < size; ++index) {
    const int taken = team.places[size_t(index)].processor.load(std::memory_order_relaxed);
    if (taken >= 0) CPU_CLR(taken, &others);
  }
  if (CPU_COUNT(&others) == 0) others = allowed;
  CPU_CLR(here, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(thread, sizeof others, &others) != 0) return false;
  return sched_setaffinity(thread, sizeof allowed, &allowed) == 0;
#else
  return false;
#endif
}

// Moves the members that this one waits for off its processor. The system wakes members where others are, and leaves them there
// for milliseconds, even beside an idle processor: whoever waits spins at every barrier for as long as it may, or yields in vain,
// before the one that it waits for has its turn.
void make_way(TeamState& team, int index, int size) {
  const int here = processor();
  if (here < 0 || !team.movable.load(std::memory_order_relaxed)) return;
  for (int other = 0; other < size; ++other) {
    Place& place = team.places[size_t(other)];
    const int told = place.processor.load(std::memory_order_acquire);
    if (other == index || (told != here && told != kAsleep) || place.moving.exchange(true, std::memory_order_acquire)) continue;
    if (!move_off(team, place.thread.load(std::memory_order_relaxed), size, here))
      team.movable.store(false, std::memory_order_relaxed);
    place.processor.store(kUnknown, std::memory_order_relaxed);
    place.moving.store(false, std::memory_order_release);
  }
}

// Waits while `busy` says so, and returns for how many seconds: none where it soon does not, for then reading the clock would
// take longer.
template <class Busy>
double wait_while(TeamState& team, int index, int size, const Busy& busy) {
  constexpr int kSoon = 64;  // turns of spinning, about a microsecond
  int turn = 0;
  for (; turn < std::min(kSoon, team.spins); ++turn) {
    if (!busy()) return 0;
    relax();
  }
  const auto began = std::chrono::steady_clock::now();
  for (; busy(); turn += turn < team.spins) {
    if (turn < team.spins && turn % kSoon == 0) make_way(team, index, size);
    wait_a_little(turn, team.spins);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

// Runs the body as one member, and keeps the first exception of all. Returns how many seconds it waited at barriers.
double take_part(TeamState& team, int index, int size) {
  Member self(index, size, &team);
  const TeamState* outer = inside;
  inside = &team;
  tell_place(team.places[size_t(index)]);
  try {
    (*team.body)(self);
  } catch (const Abandoned&) {
    // Whoever failed has said why.
  } catch (...) {
    std::lock_guard<std::mutex> lock(team.mutex);
    if (!team.error) team.error = std::current_exception();
    team.failed.store(true, std::memory_order_relaxed);
  }
  inside = outer;
  return self.waited();
}

// The next body's generation, or `seen` once the team closes.
uint64_t next(TeamState& team, int index, uint64_t seen) {
  for (int turn = 0; turn < team.spins + kYields; ++turn) {
    const uint64_t generation = team.generation.load(std::memory_order_acquire);
    if (generation != seen || team.closing.load(std::memory_order_relaxed)) return generation;
    wait_a_little(turn, team.spins);
  }
  team.places[size_t(index)].processor.store(kAsleep, std::memory_order_release);
  std::unique_lock<std::mutex> lock(team.mutex);
  team.awake.wait(lock, [&] { return team.closing.load() || team.generation.load() != seen; });
  return team.generation.load();
}

void work(TeamState& team, int index) {
  team.places[size_t(index)].thread.store(this_thread(), std::memory_order_relaxed);
  uint64_t seen = 0;
  for (uint64_t found = next(team, index, seen); found != seen; found = next(team, index, seen)) {
    seen = found;
    // Told with the generation: who comes late to a body that goes on without it must not take the next one's for its own.
    const int members = int(found % kMost);
    if (index >= members) continue;
    take_part(team, index, members);
    team.running.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void close(TeamState& team) {
  {
    std::lock_guard<std::mutex> lock(team.mutex);
    team.closing.store(true);
  }
  team.awake.notify_all();
  for (std::thread& thread : team.threads) thread.join();
}

}  // namespace

void Member::barrier() {
  if (size == 1) return;
  TeamState& team = *team_;
  tell_place(team.places[size_t(index)]);
  // Nobody moves the round on before this member has arrived, so this is the round that it arrives in.
  const uint32_t round = team.round.load(std::memory_order_relaxed);
  if (team.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(size)) {
    team.arrived.store(0, std::memory_order_relaxed);
    team.round.store(round + 1, std::memory_order_release);
    return;
  }
  const auto others_come = [&] {
    if (team.round.load(std::memory_order_acquire) != round) return false;
    if (team.failed.load(std::memory_order_relaxed)) throw Abandoned();
    return true;
  };
  waited_ += wait_while(team, index, size, others_come);
}

Team::Team(int size) : size_(size < 1 ? 1 : size), state_(std::make_unique<TeamState>()) {
  TeamState& team = *state_;
  // With fewer processors than members the one waited for may need this one: no spinning then.
  team.spins = size_ <= usable_processors() ? kSpins : 0;
  team.places = std::vector<Place>(size_t(size_));
  try {
    for (int index = 1; index < size_; ++index)
      team.threads.emplace_back([&team, index] { work(team, index); });
  } catch (...) {
    close(team);
    throw;
  }
}

Team::~Team() {
  if (size_ > 1 && state_->process != getpid()) {
    // In a forked process there are no threads to join, and no sleepers will ever leave `awake`: the memory stays.
    state_.release();
    return;
  }
  close(*state_);
}

double Team::run(int members, const std::function<void(Member&)>& body) {
  TeamState& team = *state_;
  if (inside == &team) throw std::logic_error("a team must not be run from within its own body");
  if (members < 1 || members > size_) throw std::logic_error("a body needs one member at least, and no more than the team has");
  if (size_ > 1 && team.process != getpid())
    throw std::logic_error("a team must be run in the process that made it, given a process forked from that");
  std::lock_guard<std::mutex> one(team.runs);
  team.error = nullptr;
  team.failed.store(false, std::memory_order_relaxed);
  team.body = &body;
  team.arrived.store(0, std::memory_order_relaxed);
  team.running.store(members - 1, std::memory_order_relaxed);
  if (members > 1) {
    // Callers change: nobody may take this one for the last.
    team.places[0].thread.store(this_thread(), std::memory_order_relaxed);
    team.places[0].processor.store(processor(), std::memory_order_release);
    {
      // Under the lock, so that no member falls asleep between its last look and this.
      std::lock_guard<std::mutex> lock(team.mutex);
      const uint64_t begun = team.generation.load(std::memory_order_relaxed) / kMost + 1;
      team.generation.store(begun * kMost + uint64_t(members), std::memory_order_release);
    }
    team.awake.notify_all();
  }
  double waited = take_part(team, 0, members);
  waited += wait_while(team, 0, members, [&] { return team.running.load(std::memory_order_acquire) != 0; });
  team.body = nullptr;
  if (team.error) std::rethrow_exception(team.error);
  return waited;
}

}  // namespace armillary
