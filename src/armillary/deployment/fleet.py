"""What stands around one server: replicas, their hardware, and who sends what to whom."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from armillary.core.routing import ROUTES
from armillary.deployment.engine import EngineSettings
from armillary.deployment.group import Settings
from armillary.deployment.size import Size
from armillary.errors import ArmillaryError, Code


class ReplicaSettings(Settings):
    """Replicas that are alike."""

    hardware: str = Field(
        default="here",
        min_length=1,
        description=(
            "What each runs on: `here` for this machine, or a name that `armillary plan --hardware help` lists. "
            "A name says what is predicted, not what is rented."
        ),
    )
    count: int = Field(default=1, ge=1, le=100_000, description="How many there are; at the start, where they scale.")
    role: Literal["both", "prefill", "decode"] = Field(
        default="both",
        description=(
            "`prefill` computes prompts and hands their KV on to `decode`, over `link`, so that neither holds up the "
            "other; `both` does all of a request, and nothing is sent."
        ),
    )
    tensor_parallel: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Devices that share each matrix of one replica: faster steps, for messages within every layer.",
    )
    pipeline_parallel: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Devices that share the layers of one replica: larger models, for no faster single step.",
    )
    expert_parallel: int = Field(
        default=1,
        ge=1,
        le=1024,
        description=(
            "Devices over which the experts of a layer are spread, a multiple of `tensor_parallel`; 1 where those "
            "share every expert."
        ),
    )
    engine: EngineSettings | None = Field(
        default=None, description="Keys of `engine` that differ for these replicas, such as `kv_blocks`."
    )

    @property
    def devices(self) -> int:
        """Of one replica."""
        return max(self.tensor_parallel, self.expert_parallel) * self.pipeline_parallel


class ScalingSettings(Settings):
    """When replicas are added and taken away."""

    by: Literal["queue", "slo", "forecast"] = Field(
        default="queue",
        description=(
            "`queue` by the requests that have not ended; `slo` by how many were late; `forecast` by the arrivals that "
            "are expected by the time a new replica is ready."
        ),
    )
    least: int = Field(default=1, ge=1, description="Fewest replicas.")
    most: int = Field(default=8, ge=1, description="Most replicas.")
    period_s: float = Field(default=10.0, ge=0.01, description="Seconds between two decisions.")
    calm_s: float = Field(
        default=120.0,
        ge=0,
        description="Seconds for which fewer must have been wanted before one is taken away. Longer avoids to and fro.",
    )
    per_replica: float = Field(
        default=16.0, gt=0, description="With `queue`: requests that one replica handles at the service level."
    )
    most_late: float = Field(default=0.05, ge=0, lt=1, description="With `slo`: share of requests that may be late.")
    rate_per_replica: float = Field(
        default=1.0, gt=0, description="With `forecast`: requests a second that one replica handles."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.most < self.least:
            raise ValueError(f"most must be at least `least` ({self.least}), given {self.most}")
        return self


class FailureSettings(Settings):
    """How often replicas fail, and for how long. What they had is sent to others and begins anew."""

    every_s: float = Field(ge=0.1, description="Mean seconds between two failures of one replica, at random moments.")
    repair_s: float = Field(default=60.0, ge=0, description="Seconds until it can be started again.")


class LinkSettings(Settings):
    """What carries KV blocks from prefill to decode replicas."""

    bandwidth: Size = Field(default=24 * 1024**3, description="Bytes a second that one sender gets through.")
    latency_s: float = Field(default=20e-6, ge=0, description="Seconds before the first byte arrives.")


class FleetSettings(Settings):
    """What stands around one server."""

    replicas: tuple[ReplicaSettings, ...] = Field(
        default=(ReplicaSettings(),),
        min_length=1,
        description="Kinds of replicas; several where hardware or roles differ.",
    )
    route: str = Field(
        default="least_loaded",
        description=(
            "Where a request goes: `round_robin`; `least_loaded` by outstanding tokens; `power_of_two`, the less "
            "loaded of two that are drawn; `prefix_aware`, where its beginning is cached unless that is busy; "
            "`session_sticky`, where its conversation was."
        ),
    )
    ready_s: float = Field(
        default=0.0, ge=0, description="Seconds from starting a replica to its first request: a cold start."
    )
    scaling: ScalingSettings | None = Field(default=None, description="Unset: the number of replicas stays.")
    failures: FailureSettings | None = Field(default=None, description="Unset: none fails.")
    link: LinkSettings = Field(default=LinkSettings(), description="Between prefill and decode replicas.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.route not in ROUTES:
            raise ValueError(f"route must be one of {', '.join(ROUTES)}, given {self.route!r}")
        roles = {group.role for group in self.replicas}
        if ("prefill" in roles) != ("decode" in roles):
            raise ValueError(f"roles prefill and decode must come together, given {', '.join(sorted(roles))}")
        if "both" in roles and len(roles) > 1:
            raise ValueError("roles must be both for all replicas, or prefill and decode; given a mixture")
        if self.scaling is not None and len(self.replicas) > 1:
            raise ValueError(f"scaling must be of one kind of replicas, given {len(self.replicas)}")
        if self.scaling is not None and not self.scaling.least <= self.replicas[0].count <= self.scaling.most:
            raise ValueError(
                f"count must be from scaling's least ({self.scaling.least}) to its most ({self.scaling.most}), "
                f"given {self.replicas[0].count}"
            )
        return self

    @property
    def count(self) -> int:
        """Replicas of all kinds."""
        return sum(group.count for group in self.replicas)

    def check_served(self) -> None:
        """Refuse what one server cannot be a replica of.

        Raises:
            ArmillaryError: INVALID_DEPLOYMENT.
        """
        for group in self.replicas:
            if group.role != "both":
                raise ArmillaryError(
                    Code.INVALID_DEPLOYMENT,
                    f"fleet.replicas must have role both to be served, given {group.role}, so use `armillary simulate`",
                    "fleet",
                )
            if group.engine is not None:
                raise ArmillaryError(
                    Code.INVALID_DEPLOYMENT,
                    "fleet.replicas must have no `engine` of their own to be served; put what differs under `engine`",
                    "fleet",
                )

    def remarks(self) -> list[str]:
        """What people must know where one server on this machine takes the place of a replica.

        Raises:
            ArmillaryError: as `check_served`.
        """
        self.check_served()
        found = []
        if self.count > 1:
            found.append(f"one of {self.count} replicas: start the others with the same file, and send each its share")
        for group in self.replicas:
            if group.devices > 1 or group.hardware.lower() != "here":
                where = group.hardware if group.devices == 1 else f"{group.devices} devices ({group.hardware})"
                found.append(
                    f"planned for a replica on {where}: this server computes on this machine's processors, of which "
                    "that plan says nothing"
                )
        return found
