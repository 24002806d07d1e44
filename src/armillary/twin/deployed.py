"""What the replicas of a deployment are, worked out from its file without starting any."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armillary.core.config import SchedulerConfig
from armillary.deployment import Deployment, EngineSettings, FleetSettings, ReplicaSettings
from armillary.errors import ArmillaryError, Code
from armillary.models.quantized import GROUPS
from armillary.twin.analytic import AnalyticCost, Parallel
from armillary.twin.fitted import FittedCost
from armillary.twin.hardware import Hardware, find_hardware
from armillary.twin.here import HERE, Served, cost_for, measured_hardware, profile_for
from armillary.twin.member import ReplicaPlan
from armillary.twin.profile import Profile
from armillary.twin.shapes import BYTES, ModelShape, read_shape
from armillary.twin.spread import Spread
from armillary.twin.work import StepWork

if TYPE_CHECKING:
    from armillary.runtime.memory_plan import MemoryPlan

TYPICAL = StepWork(16, 16, 16, 16 * 512, 16 * 512)
"""The step by which kinds of replicas are compared where they stand beside each other: 16 sequences of 512 tokens."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of replica of a deployment.

    Attributes:
        engine: its settings, the common ones with its own over them.
        hardware: of one device.
        why_blocks: where the number of KV blocks comes from.
        vary: whether steps vary around their mean, where it is known how.
    """

    settings: ReplicaSettings
    engine: EngineSettings
    hardware: Hardware
    cost: FittedCost | AnalyticCost
    config: SchedulerConfig
    kv_bytes: int
    why_blocks: str
    vary: bool = True

    @property
    def plan(self) -> ReplicaPlan:
        """What the simulation is told."""
        return ReplicaPlan(self.config, self.cost, 1e-3 / self.cost.step_s(TYPICAL), self.kv_bytes, self.spread)

    @property
    def spread(self) -> Spread | None:
        """How steps vary; None: not at all."""
        return self.cost.spread if self.vary and isinstance(self.cost, FittedCost) else None


Costs = MutableMapping[tuple[str, Parallel, str | None, str | None, str | None], FittedCost | AnalyticCost]
"""What was asked of `cost_for`, beside the model, and the key of the profile -> what it said."""


class Deployed:
    """The model of a deployment and its kinds of replicas.

    Args:
        deployment: with one model. Without a `fleet`, one replica on this machine.
        vary: as of `Kind`.
        costs: cost models that deployments of the same model have in common; filled as they are worked out.

    Raises ArmillaryError: as `read_config`, `cost_for`; INVALID_REQUEST where an engine is told what the cost model
        knows nothing of; MEMORY where a kind cannot hold what its engine is told.
    """

    def __init__(self, deployment: Deployment, vary: bool = True, costs: Costs | None = None) -> None:
        if len(deployment.models) != 1:
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"models must be one to be simulated, given {len(deployment.models)}; make a file for each",
                "models",
            )
        self.deployment = deployment
        self.vary = vary
        self.model_config = read_config(deployment.model.path)
        self.shape: ModelShape = read_shape(self.model_config)
        self.fleet: FleetSettings = deployment.fleet or FleetSettings()
        self._costs: Costs = {} if costs is None else costs
        self.kinds = tuple(self._kind(group) for group in self.fleet.replicas)

    def build(self, group: ReplicaSettings) -> ReplicaPlan:
        """The plan of a replica, as `simulate_fleet` asks for it."""
        return next(
            kind.plan for kind in self.kinds if kind.settings == group.model_copy(update={"count": kind.settings.count})
        )

    def _kind(self, group: ReplicaSettings) -> Kind:
        engine = _engine(self.deployment, group)
        profile = None
        if group.hardware.lower() == HERE:
            profile = profile_for(self.model_config, partial(served_here, self.deployment.model.path, engine))
        hardware = find_hardware(group.hardware) if profile is None else measured_hardware(profile)
        asked = (
            group.hardware,
            Parallel(group.tensor_parallel, group.pipeline_parallel, group.expert_parallel),
            None if engine.dtype == "auto" else engine.dtype,
            None if engine.kv_dtype == "auto" else engine.kv_dtype,
        )
        key = (*asked, None if profile is None else profile.key)
        if key not in self._costs:
            self._costs[key] = cost_for(self.model_config, *asked, profile=profile)
        cost = self._costs[key]
        _check_known(engine, cost)
        if isinstance(cost, FittedCost):
            config, why = self._config_here(engine)
            kv_dtype = str(cost.profile.engine["kv_dtype"])
        else:
            config, why = self._config_there(engine, cost)
            kv_dtype = cost.kv_dtype
        kv_bytes = int(self.shape.kv_elements * BYTES[kv_dtype])
        return Kind(group, engine, hardware, cost, config, kv_bytes, why, self.vary)

    def _config_here(self, engine: EngineSettings) -> tuple[SchedulerConfig, str]:
        """What `serve` would tell its scheduler on this machine, by the same memory plan."""
        from armillary.runtime.scheduling import scheduler_config

        plan = _plan_here(self.deployment.model.path, engine)
        blocks = next(value for value in plan.values if value.name == "kv_blocks")
        return scheduler_config(engine, plan.num_blocks, plan.max_context), blocks.reason

    def _config_there(self, engine: EngineSettings, cost: AnalyticCost) -> tuple[SchedulerConfig, str]:
        """What fits the memory of the data sheet beside the weights."""
        from armillary.runtime.scheduling import choose_step, scheduler_config

        size = engine.block_size
        most = cost.kv_tokens // size
        longest = engine.max_context or self.shape.max_context
        if longest > self.shape.max_context:
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"max_context must be at most {self.shape.max_context}, what the model was made for, given {longest}",
                "max_context",
            )
        running = int(choose_step(engine)[1].value)
        useful = running * -(-longest // size)
        if engine.kv_blocks is not None:
            blocks, why = engine.kv_blocks, "set"
        elif engine.kv_memory is not None:
            blocks, why = (
                int(engine.kv_memory / (self.shape.kv_elements * BYTES[cost.kv_dtype]) / size),
                "what kv_memory holds",
            )
        elif useful <= most:
            blocks, why = useful, f"{running} sequences of {longest} tokens at once"
        else:
            blocks, why = most, "what the device holds beside the weights, by its data sheet"
        if not 1 <= blocks <= most:
            raise ArmillaryError(
                Code.MEMORY,
                f"kv_blocks must be from 1 to {most}, what {cost.name} holds beside the weights, given {blocks}",
                "kv_blocks",
            )
        if engine.max_context is not None and longest > blocks * size:
            raise ArmillaryError(
                Code.MEMORY,
                f"max_context must be at most {blocks * size}, given {longest}: {blocks} KV blocks hold no more",
                "max_context",
            )
        return scheduler_config(engine, blocks, min(longest, blocks * size)), why


def profile_of(deployment: Deployment) -> Profile:
    """The profile by which this machine is predicted under a deployment.

    Raises ArmillaryError: as `read_config`, `profile_for` and `make_plan`.
    """
    model = deployment.model
    return profile_for(read_config(model.path), partial(served_here, model.path, deployment.engine_of(model)))


def served_here(model: str, engine: EngineSettings) -> Served:
    """How `serve` would compute a model's steps on this machine.

    Raises ArmillaryError: as `make_plan`.
    """
    plan = _plan_here(model, engine)
    return Served(
        plan.dtype, plan.kv_dtype, engine.int8_activations, engine.quantization_group, plan.kernels, plan.threads
    )


def _plan_here(model: str, engine: EngineSettings) -> MemoryPlan:
    """The memory plan that `serve` would make on this machine."""
    from armillary.models.config import read_config as read_spec
    from armillary.models.locate import locate
    from armillary.runtime.machine import read_machine
    from armillary.runtime.native_load import kernels_for
    from armillary.runtime.plan import make_plan

    folder = locate(model)
    spec = read_spec(folder)
    return make_plan(spec, engine, read_machine(), kernels=kernels_for(folder, spec, None))


def _check_known(engine: EngineSettings, cost: FittedCost | AnalyticCost) -> None:
    """Refuse settings that bear on a step's time, and of which the cost model does not know how.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    measured = cost.profile.engine if isinstance(cost, FittedCost) else {}
    threads, group = engine.threads, engine.quantization_group
    told: tuple[str, object, str] | None = None
    fast, grouped = bool(measured.get("int8_activations")), measured.get("quantization_group") or GROUPS[0]
    if threads is not None and measured and threads != measured.get("threads", threads):
        how = f"be {measured['threads']}, as was measured (`armillary profile --threads` measures others)"
        told = ("threads", threads, how)
    elif threads is not None and not measured:
        told = ("threads", threads, "be left out of what is worked out from a data sheet, which is of a whole device")
    elif engine.int8_activations != fast:
        how = "be set: how long steps take without it" if fast else "be left out: how long steps take with it"
        told = ("int8_activations", engine.int8_activations, f"{how} was not measured")
    elif (group or GROUPS[0]) != grouped:
        or_out = " or left out" if grouped == GROUPS[0] else ""
        how = f"be {grouped}{or_out}: how long steps take with others was not measured"
        told = ("quantization_group", group, how)
    if told is not None:
        name, given, must = told
        raise ArmillaryError(Code.INVALID_REQUEST, f"{name} must {must}, given {given}", name)


