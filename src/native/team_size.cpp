#include "team_size.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace armillary {

namespace {

// While less than this share of a step on all members is lost, fewer of them cannot be much quicker: they would have to do what
// the others did.
constexpr double kCalm = 0.25;
constexpr int64_t kFirst = 3;  // tries of each candidate before any is preferred
// Steps between tries of another candidate: more of them for as long as those come out worse, for each costs time.
constexpr int64_t kPatience = 16, kMostPatience = 128;
constexpr double kWorse = 1.1;    // a try that was so many times as slow was in vain
constexpr double kRecent = 0.1;   // weight of a step in what the quickest took lately
constexpr double kTry = 0.3;      // and of a try, because what is known of that candidate is old

// Seconds that this thread has had a processor.
double processor_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

}  // namespace

TeamSize::TeamSize(int most, bool adapt) {
  for (int count : {most, most - 1, most / 2, 1})
    if (count >= 1 && (adapt || candidates_.empty()) && std::find(candidates_.begin(), candidates_.end(), count) == candidates_.end())
      candidates_.push_back(count);
  for (Memory& memory : memory_) {
    memory.tried.resize(candidates_.size());
    memory.patience = kPatience;
  }
}

TeamSize::Memory& TeamSize::of(double work) {
  const int octave = std::ilogb(std::max(work, 1.0));
  return memory_[size_t(std::clamp(octave, 0, int(memory_.size()) - 1))];
}

size_t TeamSize::quickest(const Memory& memory) const {
  size_t best = 0;
  for (size_t i = 1; i < candidates_.size(); ++i)
    if (memory.tried[i].times >= kFirst && memory.tried[i].pace < memory.tried[best].pace) best = i;
  return best;
}

int TeamSize::choose(double work) {
  Memory& memory = of(work);
  const size_t best = quickest(memory);
  if (candidates_.size() == 1 || (best == 0 && memory.lost < kCalm)) return candidates_[best];
  for (size_t i = 0; i < candidates_.size(); ++i)
    if (memory.tried[i].times < kFirst) return candidates_[i];
  if (++memory.since <= memory.patience) return candidates_[best];
  memory.since = 0;
  if (memory.next == best) memory.next = (memory.next + 1) % candidates_.size();
  return candidates_[memory.next];
}

void TeamSize::run(Team& team, double work, int members, const std::function<void(Member&)>& body) {
  if (candidates_.size() == 1) {
    team.run(members, body);
    return;
  }
  const auto began = std::chrono::steady_clock::now();
  const double before = processor_seconds();
  const double waited = team.run(members, body);
  const double processor = processor_seconds() - before;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  // Whoever waits long enough gives the processor away meanwhile: the two are not added up.
  learn(work, members, seconds, std::max(waited, seconds - processor) / std::max(seconds, 1e-9));
}

void TeamSize::learn(double work, int members, double seconds, double lost) {
  if (candidates_.size() == 1) return;
  Memory& memory = of(work);
  const size_t which = size_t(std::find(candidates_.begin(), candidates_.end(), members) - candidates_.begin());
  const double pace = seconds / std::max(work, 1.0);
  Tried& tried = memory.tried[which];
  const bool known = tried.times >= kFirst, best = known && which == quickest(memory);
  const double first = 1.0 / double(tried.times + 1);
  tried.pace += (!known ? first : best ? kRecent : kTry) * (pace - tried.pace);
  if (which == 0) memory.lost += std::max(first, kRecent) * (lost - memory.lost);
  ++tried.times;
  if (!known || best) return;
  const bool vain = pace > kWorse * memory.tried[quickest(memory)].pace;
  memory.patience = vain ? std::min(2 * memory.patience, kMostPatience) : kPatience;
  memory.next = (which + 1) % candidates_.size();
}

}  // namespace armillary
