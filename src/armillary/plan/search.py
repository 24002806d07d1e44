"""The search for the best design: bisection on the rate, inside successive halving over the designs.

What a design is worth is the highest rate at which its service level holds, for its price. Finding that for every
design would take most of the simulations for designs that nobody wants. So designs are taken in the order in which
queueing theory expects them to be good, and those of which it expects far less than was already found are not
simulated. Each other one is first asked one question, whether it comes near the best one so far (one workload is
luck); only one that is clearly better has its own rate found by bisection, and raises the bar for those after it. Once
many in a row were not, those after them, of which theory expects still less, are not asked. Of designs that theory
hardly tells apart, the first and the last are asked like this, and those between them later, if one of the two may be
as good as the best: else a dozen of them would stand for many in a row. The best few go on
to the next round, with more seeds and less slack, until one round is left (successive halving: Jamieson and Talwalkar,
"Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016). All simulations are equally long: in
shorter ones a queue or a cache that is too small has not filled up yet, which flatters designs, some more than others.

All designs meet the same arrivals, lengths and prefixes (common random numbers), so that what differs is the design. At
a higher rate a workload is the same requests closer together. So it is taken to be met up to some rate and missed from
there on, which is what bisection rests on anyway, and nothing is asked that follows from an answer of an earlier round:
a workload in which a design held at a rate is not simulated again at a lower one.
A simulation that cannot be made (the model does not fit, a setting is refused) is not a missed service level: the
design is left out and its reason kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

from armillary.errors import ArmillaryError, Code

D = TypeVar("D", bound=Hashable)

WIDEN = 1.6
"""Factor by which a bracket grows until it holds the knee."""
LARGEST, SMALLEST = 1e9, 1e-6
"""Rates beyond which a knee is not looked for."""
DOUBT = 1.6
"""How much better a design may turn out to be, beside another, than theory expects of the two."""
PATIENCE = 8
"""Designs in a row of which theory expected less than of the best, and which were not clearly better, after which no
other is asked."""
PATIENCE_BETWEEN = 4
"""The same of designs between two that were asked, from which theory does not tell them apart."""
ALIKE = 0.03
"""Share by which theory must tell designs apart for all of them to be asked at first: a limit that theory says never
binds should not keep those from being asked that differ in something else."""
TIE = 1e-9
"""Share by which rounding may set figures apart that are equal."""
TOGETHER = 4
"""Designs that are asked at a time, whatever number of them is simulated side by side."""
Question = tuple[D, float, int]
"""A design, requests a second, and the number of a workload."""
Trial = Callable[[D, float, int], bool]


@dataclass(frozen=True, slots=True)
class Round:
    """How much is spent on each question.

    Attributes:
        seeds: how many workloads each rate meets; the service level must hold for most of them.
        slack: share by which a design may be worse than the best and still go on; below 0 it must be better.
        precision: relative width to which a knee is found.
        keep: the most designs that go on.
        lead: share by which a design must be better than the best for its own knee to be found.
    """

    seeds: int
    slack: float
    precision: float
    keep: int = 1
    lead: float = 0.0


ROUNDS = (Round(1, 0.05, 0.05, 5, 0.02), Round(3, -0.005, 0.02, 1, 0.005))


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
        unlikely: designs that were not simulated, since theory expects too little of them.
        known: of each design that was simulated, what its last round says of its knee: low is 0 where it never held,
            high inf where it always did.
        trials: simulations made.
    """

    ranking: list[tuple[D, Knee]] = field(default_factory=list)
    refused: dict[D, str] = field(default_factory=dict)
    unlikely: list[D] = field(default_factory=list)
    known: dict[D, Knee] = field(default_factory=dict)
    trials: int = 0


