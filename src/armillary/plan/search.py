"""The search for the best design: bisection on the rate, inside successive halving over the designs.

What a design is worth is the highest rate at which its service level holds, for its price. Finding that for every
design would take most of the simulations for designs that nobody wants. So each design is first asked one question,
whether it beats the best one so far (with some slack, since short simulations are noisy); only one that does has its
own rate found by bisection, and raises the bar for those after it. Those within the slack go on to the next round, with
longer simulations, more seeds and less slack, until one round is left (successive halving: Jamieson and Talwalkar,
"Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016).

All designs meet the same arrivals, lengths and prefixes (common random numbers), so that what differs is the design.
A simulation that cannot be made (the model does not fit, a setting is refused) is not a missed service level: the
design is left out and its reason kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from armillary.errors import ArmillaryError, Code

D = TypeVar("D", bound=Hashable)

WIDEN = 1.6
"""Factor by which a bracket grows until it holds the knee."""
LARGEST, SMALLEST = 1e9, 1e-6
"""Rates beyond which a knee is not looked for."""


@dataclass(frozen=True, slots=True)
class Round:
    """How much is spent on each question.

    Attributes:
        length: of a simulation, as a share of the longest; handed to the trial.
        seeds: how many workloads each rate meets; the service level must hold for most of them.
        slack: share by which a design may be worse than the best and still go on.
        precision: relative width to which a knee is found.
    """

    length: float
    seeds: int
    slack: float
    precision: float


ROUNDS = (Round(1 / 16, 1, 0.15, 0.10), Round(1 / 4, 1, 0.06, 0.04), Round(1.0, 3, 0.02, 0.02))


@dataclass(frozen=True, slots=True)
class Knee:
    """The highest rate at which the service level holds, between one at which it was seen to hold and one at which not.

    Attributes:
        low: holds; 0 where no rate was found at which it does.
        high: does not hold.
    """

    low: float
    high: float

    @property
    def rate(self) -> float:
        """The middle, by ratio."""
        return (self.low * self.high) ** 0.5 if self.low > 0 else 0.0


@dataclass
class Found(Generic[D]):
    """What a search has found.

    Attributes:
        ranking: the best designs with their knees, best first: by rate for their price. Those that were no better than
            an earlier one are not among them.
        refused: designs that could not be simulated, and why.
        trials: simulations made.
        spent: what they took, in simulations of full length.
    """

    ranking: list[tuple[D, Knee]] = field(default_factory=list)
    refused: dict[D, str] = field(default_factory=dict)
    trials: int = 0
    spent: float = 0.0


class Search(Generic[D]):
    """Asks a trial, once for each (design, rate, seed, length), and counts.

    Args:
        trial: (design, requests a second, seed, length) -> whether the service level holds. It raises `ArmillaryError`
            for a design that cannot be simulated; any other error is a defect and ends the search.
        price: of a design, per hour or in any other unit above 0; designs are ranked by rate for their price.
    """

    def __init__(self, trial: Callable[[D, float, int, float], bool], price: Callable[[D], float] = lambda design: 1.0):
        self._trial = trial
        self._price = price
        self._answers: dict[tuple[D, float, int, float], bool] = {}
        self.found: Found[D] = Found()

    def run(self, designs: Sequence[D], start: float, rounds: Sequence[Round] = ROUNDS) -> Found[D]:
        """Find the best of some designs.

        Args:
            designs: those that are likely to be good first, which saves simulations and changes no answer.
            start: a rate to begin with, of the right magnitude, for a price of 1.

        Raises:
            ArmillaryError: CANNOT_FIT where none can be simulated, with the first reason.
        """
        if not designs:
            raise ArmillaryError(Code.INVALID_REQUEST, "designs must hold at least one, given none")
        alive, guess = list(designs), {design: start * self._price(design) for design in designs}
        for number, stage in enumerate(rounds):
            knees = self._round(alive, guess, stage)
            if not knees:
                raise ArmillaryError(
                    Code.CANNOT_FIT,
                    f"at least one design must be possible, given {len(designs)}, so: "
                    f"{next(iter(self.found.refused.values()))}",
                )
            ranked = sorted(knees, key=lambda d: -self._worth(d, knees[d].rate))
            best = self._worth(ranked[0], knees[ranked[0]].rate)
            alive = [d for d in ranked if self._worth(d, knees[d].rate) >= best * (1 - stage.slack)]
            alive = alive[: max(1, len(designs) >> (number + 1))]
            guess = {design: max(knees[design].rate, SMALLEST) for design in alive}
            self.found.ranking = [(design, knees[design]) for design in ranked]
        return self.found

    def _round(self, designs: Sequence[D], guess: dict[D, float], stage: Round) -> dict[D, Knee]:
        """The knees of those designs that beat the bar; of the others, that they lie below it."""
        knees: dict[D, Knee] = {}
        bar = 0.0
        for design in designs:
            best = bar * self._price(design)
            least = best * (1 - stage.slack)
            try:
                if bar == 0:
                    knees[design] = self.knee(design, guess[design], stage)
                elif not self.holds(design, least, stage):
                    continue
                elif not self.holds(design, best, stage):
                    knees[design] = Knee(least, best)  # nearly as good, which is all that this round must know
                else:
                    knees[design] = self.knee(design, best, stage)
            except ArmillaryError as error:
                self.found.refused[design] = error.message
                continue
            bar = max(bar, self._worth(design, knees[design].rate))
        return knees

    def _worth(self, design: D, rate: float) -> float:
        return rate / self._price(design)

    def holds(self, design: D, rate: float, stage: Round) -> bool:
        """Whether the service level holds for most seeds."""
        needed, yes, no = stage.seeds // 2 + 1, 0, 0
        for seed in range(stage.seeds):
            key = (design, rate, seed, stage.length)
            if key not in self._answers:
                self.found.trials += 1
                self.found.spent += stage.length
                self._answers[key] = self._trial(design, rate, seed, stage.length)
            yes, no = yes + self._answers[key], no + (not self._answers[key])
            if yes == needed or no > stage.seeds - needed:
                break
        return yes >= needed

    def knee(self, design: D, start: float, stage: Round) -> Knee:
        """The highest rate at which the service level holds, by bisection on a logarithmic scale."""
        factor = min(WIDEN, (1 + 4 * stage.precision))
        low, high = 0.0, 0.0
        rate = start
        while not (low and high) and SMALLEST < rate < LARGEST:
            if self.holds(design, rate, stage):
                low, rate = rate, rate * factor
            else:
                high, rate = rate, rate / factor
            factor = min(WIDEN**4, factor * factor)
        if not low:
            return Knee(0.0, high)
        if not high:
            return Knee(low, LARGEST)
        while high > low * (1 + stage.precision):
            middle = (low * high) ** 0.5
            if self.holds(design, middle, stage):
                low = middle
            else:
                high = middle
        return Knee(low, high)
