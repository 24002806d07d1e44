"""The planner: from a question to a deployment, with the reasons for it and the doubts about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil, sqrt
from typing import Any

import numpy as np

from armillary.errors import ArmillaryError, Code
from armillary.measure.intervals import Interval
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan.budget import affordable, unpriced
from armillary.plan.burst import Burst, burst
from armillary.plan.busiest import whole
from armillary.plan.consists import analytic, shares
from armillary.plan.crew import Crew
from armillary.plan.designs import Design
from armillary.plan.doubt import between, knee_on, machines
from armillary.plan.question import Question, rate_text
from armillary.plan.search import Found, Knee
from armillary.plan.sought import sought
from armillary.plan.steady_load import lengths
from armillary.plan.trials import Trials
from armillary.plan.whatif import REPLICAS, Effect, Look, base_of, changes, effects, look
from armillary.twin.deployed import Deployed, read_config
from armillary.twin.forecast import Forecast, Replication, gathered
from armillary.twin.here import HERE
from armillary.twin.shapes import read_shape

KNEE_SHARE = 0.8
"""Of what a design serves at most, what is planned for where no rate is asked."""
SURE = 0.9
"""The probability with which a service level must hold for a plan to say that it does."""
TRIED_FIRST = 2
"""Replications that are made before the others, since one that fails often says enough."""
MOST_REPLICAS = 4096
LOOKED_AT = 4096
"""Requests of which it is seen whether they fit, of those that are drawn."""


@dataclass(frozen=True)
class Answer:
    """What the planner found.

    Attributes:
        spec: what was simulated: the workload, or its highest rate, as if that lasted.
        peak: how many times the mean rate that is, or of a recorded file the busiest window has.
        seen: share of a recorded file that was simulated; None where requests are drawn.
        recorded: requests of that file; None likewise.
        rate: requests a second that were planned for, on average.
        found: what the chosen design will do at that rate.
        fewer: probability that the service level holds with one replica less; None where there is one.
        knee: the rate, on average, up to which it holds, and where that of one machine lies given the doubt about it.
        waiting: share of the p95 time to first token that is waiting for others, reading and tokenizing, computing.
        analytic: mean seconds from arrival to end by queueing theory, and by simulation.
        searched: what the search found of one replica of each design.
        too_long: share of the requests that are longer than the model's context, refused and not judged.
        simulated: requests in all simulations.
    """

    question: Question
    design: Design
    deployed: Deployed
    spec: WorkloadSpec
    peak: float
    seen: float | None
    recorded: int | None
    rate: float
    found: Forecast
    fewer: float | None
    knee: Interval
    burst: Burst
    effects: tuple[Effect, ...]
    waiting: dict[str, float]
    analytic: tuple[float, float]
    searched: Found[Design]
    too_long: float
    simulated: int

    @property
    def tested_rate(self) -> float:
        """Requests a second of a load test, in which the requests of a file come as they were recorded."""
        return self.rate * (self.peak if self.seen is None else 1.0)

    @property
    def probability(self) -> float:
        """That the service level holds, by the rule of succession: n of n replications are no certainty."""
        count = len(self.found.replications)
        return (self.found.met_share * count + 0.5) / (count + 1)

    @property
    def steady(self) -> dict[str, int]:
        """How many replications were judged to be what."""
        return dict(Counter(one.audit.steadiness.verdict for one in self.found.replications))

    @property
    def limiting(self) -> Effect | None:
        """More of which resource would help most; None where more of none matters."""
        named = [effect for effect in self.effects if effect.resource not in (None, REPLICAS)]
        best = max(named, key=lambda effect: effect.knee)
        return best if best.matters and best.knee > 1 else None

    @property
    def bottleneck(self) -> str:
        """The resource of which more would help most."""
        return "none that stands out" if self.limiting is None else str(self.limiting.resource)


def answer(
    question: Question, progress: Callable[[str, float], None] = lambda what, share: None, processes: int = 1
) -> Answer:
    """Choose a deployment, and say what it will do.

    Args:
        progress: is told what is done, and how much of it is.
        processes: that simulate side by side; the answer is the same with any number. More than one need a main module
            that can be imported without doing its work again (`if __name__ == "__main__"`).

    Raises:
        ArmillaryError: as of `read_shape`; what makes a design impossible, where none is possible; CANNOT_FIT where
            the rate cannot be served within the budget, with the rate that can.
    """
    here = question.hardware.lower() == HERE  # of which no data sheet tells the price
    if question.budget is not None and here and question.price is None:
        raise unpriced(question.hardware)
    trials = Trials(question)
    # Refused once and as what it is, a model that says too little, before every design is.
    read_shape(read_config(question.deployment.model.path))
    long, asked = _too_long(trials), question
    peak = trials.at_busiest()
    question = trials.question
    with Crew(trials, processes) as crew:
        progress("searching", 0.0)
        searched = sought(trials, crew)
        design, knee = searched.ranking[0]
        progress("searching", 1.0)
        if knee.rate <= 0:
            raise ArmillaryError(
                Code.CANNOT_FIT,
                f"the service level must hold at some rate, given {question.slo}: not even single requests meet it on "
                f"{question.hardware}",
                "slo",
            )
        _check_count(trials, min(knee.rate, trials.expected(design)))
        rate = question.rate if question.rate is not None else KNEE_SHARE * knee.rate
        if question.rate is None and question.budget is not None:
            count = min(MOST_REPLICAS, affordable(trials, design))
            design, rate = design.at(count), KNEE_SHARE * knee.rate * count
            found, fewer = _forecast(crew, question, design, rate, progress), None
        elif question.rate is None:
            found, fewer = _forecast(crew, question, design, rate, progress), None
        else:
            design, found, fewer = _sized(trials, crew, design, knee, rate, peak, progress)
        progress("what else could be", 0.0)
        listed, knees, seen = _around(crew, trials, design, rate, knee, progress)
        return Answer(
            question=asked,
            design=design,
            deployed=trials.deployed(design),
            spec=question.spec,
            peak=peak,
            seen=trials.seen(design, rate),
            recorded=None if trials.recording is None else len(whole(question.spec)),
            rate=rate / peak,
            found=found,
            fewer=fewer,
            knee=Interval(knees.value / peak, knees.low / peak, knees.high / peak),
            burst=seen,
            effects=tuple(listed),
            waiting=shares(trials.deployed(design), found),
            analytic=analytic(trials.deployed(design), found, rate),
            searched=searched,
            too_long=long,
            simulated=trials.simulated,
        )


def _too_long(trials: Trials) -> float:
    """The share of the workload's requests that every design refuses, because they are too long.

    Raises ArmillaryError: CANNOT_FIT where more are than the service level lets miss it.
    """
    slo, longest = trials.question.slo, trials.longest
    allowed = min((1 - one.quantile for one in slo.objectives if one.metric != "itl"), default=1.0)
    tokens = lengths(trials.sample(LOOKED_AT).columns)
    share = float(np.mean(tokens > longest))
    if share == 1 or share > allowed + 2 * sqrt(allowed * (1 - allowed) / len(tokens)):
        raise ArmillaryError(
            Code.CANNOT_FIT,
            f"requests must have at most {longest:g} tokens with their answers, given {share:.0%} of this workload "
            f"that have more (up to {tokens.max()}), so no deployment meets {slo}",
            "workload",
        )
    return share


def _check_count(trials: Trials, rate: float) -> None:
    """Refuse a recorded workload of so few requests that they are served at once, however fast they come.

    Args:
        rate: about what can be served; of too few, a search finds far more.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    wanted = trials.requests(rate)
    found = trials.load(rate, trials.question.spec.seed, wanted).requests
    if 2 * found < wanted:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"workload must hold at least {wanted} requests, so that it shows what can be served for long, given "
            f"{found}; record more, or ask `armillary simulate` about these",
            "workload",
        )