class Search(Generic[D]):
    """Asks a trial what does not follow from its earlier answers, and counts.

    Args:
        trial: (design, requests a second, seed) -> whether the service level holds. It raises `ArmillaryError`
            for a design that cannot be simulated; any other error is a defect and ends the search.
        price: of a design, per hour or in any other unit above 0; designs are ranked by rate for their price.
        same: says of a question that was answered whether another design would have been simulated exactly alike.
        each: asks several questions side by side and tells the answers in their order; None: one after the other.
    """

    def __init__(
        self,
        trial: Trial[D],
        price: Callable[[D], float] = lambda design: 1.0,
        each: Callable[[Trial[D], Sequence[Question[D]]], Iterable[bool]] | None = None,
        same: Callable[[Question[D], D], bool] = lambda question, other: False,
    ) -> None:
        self._trial = trial
        self._price = price
        self._each = each or (lambda ask, questions: (ask(*question) for question in questions))
        self._same = same
        self._designs: Sequence[D] = ()
        self._seen: dict[tuple[D, int], tuple[float, float]] = {}
        """The highest rate at which a design held in a workload, and the lowest at which it did not."""
        self._errors: dict[D, ArmillaryError] = {}
        self._known: dict[tuple[D, Round], tuple[float, float]] = {}
        """The same of most workloads of a round."""
        self.found: Found[D] = Found()

    def run(self, designs: Sequence[D], expected: Callable[[D], float], rounds: Sequence[Round] = ROUNDS) -> Found[D]:
        """Find the best of some designs.

        Args:
            expected: the knee of a design by theory, above 0: where to look for it, and in which order to ask. It
                raises `ArmillaryError` as a trial does. One that says the same of all prunes nothing.

        Raises:
            ArmillaryError: CANNOT_FIT where none can be simulated, with the first reason.
        """
        if not designs:
            raise ArmillaryError(Code.INVALID_REQUEST, "designs must hold at least one, given none")
        self._designs = designs
        theory: dict[D, float] = {}
        for design in designs:
            try:
                theory[design] = min(max(expected(design), SMALLEST), LARGEST)
            except ArmillaryError as error:
                self.found.refused[design] = error.message
        guess = {design: Knee(rate, rate) for design, rate in theory.items()}
        alive = sorted(theory, key=lambda d: -self._worth(d, theory[d]))
        for number, stage in enumerate(rounds):
            knees = self._round(alive, guess, stage, theory if number == 0 else None)
            if not knees:
                raise ArmillaryError(
                    Code.CANNOT_FIT,
                    f"at least one design must be possible, given {len(designs)}, so: "
                    f"{next(iter(self.found.refused.values()))}",
                )
            ranked = sorted(knees, key=lambda d: -self._worth(d, knees[d].rate))
            best = self._worth(ranked[0], knees[ranked[0]].rate)
            alive = [d for d in ranked if self._worth(d, knees[d].rate) >= best * (1 - stage.slack)][: stage.keep]
            guess = {design: knees[design] for design in alive}
            self.found.ranking = [(design, knees[design]) for design in ranked]
        return self.found

    def _round(
        self, designs: Sequence[D], guess: dict[D, Knee], stage: Round, theory: dict[D, float] | None
    ) -> dict[D, Knee]:
        """The knees of those designs that beat the bar; of the others, that they lie below it."""
        knees: dict[D, Knee] = {}
        bar = ratio = 0.0
        asked, expected = 0, inf
        """Of which less was expected than of the best, since the bar was last raised; and what was of that."""
        levels = [[design] for design in designs] if theory is None else self._levels(designs, theory)
        left = [design for level in levels for design in (level[0], *level[1:][-1:])]
        between = True
        """Whether those between the first and the last of their levels are still to come."""
        while left or between:
            if not left:
                for level in levels:
                    if any(d in self.found.refused or self._reaches(d, bar) for d in (level[0], level[-1])):
                        left += level[1:-1]
                    else:
                        self.found.unlikely += level[1:-1]
                asked, between = 0, False
                continue
            # The bar stands while a few are asked, so that they can be asked side by side.
            some = left[:1] if bar == 0 else left[:TOGETHER]
            best = {design: bar * self._price(design) for design in some}
            least = {design: rate * (1 - stage.slack) for design, rate in best.items()}
            wanted = {design: rate * (1 + stage.lead) for design, rate in best.items()}
            likely = [d for d in some if theory is None or ratio * theory[d] * DOUBT >= least[d]]
            if theory is not None:
                told = not between and len(levels) > 1  # what others like them are worth; without theory, nothing is
                less = [design for design in likely if told or self._worth(design, theory[design]) < expected]
                patience = PATIENCE_BETWEEN if told else PATIENCE
                likely = [design for design in likely if design not in less[max(0, patience - asked) :]]
                asked += len(less)
            if not likely:  # nor are those after them
                self.found.unlikely += left
                left = []
                continue
            left = left[len(some) :]
            self.found.unlikely += [design for design in some if design not in likely]
            # Where enough are as near or better, one more that is only near comes after them and does not go on.
            middle = Knee(bar * (1 - stage.slack), bar * (1 + stage.lead)).rate
            places = sum(self._worth(d, knees[d].rate) > middle * (1 - TIE) for d in knees) < stage.keep
            near = self._those_that_hold(likely, least, stage) if bar and places else likely
            better = self._those_that_hold(near, wanted, stage) if bar else near
            for design in near if places else ():
                if design not in better:
                    knees[design] = Knee(least[design], wanted[design])  # which is all that this round must know
            if not better:
                continue
            design, *others = better
            left = others + left  # these have a higher bar to pass now
            try:
                known = Knee(wanted[design], 0.0) if bar else guess[design]
                knees[design] = self.knee(design, known.low or SMALLEST, stage, then=known.high)
            except ArmillaryError as error:
                self.found.refused[design] = error.message
                continue
            bar = max(bar, self._worth(design, knees[design].rate))
            if theory is not None:
                ratio = max(ratio, knees[design].rate / theory[design])
                asked, expected = 0, self._worth(design, theory[design])
        return knees

    def _reaches(self, design: D, bar: float) -> bool:
        """Whether a design may be as good as the best, by what is known of its knee."""
        return design in self.found.known and self._worth(design, self.found.known[design].high) >= bar

    def _levels(self, designs: Sequence[D], theory: dict[D, float]) -> list[list[D]]:
        """Designs, best first, by what theory expects: those of a level it hardly tells apart."""
        levels: list[list[D]] = []
        for design in designs:
            worth = self._worth(design, theory[design])
            if not levels or worth < (1 - ALIKE) * self._worth(levels[-1][0], theory[levels[-1][0]]):
                levels.append([])
            levels[-1].append(design)
        return levels

    def _those_that_hold(self, designs: Sequence[D], rates: dict[D, float], stage: Round) -> list[D]:
        """The designs whose service level holds at a rate of each; those that cannot be simulated are refused."""
        self._ask([question for design in designs for question in self._first(design, rates[design], stage)])
        found = []
        for design in designs:
            try:
                if self.holds(design, rates[design], stage):
                    found.append(design)
            except ArmillaryError as error:
                self.found.refused[design] = error.message
        return found

    def _questions(self, design: D, rate: float, stage: Round) -> list[Question[D]]:
        """One for each workload, those first whose answers are known."""
        questions = [(design, rate, seed) for seed in range(stage.seeds)]
        return sorted(questions, key=lambda question: self._follows(question) is None)

    def _first(self, design: D, rate: float, stage: Round) -> list[Question[D]]:
        """So many as are needed in any case."""
        return self._questions(design, rate, stage)[: stage.seeds // 2 + 1]

    def _ask(self, questions: Sequence[Question[D]]) -> None:
        """Simulate what does not follow from what was asked before."""
        new = [one for one in questions if self._follows(one) is None and one[0] not in self._errors]
        try:
            for question, answer in zip(new, self._each(self._trial, new), strict=True):
                self.found.trials += 1
                asked, rate, seed = question
                for design in (asked, *(other for other in self._designs if self._same(question, other))):
                    low, high = self._seen.get((design, seed), (0.0, inf))
                    self._seen[design, seed] = (max(low, rate), high) if answer else (low, min(high, rate))
        except ArmillaryError as error:
            if len(new) == 1:
                self._errors[new[0][0]] = error
            for question in new if len(new) > 1 else ():  # whose error it was
                self._ask([question])

    def _follows(self, question: Question[D]) -> bool | None:
        """The answer, where it was given or follows: a workload that is met at a rate is met at any lower one."""
        design, rate, seed = question
        low, high = self._seen.get((design, seed), (0.0, inf))
        return True if rate <= low else False if rate >= high else None

    def _worth(self, design: D, rate: float) -> float:
        return rate / self._price(design)

    def holds(self, design: D, rate: float, stage: Round) -> bool:
        """Whether the service level holds for most seeds."""
        needed, yes, no = stage.seeds // 2 + 1, 0, 0
        self._ask(self._first(design, rate, stage))
        for question in self._questions(design, rate, stage):
            if yes == needed or no > stage.seeds - needed:
                break
            self._ask([question])
            if design in self._errors:
                raise self._errors[design]
            held = bool(self._follows(question))
            yes, no = yes + held, no + (not held)
        low, high = self._known.get((design, stage), (0.0, inf))
        known = (max(low, rate), high) if yes >= needed else (low, min(high, rate))
        self._known[design, stage] = known
        self.found.known[design] = Knee(*known)
        return yes >= needed

    def knee(self, design: D, start: float, stage: Round, most: float = LARGEST, then: float = 0.0) -> Knee:
        """The highest rate at which the service level holds, by bisection on a logarithmic scale.

        What was already asked of the design in this round is not asked again.

        Args:
            start: where to look first.
            most: a rate that is high enough: a knee beyond it is said to lie between the last rate that held and
                `LARGEST`.
            then: where to look next if it holds there, where that is higher.
        """
        low, high = self._known.get((design, stage), (0.0, inf))
        factor = min(WIDEN, 1 + (1 if low else 2) * stage.precision)
        rate = start if low < start < high else low * factor if low else high / factor
        while not (low > 0 and high < inf) and SMALLEST < rate < most:
            if self.holds(design, rate, stage):
                if rate < then < min(high, most):
                    low, rate = rate, then
                    continue
                low, rate = rate, rate * factor
            else:
                high, rate = rate, rate / factor
            factor = min(WIDEN**4, factor * factor)
        if not low:
            return Knee(0.0, high)
        if high == inf:
            return Knee(low, LARGEST)
        while high > low * (1 + stage.precision):
            middle = (low * high) ** 0.5
            if self.holds(design, middle, stage):
                low = middle
            else:
                high = middle
        return Knee(low, high)