def read_config(model: str) -> dict[str, Any]:
    """The contents of a model's config.json: of a folder, of the file itself, or of what `serve` would load.

    Raises ArmillaryError: INVALID_CHECKPOINT where it is no JSON object; as `locate`.
    """
    path = Path(model).expanduser()
    if not path.is_file():
        if not (path / "config.json").is_file():
            from armillary.models.locate import locate

            path = locate(model)
        path = path / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArmillaryError(
            Code.INVALID_CHECKPOINT, f"config.json must be a readable JSON object, given {path}: {error}", "model"
        ) from error
    if not isinstance(found, Mapping):
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"config.json must be a JSON object, given {path}", "model")
    if "armillary_plan" in found:
        raise ArmillaryError(
            Code.INVALID_CHECKPOINT,
            f"model must be a folder, a config.json or a deployment file, given the plan {path}; name the "
            "deployment.yaml that was written beside it",
            "model",
        )
    return dict(found)


def _engine(deployment: Deployment, group: ReplicaSettings) -> EngineSettings:
    """The settings of a kind of replica: the common ones, the model's, and over them its own."""
    common = deployment.engine_of(deployment.model)
    if group.engine is None:
        return common
    own = group.engine.model_dump(exclude_unset=True)
    return EngineSettings.model_validate({**common.model_dump(exclude_unset=True), **own})
