"""Simulations for a search: does a service level hold for a design at a rate?"""

from __future__ import annotations

from dataclasses import dataclass, field

from armillary.deployment import ReplicaSettings
from armillary.measure.outcomes import Outcomes
from armillary.measure.presets import workload_of
from armillary.measure.steady import steadiness
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.workload import Workload
from armillary.plan.change import Change
from armillary.plan.designs import Design
from armillary.plan.question import Question
from armillary.twin.deployed import Deployed
from armillary.twin.fleet import FleetResult, simulate_fleet
from armillary.twin.forecast import scaled
from armillary.twin.member import ReplicaPlan

FEWEST, MOST = 60, 1500
"""Requests for each replica in the shortest simulation, and in the longest."""
SPAN = 24.0
"""Length of a full simulation, in times the longest limit of the service level: a queue that grows by a twentieth of
what comes has then grown beyond that limit."""
SLICE = 4
"""Replicas that are simulated of a larger fleet, under their share of the rate. Fewer replicas even out bursts less, so
this errs on the side of caution."""


@dataclass
class Trials:
    """Simulates, and keeps what several simulations have in common.

    Attributes:
        factor: what predicted steps are multiplied with.
        simulated: requests that were simulated so far.
    """

    question: Question
    factor: float = 1.0
    simulated: int = 0
    _deployed: dict[Design, Deployed] = field(default_factory=dict)
    _workloads: dict[tuple[float, int, int], Workload] = field(default_factory=dict)

    def deployed(self, design: Design) -> Deployed:
        """What the replicas of a design are.

        Raises ArmillaryError: where the design is not possible.
        """
        if design not in self._deployed:
            self._deployed[design] = Deployed(design.deployment(self.question), self.question.vary)
        return self._deployed[design]

    def workload(self, rate: float, seed: int, requests: int) -> Workload:
        """The requests that every design meets at that rate: equal luck, only closer together."""
        key = (rate, seed, requests)
        if key not in self._workloads:
            self._workloads[key] = workload_of(at_rate(self.question.spec, rate, seed, requests))
        return self._workloads[key]

    def run(self, design: Design, rate: float, seed: int, requests: int, change: Change | None = None) -> FleetResult:
        """One simulation; of the design as it would be with a change."""
        self.simulated += requests
        deployed = self.deployed(design)
        plain, changed = scaled(deployed, self.factor), change or Change("nothing")

        def build(group: ReplicaSettings) -> ReplicaPlan:
            return changed.plan(plain(group))

        return simulate_fleet(changed.fleet(deployed.fleet), build, self.workload(rate, seed, requests), seed=seed)

    def __call__(self, design: Design, rate: float, seed: int, length: float, change: Change | None = None) -> bool:
        requests = self.requests(rate / design.replicas, length) * design.replicas
        return self.holds(self.run(design, rate, self.question.spec.seed + seed, requests, change).requests)

    def requests(self, rate: float, length: float = 1.0) -> int:
        """Of a simulation at so many requests a second, as a share of a full one."""
        limits = [objective.limit_s for objective in self.question.slo.objectives]
        return round(min(MOST, max(FEWEST, length * rate * SPAN * max(limits, default=1.0))))

    def holds(self, run: Outcomes) -> bool:
        """Whether the service level holds in a run that also kept up with its requests."""
        return self.question.slo.met(run) and steadiness(run).verdict != "unstable"


def at_rate(spec: WorkloadSpec, rate: float, seed: int, requests: int) -> WorkloadSpec:
    """The same kind of requests at another rate, with other luck."""
    given = {name: getattr(spec, name) for name in spec.model_fields_set}
    return WorkloadSpec.model_validate({**given, "rate": rate, "seed": seed, "requests": requests})


def sliced(design: Design, rate: float) -> tuple[Design, float]:
    """The part of a fleet that is simulated, and its share of the rate."""
    count = min(design.replicas, SLICE)
    return design.at(count), rate * count / design.replicas
