"""The twin as the subject of an experiment: one run is one simulation."""

from __future__ import annotations

from collections.abc import Callable

from armillary.deployment import Deployment, EngineSettings, FleetSettings, ReplicaSettings, checked
from armillary.errors import ArmillaryError, Code
from armillary.measure.presets import workload_of
from armillary.plan.experiment import AssumedCost, Experiment, settle
from armillary.plan.factors import Point
from armillary.plan.figures import figures
from armillary.twin.cost import IdealCost
from armillary.twin.deployed import Deployed
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan


class Twin:
    """A `Response` by simulation. Points and seeds determine it to the last bit."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._slo = experiment.service_level()
        self._deployed: dict[str, Deployed] = {}

    def __call__(self, point: Point, seed: int) -> dict[str, float]:
        deployment, spec = settle(self.experiment, point)
        workload = workload_of(spec.model_copy(update={"seed": seed}))
        fleet, build = self._replicas(deployment, seed)
        result = simulate_fleet(fleet, build, workload, late=self._slo.late, seed=seed)
        found = figures(result.requests, result.duration_s, self._slo, workload.users)
        if self.experiment.cost is None and all(
            k.cost.provenance != "assumed" for k in self._worked_out(deployment).kinds
        ):
            steps = sum(use.steps.steps for use in result.replicas)
            found["outside_share"] = sum(use.steps.outside for use in result.replicas) / max(1, steps)
        return found

    def predicted_by(self, point: Point) -> list[str]:
        """Where the seconds of a point's steps come from, in sentences."""
        if self.experiment.cost is not None:
            return ["Steps take the seconds that the experiment assumes."]
        deployed = self._worked_out(settle(self.experiment, point)[0])
        return [
            f"Steps are predicted by {kind.cost.name}, {kind.cost.provenance}"
            + ("" if kind.cost.error is None else f", wrong by {kind.cost.error[0]:.1%} (median) on steps left out")
            + "."
            for kind in deployed.kinds
        ]

    def _replicas(
        self, deployment: Deployment, seed: int
    ) -> tuple[FleetSettings, Callable[[ReplicaSettings], ReplicaPlan]]:
        assumed = self.experiment.cost
        if assumed is None:
            deployed = self._worked_out(deployment)
            return deployed.fleet, deployed.build
        fleet = deployment.fleet or FleetSettings()
        return fleet, lambda group: _assumed(deployment, group, assumed, seed)

    def _worked_out(self, deployment: Deployment) -> Deployed:
        """Fitting a cost model takes longer than a small simulation; runs with equal deployments share it."""
        key = deployment.model_dump_json()
        if key not in self._deployed:
            self._deployed[key] = Deployed(deployment)
        return self._deployed[key]


def _assumed(deployment: Deployment, group: ReplicaSettings, cost: AssumedCost, seed: int) -> ReplicaPlan:
    settings = deployment.engine_of(deployment.model)
    if group.engine is not None:
        own = group.engine.model_dump(exclude_unset=True)
        settings = checked(EngineSettings, {**settings.model_dump(exclude_unset=True), **own}, as_flags=False)
    ideal = IdealCost(cost.step_s, cost.per_sequence_s, between=cost.between_s, exponential=cost.exponential, seed=seed)
    if settings.kv_blocks is None:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "engine.kv_blocks must be set where `cost` assumes a machine, whose memory nobody knows, given none",
            param="kv_blocks",
        )
    from armillary.runtime.scheduling import scheduler_config

    held = settings.kv_blocks * settings.block_size
    return ReplicaPlan(scheduler_config(settings, settings.kv_blocks, min(settings.max_context or held, held)), ideal)
