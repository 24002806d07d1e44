// How many members of a team a step should run on.
//
// More members are quicker while every one of them has a processor. Where clients, an event loop or other programs take
// one away, all the others wait at the next barrier for as long as the system lets those run, some milliseconds each time: a step
// on two members then takes up to ten times as long as on one. Who waits for long on all of them tries fewer.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "team.h"

namespace armillary {

// Remembers how long steps of about the same work took on how many members. No result of a step depends on its choices.
class TeamSize {
 public:
  // Without `adapt` all members are chosen every time.
  TeamSize(int most, bool adapt);

  // The number of members, from 1 to `most`, for about so many multiply-adds: all, for as long as they wait little for each
  // other there. Else the number that has lately been quickest, and now and then another one, to see whether that is still so.
  int choose(double work);

  // Runs the body on the members that `choose` gave for so much work, and learns from it.
  void run(Team& team, double work, int members, const std::function<void(Member&)>& body);

  // That a step of so much work took so long on the members that `choose` gave for it.
  //
  // lost: the share of its time in which the caller of the step waited for other members, or for a processor.
  void learn(double work, int members, double seconds, double lost);

 private:
  struct Tried {
    double pace = 0;    // seconds per multiply-add, lately
    int64_t times = 0;
  };
  struct Memory {         // of steps of about one size
    std::vector<Tried> tried;  // by candidate
    double lost = 0;      // share of a step on all members, lately
    int64_t since = 0;    // steps since another candidate was tried
    int64_t patience = 0; // steps before the next is
    size_t next = 0;      // the candidate to try then
  };
  Memory& of(double work);
  size_t quickest(const Memory& memory) const;

  std::vector<int> candidates_;  // all members first
  std::array<Memory, 64> memory_;  // by octave of work
};

}  // namespace armillary
