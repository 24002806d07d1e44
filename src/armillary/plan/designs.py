"""The designs that a planner chooses among: what may differ from one deployment to another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from armillary.deployment import Deployment, EngineSettings, FleetSettings, ReplicaSettings
from armillary.plan.question import Question
from armillary.twin.deployed import profile_of
from armillary.twin.hardware import find_hardware
from armillary.twin.here import HERE

RUNNING = (16, 32, 64, 128, 256)
STEP_TOKENS = (256, 512, 2048, 8192)
ROUTE = "prefix_aware"
"""Of several replicas: as good as the least loaded where nothing is shared, and better where something is."""


@dataclass(frozen=True, slots=True)
class Design:
    """One way to serve.

    Attributes:
        devices: of one replica, by tensor parallelism.
        kv_blocks: None for as many as fit.
    """

    devices: int
    max_running: int
    max_step_tokens: int
    replicas: int = 1
    kv_blocks: int | None = None
    prefix_cache: bool = True
    route: str = ROUTE

    def deployment(self, question: Question) -> Deployment:
        """The deployment file's contents. What the model's own settings of the engine say stands among the common ones,
        where it does not hide what is chosen here."""
        asked = question.deployment
        engine = {**asked.engine_of(asked.model).model_dump(exclude_unset=True), **self._engine(question)}
        group = ReplicaSettings(hardware=question.hardware, count=self.replicas, tensor_parallel=self.devices)
        first = asked.model if asked.model.engine is None else asked.model.model_copy(update={"engine": None})
        return asked.model_copy(
            update={
                "models": (first, *asked.models[1:]),
                "engine": EngineSettings.model_validate(engine),
                "fleet": FleetSettings(replicas=(group,), route=self.route),
            }
        )

    def _engine(self, question: Question) -> dict[str, Any]:
        own: dict[str, Any] = {
            "max_running": self.max_running,
            "max_step_tokens": self.max_step_tokens,
            "prefix_cache": self.prefix_cache,
        }
        if self.kv_blocks is not None:
            own["kv_blocks"] = self.kv_blocks
        return {name: value for name, value in own.items() if name not in question.changed}

    def at(self, replicas: int) -> Design:
        """The same with another number of replicas."""
        return replace(self, replicas=replicas)

    @property
    def title(self) -> str:
        """For people."""
        parallel = f" of {self.devices} devices" if self.devices > 1 else ""
        plural = "s" if self.replicas > 1 else ""
        return (
            f"{self.replicas} replica{plural}{parallel}, at most {self.max_running} sequences and "
            f"{self.max_step_tokens} tokens a step"
        )


def space(question: Question) -> list[Design]:
    """The designs of one replica, those that are likely to be good first.

    On this machine, only what the profile has measured: elsewhere a prediction would be an extrapolation.
    """
    engine = question.deployment.engine_of(question.deployment.model)
    running: tuple[int, ...] = RUNNING
    tokens: tuple[int, ...] = STEP_TOKENS
    devices: tuple[int, ...] = (1,)
    if question.hardware.lower() == HERE:
        measured = profile_of(question.deployment).engine
        running = _up_to(running, int(measured["max_running"]))
        tokens = _up_to(tokens, int(measured["max_step_tokens"]))
    else:
        link = find_hardware(question.hardware).link
        devices = tuple(n for n in (1, 2, 4, 8) if n == 1 or (link is not None and n <= link.devices))
    if "max_running" in question.changed:
        running = (engine.max_running,)
    least = max(min(running), engine.max_chunk_tokens or 1)
    if "max_step_tokens" in question.changed:
        tokens = (engine.max_step_tokens,)
        running = running if "max_running" in question.changed else _up_to(running, engine.max_step_tokens)
    elif max(tokens) < least:
        tokens = (least,)
    fitting = [(r, t) for r, t in product(running, tokens) if t >= max(r, engine.max_chunk_tokens or 1)]
    # Where nothing fits, what was given contradicts itself, and whoever works the design out says so.
    pairs = fitting or [(running[0], tokens[0])]
    found = [Design(d, r, t, prefix_cache=engine.prefix_cache) for d, (r, t) in product(devices, pairs)]
    # The usual settings of engines first, then what lies further from them.
    return sorted(found, key=lambda d: (d.devices, abs(d.max_running - 64) + abs(d.max_step_tokens - 512) / 8))


def _up_to(usual: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Those of the usual values that are not above a limit; where all are, the limit."""
    return tuple(n for n in usual if n <= most) or (most,)
