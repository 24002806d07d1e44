"""Simulations for a search: does a service level hold for a design at a rate?"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

import numpy as np

from armillary.deployment import ReplicaSettings
from armillary.errors import ArmillaryError
from armillary.measure.outcomes import Outcomes
from armillary.measure.presets import workload_of
from armillary.measure.steady import steadiness, trend
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.workload import Workload
from armillary.plan.busiest import Recording, at_its_highest, cycles_s, is_file, whole
from armillary.plan.change import Change
from armillary.plan.designs import Design, space
from armillary.plan.estimate import Mix, Theory
from armillary.plan.question import Question
from armillary.plan.reached import Reached
from armillary.plan.steady_load import Load, Pace, conversing, steady_load, without_long
from armillary.twin.audit import audit
from armillary.twin.deployed import Costs, Deployed
from armillary.twin.fleet import simulate_fleet
from armillary.twin.fleet_result import FleetResult
from armillary.twin.forecast import Replication, machine, scaled
from armillary.twin.goals import judged, without_gaps
from armillary.twin.member import ReplicaPlan
from armillary.twin.watch import Watch
from armillary.twin.work import StepWork

ENOUGH, MOST = 120, 600
"""Requests that are measured for each replica in a simulation, at least and at most: of 120, the slowest twentieth are
6."""
MOST_TOLD = 1200
"""At most in one of those from which the figures of an answer come: there are few of them."""
MOST_SEEN = 20_000
"""Requests at most where a machine answers so many at once that `MOST` would not show what it cannot do for long."""
SPAN = 24.0
"""Length of a full simulation, in times the longest limit of the service level: a queue that grows by a twentieth of
what comes has then grown beyond that limit. Where that is more than `MOST` requests, it takes more to be seen."""
ANSWERS = 2.0
"""Length of a simulation, at least, in times as long as an answer takes."""
SEEN_LIMITS, SEEN_ANSWERS = 2.0, 20.0
"""Length, whatever `MOST` says, in times the longest limit, or if that is less, in times as long as an answer takes: in
a shorter one, all could come at once and be answered within the limit, however little the machine can do for long."""
BEHIND = 0.05
"""Seconds by which the time to first token may grow each second, on a line through a simulation: more comes then by
that share than is answered. Where a simulation is as long as `SPAN` says, no limit is kept with more, either."""
LONGER = 2
"""Times as long a simulation is made once more in which ever more requests were under way. Of 200 simulations at 0.8 to
0.95 of what a machine serves for long, 6 were such by chance; none of them was when it was twice as long."""
SLICE = 2
"""Replicas that are simulated of a larger fleet, under their share of the rate. Fewer replicas even out bursts less, so
this errs on the side of caution."""
NOTHING = Change("nothing")
_MIX_REQUESTS = 400
_CHUNK = 512
_BUSY = 0.95


@dataclass
class Trials:
    """Simulates, and keeps what several simulations have in common.

    Attributes:
        early: end a simulation as soon as it is certain that the service level is missed. Answers do not change.
        simulated: requests that were simulated so far.
        seconds: that these simulations lasted, on their own clocks.
        reached: in the simulations that answered a question: a design, requests a second, the number of a workload.
    """

    question: Question
    early: bool = True
    simulated: int = 0
    seconds: float = 0.0
    reached: dict[tuple[Design, float, int], Reached] = field(default_factory=dict)
    _deployed: dict[Design, Deployed] = field(default_factory=dict)
    _costs: Costs = field(default_factory=dict)
    _loads: dict[tuple[float, int, int, float], Load] = field(default_factory=dict)
    _mix: dict[bool, Mix] = field(default_factory=dict)
    _expected: dict[Design, float] = field(default_factory=dict)

    def deployed(self, design: Design) -> Deployed:
        """What the replicas of a design are.

        Raises ArmillaryError: where the design is not possible.
        """
        if design not in self._deployed:
            self._deployed[design] = Deployed(design.deployment(self.question), self.question.vary, self._costs)
        return self._deployed[design]

    def load(self, rate: float, seed: int, requests: int, memory: float = inf) -> Load:
        """The requests that every design meets at that rate: equal luck, only closer together.

        Args:
            memory: tokens that the prefix caches of those who serve them hold.
        """
        key = (rate, seed, requests, memory)
        if key not in self._loads:
            if self.recording is None:
                spec = at_rate(self.question.spec, rate, seed, requests)
                found = steady_load(spec, self.pace, self.longest, memory)
            else:
                found = self.recording.load(rate, seed - self.question.spec.seed, requests, self.pace.answer_s)
            self._loads[key] = found
        return self._loads[key]

    def memory(self, design: Design, change: Change = NOTHING) -> float:
        """Tokens that the prefix caches of a design hold, where that makes a difference to a load; else inf.

        Args:
            change: what is different from the design.
        """
        if not conversing(self.question.spec):
            return inf
        config = change.plan(self.deployed(design).kinds[0].plan).config
        return float(design.replicas * config.num_blocks * config.block_size) if config.prefix_cache else 0.0

    @cached_property
    def designs(self) -> list[Design]:
        """Of one replica, all that the question leaves open."""
        return space(self.question)

    @cached_property
    def recording(self) -> Recording | None:
        """The recorded file of which windows are simulated; None where requests are drawn."""
        spec = self.question.spec
        return Recording.of(spec, self.pace, self.longest) if is_file(spec) else None

    def sample(self, requests: int) -> Workload:
        """So many requests of the question's kind, or all that are recorded."""
        spec = self.question.spec
        return whole(spec) if is_file(spec) else workload_of(at_rate(spec, 1.0, spec.seed, requests))

    def at_busiest(self) -> float:
        """From now on, ask about the busiest time of the workload. Only before anything is simulated.

        Returns:
            How many times its mean rate comes then. A rate that was asked for is one on average.
        """
        question, peak = self.question, 1.0
        if self.recording is not None:
            spec, peak = question.spec, self.recording.peak
        else:
            spec, peak = at_its_highest(question.spec, 0.0 if self._best is None else self.expected(self._best))
        rate = None if question.rate is None else question.rate * peak
        self.question = replace(question, spec=spec, rate=rate)
        return peak

    @cached_property
    def longest(self) -> float:
        """Most tokens of a request with its answer on any design that is possible; without end where none is."""
        found = 0
        for design in self.designs:
            with suppress(ArmillaryError):
                found = max(found, self.deployed(design).kinds[0].config.max_context)
        return found or inf

    @cached_property
    def _best(self) -> Design | None:
        """The design of which theory expects most for its devices; None where none is possible."""
        best: tuple[float, Design] | None = None
        for design in self.designs:
            try:
                worth = self.expected(design) / design.devices
            except ArmillaryError:
                continue
            if best is None or worth > best[0]:
                best = (worth, design)
        return None if best is None else best[1]

    @cached_property
    def pace(self) -> Pace:
        """Of the best design as theory has it, without which no simulation is made."""
        best = self._best
        if best is None:
            return Pace(0.0, 0.0, 0.0)
        theory = self._theory(best)
        busy = theory.at(_BUSY * self.expected(best))
        kind = self.deployed(best).kinds[0]
        prompt_s = kind.cost.step_s(StepWork(1, _CHUNK, 1, _CHUNK, _CHUNK * (_CHUNK + 1) // 2)) / _CHUNK
        mix = self._mix[kind.config.prefix_cache]
        # What of the time that it takes for each request is not for its prompt.
        output_s = max(0.0, 1 / theory.capacity - prompt_s * mix.fresh) / mix.output
        return Pace(busy.tpot_s, prompt_s, busy.e2e_s, output_s)

    def expected(self, design: Design) -> float:
        """The knee of one replica of a design, in requests a second, as queueing theory has it."""
        if design not in self._expected:
            self._expected[design] = self._theory(design).knee(self.question.slo)
        return self._expected[design]

    def _theory(self, design: Design) -> Theory:
        kind = self.deployed(design).kinds[0]
        cached = kind.config.prefix_cache
        if cached not in self._mix:
            self._mix[cached] = Mix.of(without_long(self.sample(_MIX_REQUESTS), self.longest), cached)
        return Theory(kind.config, kind.cost, self._mix[cached])

    def run(
        self,
        design: Design,
        rate: float,
        seed: int,
        requests: int,
        change: Change = NOTHING,
        factor: float = 1.0,
        watch: Watch | None = None,
    ) -> FleetResult:
        """One simulation; what is measured of it.

        Args:
            change: what is different from the design.
            factor: what predicted steps are multiplied with.
            watch: ends it where it says so.
        """
        deployed = self.deployed(design)
        plain = scaled(deployed, factor)

        def build(group: ReplicaSettings) -> ReplicaPlan:
            return change.plan(plain(group))

        load = self.load(rate, seed, requests, self.memory(design, change))
        fleet = change.fleet(deployed.fleet)
        found = simulate_fleet(fleet, build, load.workload, seed=seed, watch=watch, since=load.since)
        self.simulated += len(found.requests)
        self.seconds += found.duration_s
        return load.measured(found)

    def __call__(
        self,
        design: Design,
        rate: float,
        seed: int,
        change: Change = NOTHING,
        factor: float = 1.0,
    ) -> bool:
        """Whether the service level holds in a simulation that also kept up with its requests."""
        requests = self.requests(rate / design.replicas) * design.replicas
        held, reached = self._tried(design, rate, self.question.spec.seed + seed, requests, change, factor)
        if change is NOTHING and factor == 1.0:
            self.reached[design, rate, seed] = reached
        return held

    def same(self, asked: tuple[Design, float, int], other: Design) -> bool:
        """Whether another design would have been simulated exactly as the one that was asked about."""
        reached, design = self.reached.get(asked), asked[0]
        if reached is None:
            return False
        if replace(design, max_running=other.max_running, max_step_tokens=other.max_step_tokens) != other:
            return False
        try:
            one, two = (self.deployed(each).kinds[0] for each in (design, other))
        except ArmillaryError:
            return False
        return one.cost is two.cost and reached.tells(one.config, two.config)

    def _tried(
        self, design: Design, rate: float, seed: int, requests: int, change: Change = NOTHING, factor: float = 1.0
    ) -> tuple[bool, Reached]:
        """Whether the service level holds in a simulation, or if ever more requests were under way in it, in a longer
        one, in which chance would have made them fewer again; and how far they came to limits."""
        reached = Reached()
        for count in (requests, LONGER * requests):
            load = self.load(rate, seed, count, self.memory(design, change))
            watch = self._watch(load)
            run = self.run(design, rate, seed, count, change, factor, watch)
            reached = reached.with_(run)
            if watch is not None and watch.missed:
                break
            if not judged(run, self.question.slo, load.workload.slo_classes)[0]:
                break
            if steadiness(run.requests).verdict != "unstable":
                return kept_up(run.requests), reached
        return False, reached

    def replicate(self, design: Design, rate: float, number: int) -> Replication:
        """One replication of a design at a rate, with its own luck and its own machine, so much slower or faster than
        predicted as predictions err."""
        part, rate, seed, requests, factor = self._replication(design, rate, number)
        classes = self.load(rate, seed, requests, self.memory(part)).workload.slo_classes
        found = self.run(part, rate, seed, requests, factor=factor)
        met, good = judged(found, self.question.slo, classes)
        if met and steadiness(found.requests).verdict == "unstable":
            found = self.run(part, rate, seed, LONGER * requests, factor=factor)
            met, good = judged(found, self.question.slo, classes)
        return Replication(seed, factor, found, met and kept_up(found.requests), good, audit(found))

    def seen(self, design: Design, rate: float) -> float | None:
        """The share of a recorded file that the replications of a design at a rate hold; None where there is none."""
        if self.recording is None:
            return None
        _, _, _, requests, _ = self._replication(design, rate, 0)
        return self.recording.share(self.question.replications, requests)

    def meets(self, design: Design, rate: float, number: int) -> bool:
        """Whether the service level is met in a replication."""
        part, rate, seed, requests, factor = self._replication(design, rate, number)
        return self._tried(part, rate, seed, requests, factor=factor)[0]

    def _replication(self, design: Design, rate: float, number: int) -> tuple[Design, float, int, int, float]:
        """What is simulated of it: the part of a fleet, its rate, the seed, how many requests, and how much slower."""
        part, rate = sliced(design, rate)
        seed = self.question.spec.seed
        factor = machine(self.deployed(part), seed, number)
        requests = self.requests(rate / part.replicas, MOST_TOLD) * part.replicas
        return part, rate, seed + number, requests, factor

    def _watch(self, load: Load) -> Watch | None:
        # Classes have levels of their own, which a watch does not know.
        if not self.early or load.workload.slo_classes:
            return None
        return Watch(without_gaps(self.question.slo), load.requests, load.before)

    def requests(self, rate: float, most: int = MOST) -> int:
        """Of a simulation at so many requests a second; `most`: unless it takes more to see what cannot last."""
        limits = [objective.limit_s for objective in self.question.slo.objectives]
        limit, answer = max(limits, default=1.0), self.pace.answer_s
        seconds = max(SPAN * limit, ANSWERS * answer)
        seen = rate * min(SEEN_LIMITS * limit, SEEN_ANSWERS * answer)
        cycles = rate * cycles_s(self.question.spec)
        return round(max(ENOUGH, min(most, rate * seconds), min(MOST_SEEN, max(seen, cycles))))


def kept_up(run: Outcomes) -> bool:
    """Whether as much was answered as came, but for `BEHIND`."""
    if steadiness(run).verdict == "unstable":
        return False
    ttft = run.ttft[np.argsort(run.due, kind="stable")]
    return trend(ttft[~np.isnan(ttft)]).change <= BEHIND * float(np.ptp(run.due)) if len(run) else True


def at_rate(spec: WorkloadSpec, rate: float, seed: int, requests: int) -> WorkloadSpec:
    """The same kind of requests at another rate, with other luck."""
    given = {name: getattr(spec, name) for name in spec.model_fields_set}
    return WorkloadSpec.model_validate({**given, "rate": rate, "seed": seed, "requests": requests})


def sliced(design: Design, rate: float) -> tuple[Design, float]:
    """The part of a fleet that is simulated, and its share of the rate."""
    count = min(design.replicas, SLICE)
    return design.at(count), rate * count / design.replicas
