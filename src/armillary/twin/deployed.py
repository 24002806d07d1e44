"""What the replicas of a deployment are, worked out from its file without starting any."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.core.config import SchedulerConfig
from armillary.deployment import Deployment, EngineSettings, FleetSettings, ReplicaSettings
from armillary.errors import ArmillaryError, Code
from armillary.twin.analytic import AnalyticCost, Parallel
from armillary.twin.fitted import FittedCost
from armillary.twin.hardware import Hardware, find_hardware
from armillary.twin.here import HERE, cost_for, measured_hardware, profile_for
from armillary.twin.member import ReplicaPlan
from armillary.twin.shapes import BYTES, ModelShape, read_shape
from armillary.twin.spread import Spread
from armillary.twin.work import StepWork

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


Costs = MutableMapping[tuple[str, Parallel, str | None, str | None], FittedCost | AnalyticCost]
"""What was asked of `cost_for`, beside the model, -> what it said."""


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
        here = group.hardware.lower() == HERE
        hardware = measured_hardware(profile_for(self.model_config)) if here else find_hardware(group.hardware)
        key = (
            group.hardware,
            Parallel(group.tensor_parallel, group.pipeline_parallel, group.expert_parallel),
            None if engine.dtype == "auto" else engine.dtype,
            None if engine.kv_dtype == "auto" else engine.kv_dtype,
        )
        if key not in self._costs:
            self._costs[key] = cost_for(self.model_config, *key)
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
        from armillary.models.config import read_config as read_spec
        from armillary.models.locate import locate
        from armillary.runtime.load import scheduler_config
        from armillary.runtime.machine import read_machine
        from armillary.runtime.native_load import kernels_for
        from armillary.runtime.plan import make_plan

        folder = locate(self.deployment.model.path)
        spec = read_spec(folder)
        plan = make_plan(spec, engine, read_machine(), kernels=kernels_for(folder, spec, None))
        blocks = next(value for value in plan.values if value.name == "kv_blocks")
        return scheduler_config(engine, plan, whole=False), blocks.reason

    def _config_there(self, engine: EngineSettings, cost: AnalyticCost) -> tuple[SchedulerConfig, str]:
        """What fits the memory of the data sheet beside the weights."""
        size = engine.block_size
        most = cost.kv_tokens // size
        longest = engine.max_context or self.shape.max_context
        useful = engine.max_running * -(-longest // size)
        if engine.kv_blocks is not None:
            blocks, why = engine.kv_blocks, "set"
        elif engine.kv_memory is not None:
            blocks, why = (
                int(engine.kv_memory / (self.shape.kv_elements * BYTES[cost.kv_dtype]) / size),
                "what kv_memory holds",
            )
        elif useful <= most:
            blocks, why = useful, f"{engine.max_running} sequences of {longest} tokens at once"
        else:
            blocks, why = most, "what the device holds beside the weights, by its data sheet"
        if not 1 <= blocks <= most:
            raise ArmillaryError(
                Code.MEMORY,
                f"kv_blocks must be from 1 to {most}, what {cost.name} holds beside the weights, given {blocks}",
                "kv_blocks",
            )
        config = SchedulerConfig(
            num_blocks=blocks,
            max_context=min(longest, blocks * size),
            block_size=size,
            max_step_tokens=max(engine.max_step_tokens, engine.max_running),
            max_chunk_tokens=engine.max_chunk_tokens,
            max_running=engine.max_running,
            max_waiting=engine.max_waiting,
            max_waiting_tokens=engine.max_waiting_tokens,
            order=engine.order,
            starvation_s=engine.starvation_s,
            prefix_cache=engine.prefix_cache,
        )
        return config, why


def _check_known(engine: EngineSettings, cost: FittedCost | AnalyticCost) -> None:
    """Refuse settings that bear on a step's time, and of which the cost model does not know how.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    measured = cost.profile.engine if isinstance(cost, FittedCost) else {}
    threads, group = engine.threads, engine.quantization_group
    told = None
    if threads is not None and measured and threads != measured.get("threads", threads):
        how = f"be {measured['threads']}, as was measured (`armillary profile --threads` measures others)"
        told = ("threads", threads, how)
    elif threads is not None and not measured:
        told = ("threads", threads, "be left out of what is worked out from a data sheet, which is of a whole device")
    elif engine.int8_activations and not measured.get("int8_activations"):
        told = ("int8_activations", True, "be left out: how long steps take with it was not measured")
    elif group not in (None, 32) and group != measured.get("quantization_group"):
        told = ("quantization_group", group, "be 32 or left out: how long steps take with others was not measured")
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
