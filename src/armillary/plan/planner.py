"""The planner: from a question to a deployment, with the reasons for it and the doubts about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf
from random import Random

import numpy as np

from armillary.errors import ArmillaryError, Code
from armillary.measure.steady import steadiness
from armillary.measure.workload import Workload
from armillary.plan.batch_server import BatchServer, service_rates
from armillary.plan.designs import Design, space
from armillary.plan.question import Question
from armillary.plan.search import Knee, Search
from armillary.plan.trials import Trials, at_rate, sliced
from armillary.plan.whatif import ROUND, Effect, effects
from armillary.twin.deployed import Deployed, read_config
from armillary.twin.fleet import simulate_fleet
from armillary.twin.forecast import Forecast, Interval, draw_factor, forecast
from armillary.twin.work import StepWork

SURE = 0.9
"""The probability with which a service level must hold for a plan to say that it does."""
DRAWS = 6
"""Machines, as much slower or faster as the prediction may be wrong, of which the knee is found."""
BURST_S = 60.0
MOST_REPLICAS = 4096


@dataclass(frozen=True)
class Burst:
    """What twice the rate for a minute does.

    Attributes:
        ttft_p95: seconds, of the requests that came during it.
        recovery_s: seconds from its end until requests meet the service level again; inf where none did.
    """

    ttft_p95: float
    recovery_s: float


@dataclass(frozen=True)
class Answer:
    """What the planner found.

    Attributes:
        rate: requests a second that were planned for.
        found: what the chosen design will do at that rate.
        fewer: probability that the service level holds with one replica less; None where there is one.
        knee: the rate up to which it holds, and where that lies given the doubt about the machine.
        waiting: share of the p95 time to first token that is waiting for others, reading and tokenizing, computing.
        analytic: mean seconds from arrival to end by a birth-death chain, and by simulation.
        refused: designs that are not possible, and why.
        trials, simulated: simulations made for the choice, and requests in them.
    """

    question: Question
    design: Design
    deployed: Deployed
    rate: float
    found: Forecast
    fewer: float | None
    knee: Interval
    burst: Burst
    effects: tuple[Effect, ...]
    waiting: dict[str, float]
    analytic: tuple[float, float]
    steady: str
    refused: dict[str, str]
    ranking: tuple[tuple[Design, Knee], ...]
    trials: int
    simulated: int

    @property
    def probability(self) -> float:
        """That the service level holds, by the rule of succession: n of n replications are no certainty."""
        count = len(self.found.replications)
        return (self.found.met_share * count + 0.5) / (count + 1)

    @property
    def bottleneck(self) -> str:
        """The resource of which more would help most."""
        named = [effect for effect in self.effects if effect.resource not in (None, "replicas")]
        best = max(named, key=lambda effect: effect.knee)
        return str(best.resource) if best.matters else "none that stands out"


def answer(question: Question, progress: Callable[[str, float], None] = lambda what, share: None) -> Answer:
    """Choose a deployment, and say what it will do.

    Args:
        progress: is told what is done, and how much of it is.

    Raises:
        ArmillaryError: what makes a design impossible, where none is possible; CANNOT_FIT where the rate cannot be
            served within the budget, with the rate that can.
    """
    trials = Trials(question)
    progress("searching", 0.0)
    search = Search(trials, price=lambda design: design.devices)
    designs = space(question, read_config(question.deployment.model.path))
    searched = search.run(designs, start=_magnitude(trials, designs))
    design, knee = searched.ranking[0]
    progress("searching", 1.0)
    if knee.rate <= 0:
        raise ArmillaryError(
            Code.CANNOT_FIT,
            f"the service level must hold at some rate, given {question.slo}: not even single requests meet it on "
            f"{question.hardware}",
            "slo",
        )
    rate = question.rate if question.rate is not None else 0.8 * knee.rate
    design, found, fewer = _sized(trials, design, knee, rate, progress)
    if question.rate is None and question.budget is not None:
        rate = 0.8 * knee.rate * design.replicas
        found = _forecast(trials, design, rate)
    progress("what else could be", 0.0)
    base, listed = effects(trials, design, rate)
    progress("what else could be", 0.5)
    knees = _knees(trials, design, knee, base)
    burst = _burst(trials, design, rate)
    progress("what else could be", 1.0)
    return Answer(
        question=question,
        design=design,
        deployed=trials.deployed(design),
        rate=rate,
        found=found,
        fewer=fewer,
        knee=knees,
        burst=burst,
        effects=tuple(listed),
        waiting=_shares(trials.deployed(design), found),
        analytic=_analytic(trials.deployed(design), found, rate),
        steady=steadiness(found.replications[0].result.requests).verdict,
        refused={one.title: why for one, why in searched.refused.items()},
        ranking=tuple(searched.ranking),
        trials=searched.trials,
        simulated=trials.simulated,
    )


def _magnitude(trials: Trials, designs: list[Design]) -> float:
    """Requests a second that one device might do: what its steps with 16 sequences let through."""
    workload = trials.workload(1.0, trials.question.spec.seed, 100).columns
    prompt, output = float(workload.prompt_tokens.mean()), float(workload.output_tokens.mean())
    for design in designs:
        try:
            cost = trials.deployed(design).kinds[0].cost
        except ArmillaryError:
            continue
        context = round(16 * (prompt + output / 2))
        token_s = cost.step_s(StepWork(16, 16, 16, context, context)) / 16
        prompt_s = cost.step_s(StepWork(1, round(prompt), 1, round(prompt), round(prompt * prompt / 2)))
        return 1.0 / (prompt_s + output * token_s) / design.devices
    return 1.0  # none is possible; the search will say why


def _sized(
    trials: Trials, design: Design, knee: Knee, rate: float, progress: Callable[[str, float], None]
) -> tuple[Design, Forecast, float | None]:
    """As few replicas as serve the rate with confidence, and how sure one fewer would be."""
    question = trials.question
    most = MOST_REPLICAS if question.budget is None else _affordable(trials, design)
    if question.rate is None:
        count = 1 if question.budget is None else most
        chosen = design.at(count)
        return chosen, _forecast(trials, chosen, rate), None
    count = max(1, ceil(rate / knee.rate))
    tried: dict[int, Forecast] = {}
    while count <= most:
        progress("replicas", 0.0)
        tried[count] = _forecast(trials, design.at(count), rate)
        if tried[count].met_share >= SURE:
            break
        count += max(1, count // 8)
    else:
        able = knee.rate * most
        raise ArmillaryError(
            Code.CANNOT_FIT,
            f"budget must buy enough for {rate:g} requests/s at {question.slo}, given {question.budget:g} dollars an "
            f"hour for at most {most} x {design.devices} devices, which serve about {able:.3g}/s",
            "budget",
        )
    while count > 1:
        below = tried.get(count - 1) or _forecast(trials, design.at(count - 1), rate)
        if below.met_share < SURE:
            return design.at(count), tried[count], below.met_share
        count, tried[count - 1] = count - 1, below
    return design.at(1), tried[1], None


def _affordable(trials: Trials, design: Design) -> int:
    hardware = trials.deployed(design).kinds[0].hardware
    if hardware.price_per_h is None:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"budget must go with hardware whose price is known, given {hardware.name}", "budget"
        )
    most = int((trials.question.budget or inf) / (sum(hardware.price_per_h) / 2 * design.devices))
    if most < 1:
        raise ArmillaryError(
            Code.CANNOT_FIT,
            f"budget must be at least the price of one replica, {sum(hardware.price_per_h) / 2 * design.devices:.2f} "
            f"dollars an hour, given {trials.question.budget:g}",
            "budget",
        )
    return most


def _forecast(trials: Trials, design: Design, rate: float) -> Forecast:
    question = trials.question
    design, rate = sliced(design, rate)
    requests = trials.requests(rate / design.replicas) * design.replicas
    trials.simulated += requests * question.replications
    spec = at_rate(question.spec, rate, question.spec.seed, requests)
    return forecast(trials.deployed(design), spec, question.slo, replications=question.replications)


def _knees(trials: Trials, design: Design, knee: Knee, base: Knee) -> Interval:
    """The knee on machines that are so much slower or faster as the prediction may be wrong.

    Args:
        knee: of one replica, found exactly.
        base: of the part of the fleet that is simulated, found as roughly as those of the other machines.
    """
    replicas, (design, _) = design.replicas, sliced(design, 1.0)
    found = []
    cost = trials.deployed(design).kinds[0].cost
    for number in range(DRAWS):
        trials.factor = draw_factor(cost, Random(f"knee/{trials.question.spec.seed}/{number}"))
        rough = Search(trials).knee(design, base.rate / trials.factor, ROUND)
        found.append(knee.rate * replicas * rough.rate / base.rate)
    trials.factor = 1.0
    return Interval.over(found)


def _burst(trials: Trials, design: Design, rate: float) -> Burst:
    """Twice the rate for a minute, after a minute as usual."""
    design, rate = sliced(design, rate)
    usual = trials.workload(rate, trials.question.spec.seed, max(20, round(4 * BURST_S * rate)))
    extra = trials.workload(rate, trials.question.spec.seed + 1, max(5, round(BURST_S * rate)))
    items = list(usual.items)
    for item in extra.items:
        when = BURST_S + (item.arrival or 0.0)
        session = None if item.session is None else f"burst-{item.session}"
        items.append(item.model_copy(update={"id": f"burst-{item.id}", "arrival": when, "session": session}))
    items.sort(key=lambda item: item.arrival or 0.0)
    deployed = trials.deployed(design)
    trials.simulated += len(items)
    run = simulate_fleet(deployed.fleet, deployed.build, Workload(tuple(items))).requests
    during = (run.due >= BURST_S) & (run.due < 2 * BURST_S)
    ttft = run.ttft[during]
    ttft = ttft[~np.isnan(ttft)]
    late = ~trials.question.slo.good(run)
    after = late & (run.due >= 2 * BURST_S)
    last = float(run.due[after].max()) - 2 * BURST_S if after.any() else 0.0
    ends = float(run.due.max()) - 2 * BURST_S
    return Burst(float(np.quantile(ttft, 0.95)) if len(ttft) else 0.0, inf if last >= 0.98 * ends > 0 else last)


def _shares(deployed: Deployed, found: Forecast) -> dict[str, float]:
    """Of the time to first token of the slow ones (90th to 99th percentile), what it consists of."""
    run = found.replications[0].result.requests
    ttft = run.ttft
    known = ttft[~np.isnan(ttft)]
    if not len(known):
        return {}
    low, high = np.quantile(known, [0.9, 0.99])
    slow = np.flatnonzero((ttft >= low) & (ttft <= high))
    cost, config = deployed.kinds[0].cost, deployed.kinds[0].config
    computing = reading = total = 0.0
    for row in slow.tolist():
        start, end = int(run.cached_tokens[row]), int(run.prompt_tokens[row])
        reading += cost.request_s(end)
        while start < end:
            count = min(end - start, config.max_chunk_tokens or config.max_step_tokens)
            computing += cost.step_s(StepWork(1, count, 1, start + count, count * start + count * (count + 1) // 2))
            start += count
        total += float(ttft[row])
    total = max(total, computing + reading, 1e-12)
    return {
        "waiting": 1 - (computing + reading) / total,
        "computing its prompt": computing / total,
        "reading and tokenizing": reading / total,
    }


def _analytic(deployed: Deployed, found: Forecast, rate: float) -> tuple[float, float]:
    """Mean time to the end: of a birth-death chain whose speed follows from the steps, and simulated."""
    run = found.replications[0].result.requests
    kind = deployed.kinds[0]
    prompt = float((run.prompt_tokens - run.cached_tokens).mean())
    output, context = float(run.output_tokens.mean()), float(run.prompt_tokens.mean() + run.output_tokens.mean() / 2)
    factor = found.replications[0].factor

    def step_s(n: int) -> float:
        """A step with n sequences, each of which also brings its share of a prompt."""
        fresh = n * (1 + prompt / output)
        work = StepWork(n, round(fresh), n, round(n * context), round(fresh * context))
        return factor * (kind.cost.step_s(work) + kind.cost.between_s(work))

    server = BatchServer(rate / deployed.fleet.count, service_rates(step_s, output, kind.config.max_running))
    simulated = run.e2e[~np.isnan(run.e2e)]
    return server.response_s if server.stable else inf, float(simulated.mean()) if len(simulated) else inf
