"""Which steps are worth measuring: few, and so chosen that they tell the most.

Candidates fill the space of steps evenly (Halton, 1960). From them, points are taken in turn by what they add to the
determinant of the information matrix (sequential D-optimal design: Wynn, Annals of Mathematical Statistics 1970), which
finds the corners, and by how far they lie from those taken before (maximin), which fills the middle. Any first
part of the order is a design of its own, so measuring may stop when the time is up.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, log
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from armillary.twin.work import StepWork

Floats = npt.NDArray[np.float64]
_PRIMES = (2, 3, 5, 7, 11, 13, 17)


class Share(NamedTuple):
    """What one sequence does in a step: computes `tokens` positions after `start`, and samples `rows` tokens."""

    start: int
    tokens: int
    rows: int


@dataclass(frozen=True, slots=True)
class Point:
    """A step to measure."""

    shares: tuple[Share, ...]

    @property
    def work(self) -> StepWork:
        """The step as numbers."""
        return StepWork(
            sequences=len(self.shares),
            tokens=sum(share.tokens for share in self.shares),
            rows=sum(share.rows for share in self.shares),
            context=sum(share.start + share.tokens for share in self.shares),
            pairs=sum(share.tokens * share.start + share.tokens * (share.tokens + 1) // 2 for share in self.shares),
        )

    def blocks(self, block_size: int) -> int:
        """KV blocks that it needs."""
        return sum(ceil((share.start + share.tokens) / block_size) for share in self.shares)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine allows.

    Attributes:
        sequences: in one step.
        step_tokens: positions computed in one step.
        context: positions of one sequence.
        blocks, block_size: KV blocks that are there.
    """

    sequences: int
    step_tokens: int
    context: int
    blocks: int
    block_size: int

    def allow(self, point: Point) -> bool:
        """Whether the engine could take such a step."""
        work = point.work
        return (
            1 <= work.sequences <= self.sequences
            and work.tokens <= self.step_tokens
            and all(share.start + share.tokens <= self.context for share in point.shares)
            and point.blocks(self.block_size) <= self.blocks
        )


def halton(index: int, base: int) -> float:
    """The index-th number of the van der Corput sequence of a base, in (0, 1)."""
    found, part = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        found += digit * part
        part /= base
    return found


def candidates(limits: Limits, count: int = 400, seed: int = 0) -> list[Point]:
    """Steps all over the space: next tokens alone, prompts alone, both; short contexts and long ones, prompts that
    begin behind a cache hit or an earlier chunk and prompts that do not."""
    rng = Random(seed)
    found = corners(limits)
    index = 0
    while len(found) < count and index < 20 * count:
        index += 1
        u = [halton(index, base) for base in _PRIMES]
        kind = ("decode", "prompt", "both")[min(2, int(3 * u[0]))]
        decodes = 0 if kind == "prompt" else _between(1, limits.sequences, u[1])
        context = _between(8, limits.context, u[2])
        shares = [_decode(limits, context, rng) for _ in range(decodes)]
        if kind != "decode":
            shares += _prompts(limits, decodes, u, rng)
        point = Point(tuple(shares))
        if limits.allow(point):
            found.append(point)
    return found


def corners(limits: Limits) -> list[Point]:
    """The most that an engine may be asked for, and the least: they bound what can be predicted."""
    many, budget, context = limits.sequences, limits.step_tokens, limits.context
    each = min(context, limits.blocks // many * limits.block_size)
    rest = budget - many + 1
    points = [
        Point((Share(0, 1, 1),)),
        Point((Share(min(context, limits.blocks * limits.block_size) - 1, 1, 1),)),
        Point((Share(0, min(budget, context), 1),)),
        Point((Share(max(0, context - budget), min(budget, context), 1),)),
        Point((Share(15, 1, 1),) * many),
        Point((Share(each - 1, 1, 1),) * many),
        Point((*(Share(each // 2, 1, 1),) * (many - 1), Share(0, min(rest, context), 1))),
    ]
    return [point for point in dict.fromkeys(points) if limits.allow(point)]


def ordered(points: list[Point], features: Floats, first: int = 0) -> list[int]:
    """The order in which to measure.

    Args:
        first: so many points come first, in their order: the corners.
        features: a row for each point, what its time is thought to be made of, divided by a guess of that time: each
            point then tells as much as it weighs in the fit.
    """
    scale = features.max(axis=0)
    rows = features / np.where(scale > 0, scale, 1.0)
    places = np.log1p(np.array([point.work[:5] for point in points], dtype=np.float64))
    spread = np.ptp(places, axis=0)
    places /= np.where(spread > 0, spread, 1.0)
    inverse = np.eye(rows.shape[1]) * 1e4
    distance = np.full(len(points), np.inf)
    order: list[int] = []
    for turn in range(len(points)):
        if turn < first:
            gain = -np.arange(len(points), dtype=np.float64)
        elif turn % 2 == 0 or not order:
            gain = np.einsum("ij,jk,ik->i", rows, inverse, rows)
        else:
            gain = distance.copy()
        gain[order] = -np.inf
        chosen = int(np.argmax(gain))
        order.append(chosen)
        turned = inverse @ rows[chosen]
        inverse -= np.outer(turned, turned) / (1.0 + rows[chosen] @ turned)
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen], axis=1))
    return order


def _decode(limits: Limits, mean: int, rng: Random) -> Share:
    """A next token, of a sequence about as long as its neighbours."""
    context = int(mean * exp(rng.gauss(0.0, 0.3)))
    return Share(min(max(context, 1), limits.context) - 1, 1, 1)


def _prompts(limits: Limits, decodes: int, u: list[float], rng: Random) -> list[Share]:
    """Prompts, or chunks of them, in what decodes leave of the step."""
    room = limits.step_tokens - decodes
    slots = limits.sequences - decodes
    if room < 2 or slots < 1:
        return []
    tokens = _between(2, room, u[3])
    # One prompt as often as several.
    many = 1 if u[4] < 0.5 else min(slots, _between(1, min(16, tokens // 2), 2 * u[4] - 1))
    behind = 0 if u[5] < 0.4 else _between(1, limits.context, (u[5] - 0.4) / 0.6)
    whole = u[6] < 0.75
    cuts = sorted(rng.uniform(0, 1) for _ in range(many - 1))
    counts = [max(1, int(tokens * (b - a))) for a, b in zip([0.0, *cuts], [*cuts, 1.0], strict=True)]
    return [Share(min(behind, max(0, limits.context - count)), count, int(whole)) for count in counts]


def _between(low: int, high: int, u: float) -> int:
    """A whole number, evenly in its logarithm."""
    return min(high, max(low, round(exp(log(low) + u * (log(max(low, high)) - log(low))))))
