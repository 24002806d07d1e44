"""What a memory plan says, and how it is shown. `armillary.runtime.plan` makes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from armillary.deployment.size import format_size

ESTIMATE_CONTEXT = 512
"""Tokens already in each sequence's cache, in the speed estimate."""
SCORE_BYTES = 8 * 2**20
"""Most bytes of scores of one tile of attention, where torch computes; long contexts get smaller tiles."""
GROUP_BYTES = 6 * 2**20
"""Bytes of keys or values that it gathers at once: what stays in the last-level cache until it has been multiplied."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the plan, and why it is what it is."""

    name: str
    value: int | str
    reason: str


@dataclass(frozen=True, slots=True)
class SpeedCeiling:
    """Decoding speed if memory bandwidth were the only limit; real speed lies below.

    Attributes:
        sequences: how many decode together.
        bytes: read from memory per step.
        tokens_per_s: of all of them together, at most.
    """

    sequences: int
    bytes: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What one engine takes, in bytes, and the values that follow.

    Attributes:
        available: what the machine could give when the plan was made, less what is promised to other engines.
        weights, kv, workspace: what the engine takes. KV is taken as blocks are first used.
        headroom: what must stay free.
        values: every setting with its reason.
        bandwidth: bytes per second, measured by a quick probe; None where it was not measured.
        speed: ceilings that follow from it.
        promised: what other engines of this process may still take.
        kv_dtype: number format of keys and values; empty for an encoder.
        formats: the formats of the matrices, for people; empty where all are of `dtype`.
        kernels: what computes: torch, or a path of the native kernels.
    """

    dtype: str
    num_blocks: int
    block_size: int
    max_context: int
    max_step_tokens: int
    max_running: int
    threads: int
    available: int
    weights: int
    kv: int
    workspace: int
    headroom: int
    values: tuple[Value, ...]
    bandwidth: float | None
    speed: tuple[SpeedCeiling, ...]
    promised: int = 0
    kv_dtype: str = ""
    formats: str = ""
    kernels: str = "torch"

    @property
    def total(self) -> int:
        """Bytes that the engine takes in the end."""
        return self.weights + self.kv + self.workspace

    @property
    def memory_rows(self) -> list[tuple[str, str, str]]:
        """(part, size, what it is) of each part of the memory."""
        tokens = self.num_blocks * self.block_size
        blocks = (
            f"{self.num_blocks} blocks of {self.block_size}: {tokens} tokens" if self.kv else "an encoder needs none"
        )
        promised = [("promised", format_size(self.promised), "to other models, not taken yet")] if self.promised else []
        return [
            *promised,
            ("weights", format_size(self.weights), self.formats or self.dtype),
            ("KV cache", format_size(self.kv), blocks + (f", {self.kv_dtype}" if self.kv_dtype != self.dtype else "")),
            ("workspace", format_size(self.workspace), f"steps of {self.max_step_tokens} tokens, attention, logits"),
            ("headroom", format_size(self.headroom), "left to everything else"),
            ("available", format_size(self.available), f"{format_size(self.available - self.total)} left at full use"),
        ]

    @property
    def speed_rows(self) -> list[tuple[str, str]]:
        """(situation, ceiling) lines of the speed estimate."""
        return [
            (
                f"{s.sequences} sequence{'s' if s.sequences > 1 else ''} of {ESTIMATE_CONTEXT} tokens",
                f"at most {s.tokens_per_s:.0f} tokens/s ({format_size(s.bytes)} read per step)",
            )
            for s in self.speed
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        lines = ["memory plan"]
        lines += [f"  {name:<10} {size:>9}  {note}" for name, size, note in self.memory_rows]
        lines += ["settings"]
        lines += [f"  {v.name:<15} {v.value!s:>12}  {v.reason}" for v in self.values]
        if self.bandwidth is not None:
            lines += [f"decoding, by memory bandwidth alone (quick probe: {self.bandwidth / 1e9:.1f} GB/s)"]
            lines += [f"  {situation:<27} {ceiling}" for situation, ceiling in self.speed_rows]
        return "\n".join(lines)
