#include "team_size.h"

#include <algorithm>
#include <cmath>

namespace armillary {

namespace {

constexpr int64_t kFirst = 3;  // tries of each candidate before any is preferred
// Steps between tries of another candidate: more of them for as long as those come out worse, for each costs time.
constexpr int64_t kPatience = 16, kMostPatience = 128;
constexpr double kWorse = 1.1;    // a try that was so many times as slow was in vain
constexpr double kRecent = 0.1;   // weight of a step in what the quickest took lately
constexpr double kTry = 0.3;      // and of a try, because what is known of that candidate is old

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
    if (memory.tried[i].pace < memory.tried[best].pace) best = i;
  return best;
}

int TeamSize::choose(double work) {
  if (candidates_.size() == 1) return candidates_[0];
  Memory& memory = of(work);
  for (size_t i = 0; i < candidates_.size(); ++i)
    if (memory.tried[i].times < kFirst) return candidates_[i];
  const size_t best = quickest(memory);
  if (++memory.since <= memory.patience) return candidates_[best];
  memory.since = 0;
  if (memory.next == best) memory.next = (memory.next + 1) % candidates_.size();
  return candidates_[memory.next];
}

void TeamSize::learn(double work, int members, double seconds) {
  if (candidates_.size() == 1) return;
  Memory& memory = of(work);
  const size_t which = size_t(std::find(candidates_.begin(), candidates_.end(), members) - candidates_.begin());
  const double pace = seconds / std::max(work, 1.0);
  Tried& tried = memory.tried[which];
  const bool known = tried.times >= kFirst, best = known && which == quickest(memory);
  const double weight = !known ? 1.0 / double(tried.times + 1) : best ? kRecent : kTry;
  tried.pace += weight * (pace - tried.pace);
  ++tried.times;
  if (!known || best) return;
  const bool vain = pace > kWorse * memory.tried[quickest(memory)].pace;
  memory.patience = vain ? std::min(2 * memory.patience, kMostPatience) : kPatience;
  memory.next = (which + 1) % candidates_.size();
}

}  // namespace armillary