def _sized(
    trials: Trials,
    crew: Crew,
    design: Design,
    knee: Knee,
    rate: float,
    peak: float,
    progress: Callable[[str, float], None],
) -> tuple[Design, Forecast, float | None]:
    """As few replicas as serve the rate with confidence, and how sure one fewer would be.

    Args:
        rate: at the busiest, `peak` times as much as on average.
    """
    question = trials.question
    most = MOST_REPLICAS if question.budget is None else affordable(trials, design)
    count = max(1, ceil(rate / knee.rate))
    found: Forecast | None = None
    tried: dict[int, list[bool]] = {}
    while count <= most:
        found = _forecast(crew, question, design.at(count), rate, progress, must_hold=True)
        if found.met_share >= SURE:
            break
        tried[count] = [one.met for one in found.replications]
        found = None
        further = count + max(1, count // 8)
        count = most if count < most < further else further  # none between is left out where no more may be had
    if found is None:
        held = tried.get(most)
        able = f"serve about {rate_text(knee.rate * most / peak)}/s"
        if held is not None:  # about as many as come, but not surely
            able = f"meet it in {sum(held)} of {len(held)} simulations at that rate"
        if question.budget is None:
            raise ArmillaryError(
                Code.CANNOT_FIT,
                f"rate must be one that {most} replicas serve, given {rate / peak:,.10g} requests/s; they {able}",
                "rate",
            )
        raise ArmillaryError(
            Code.CANNOT_FIT,
            f"budget must buy enough for {rate / peak:,.10g} requests/s at {question.slo}, given {question.budget:g} "
            f"dollars an hour for at most {most} x {design.devices} devices, which {able}",
            "budget",
        )
    while count > 1:
        known = tried.get(count - 1, [])
        asked = [(design.at(count - 1), rate, number) for number in range(len(known), question.replications)]
        share = (sum(known) + sum(crew.each(_meets, asked))) / question.replications
        if share < SURE:
            return design.at(count), found, share
        count -= 1
        found = _forecast(crew, question, design.at(count), rate, progress)
    return design.at(1), found, None


def _forecast(
    crew: Crew,
    question: Question,
    design: Design,
    rate: float,
    progress: Callable[[str, float], None],
    must_hold: bool = False,
) -> Forecast:
    """Replications of a design at a rate; with `must_hold`, no more of them once too few can hold."""
    asked = [(design, rate, number) for number in range(question.replications)]
    done: list[Replication] = []
    for part in (asked[:TRIED_FIRST], asked[TRIED_FIRST:]) if must_hold else (asked,):
        for one in crew.each(_replicate, part):
            done.append(one)
            progress("forecasting", len(done) / len(asked))
        if must_hold and sum(not one.met for one in done) > (1 - SURE) * len(asked):
            break
    return gathered(done)


def _replicate(trials: Trials, asked: tuple[Design, float, int]) -> Replication:
    return trials.replicate(*asked)


def _meets(trials: Trials, asked: tuple[Design, float, int]) -> bool:
    return trials.meets(*asked)


def _around(
    crew: Crew, trials: Trials, design: Design, rate: float, knee: Knee, progress: Callable[[str, float], None]
) -> tuple[list[Effect], Interval, Burst]:
    """What each change does, where the knee lies given the doubt about the machine, and what a burst does."""
    slower = machines(trials, design)
    extremes = sorted({min(slower), max(slower)} - {1.0})
    several = [(design, rate, whole, knee.rate) for whole in ((False, True) if design.replicas > 1 else (False,))]
    tasks: list[tuple[Callable[[Trials, Any], Any], Any]] = [(_base, asked) for asked in several]
    tasks += [(burst, (design, rate))] + [(knee_on, (design, factor, knee.rate)) for factor in extremes]
    begun = crew.each(_do, tasks)  # the others go on while the changes wait for the first
    bases: dict[bool, Look] = dict(zip((False, True), islice(begun, len(several)), strict=False))
    wanted = changes(design)
    order = sorted(range(len(wanted)), key=lambda number: wanted[number].sense)  # what may be far off takes longest
    looks = crew.each(look, [(design, rate, number, bases[wanted[number].whole].knee) for number in order])
    done: list[Any] = []
    for result in chain(begun, looks):
        done.append(result)
        progress("what else could be", len(done) / (1 + len(extremes) + len(wanted)))
    seen, knees, looked = done[0], done[1 : 1 + len(extremes)], done[1 + len(extremes) :]
    found = [one for _, one in sorted(zip(order, looked, strict=True), key=lambda each: each[0])]
    # The knee of one replica was found over several workloads; those of the other machines in one of them.
    relative = {factor: rate / bases[False].knee for factor, rate in zip(extremes, knees, strict=True)}
    return effects(design, bases, found), between(knee.rate * design.replicas, slower, relative), seen


def _do(trials: Trials, asked: tuple[Callable[[Trials, Any], Any], Any]) -> Any:
    task, item = asked
    return task(trials, item)


def _base(trials: Trials, asked: tuple[Design, float, bool, float]) -> Look:
    return base_of(trials, *asked)
