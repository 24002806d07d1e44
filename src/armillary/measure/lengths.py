"""Distributions of lengths in tokens, written as one short word, the same in flags, deployment files and Python.

    128                      always 128 (also `fixed:128`)
    uniform:64,256           whole numbers from 64 to 256, both included
    geometric:6              mean 6, from 1 on, each further one as likely as the one before
    lognormal:200,1.5        mean 200, coefficient of variation 1.5 (also `lognormal:200,1.5,1024`: at most 1024)
    trace:FILE               drawn with replacement from the lengths recorded in a file that `traces` reads

Every length is a growing function of one standard normal number, so that two lengths can be correlated by correlating
their normals (a Gaussian copula), whatever their distributions are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code
from armillary.measure.item import MOST_TOKENS
from armillary.measure.traces import read_trace

Column = Literal["prompt_tokens", "output_tokens"]
Normals = NDArray[np.float64]
Whole = NDArray[np.int64]


class Lengths(Protocol):
    """A distribution over lengths of at least one token."""

    def at(self, normals: Normals) -> Whole:
        """The lengths that stand where standard normal numbers stand in their distribution."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Always the same length."""

    length: int

    def at(self, normals: Normals) -> Whole:
        lengths: Whole = np.full(normals.shape, self.length, dtype=np.int64)
        return lengths


@dataclass(frozen=True)
class Uniform:
    """Every whole number from `low` to `high` is equally likely."""

    low: int
    high: int

    def at(self, normals: Normals) -> Whole:
        values: Normals = self.low + np.floor(_share_below(normals) * (self.high - self.low + 1))
        return np.minimum(values, self.high).astype(np.int64)


@dataclass(frozen=True)
class Geometric:
    """Whole numbers from 1 on with the given mean; after each, going on is equally likely."""

    mean: float

    def at(self, normals: Normals) -> Whole:
        if self.mean == 1:
            return np.ones(len(normals), dtype=np.int64)
        above = np.maximum(_share_below(-normals), np.finfo(np.float64).tiny)
        values = np.ceil(np.log(above) / math.log1p(-1 / self.mean))
        return np.clip(values, 1, MOST_TOKENS).astype(np.int64)


@dataclass(frozen=True)
class Lognormal:
    """Lognormal with the given mean and coefficient of variation, rounded, held between 1 and `limit`.

    `mean` and `cv` describe the distribution before rounding and before the limit cuts its tail.
    """

    mean: float
    cv: float
    limit: int = MOST_TOKENS

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.sqrt(math.log1p(self.cv**2))

    @property
    def mu(self) -> float:
        """Mean of the logarithm."""
        return math.log(self.mean) - self.sigma**2 / 2

    def at(self, normals: Normals) -> Whole:
        with np.errstate(over="ignore"):
            values = np.rint(np.exp(self.mu + self.sigma * normals))
        return np.clip(values, 1, self.limit).astype(np.int64)


@dataclass(frozen=True)
class Recorded:
    """Drawn with replacement from recorded lengths, which stand here in order of size."""

    lengths: tuple[int, ...]

    def at(self, normals: Normals) -> Whole:
        place = np.minimum((_share_below(normals) * len(self.lengths)).astype(np.int64), len(self.lengths) - 1)
        return np.asarray(self.lengths, dtype=np.int64)[place]


def draw(lengths: Lengths, count: int, rng: np.random.Generator) -> Whole:
    """`count` independent lengths."""
    return lengths.at(rng.standard_normal(count))


def draw_pairs(
    first: Lengths, second: Lengths, correlation: float, count: int, rng: np.random.Generator
) -> tuple[Whole, Whole]:
    """`count` independent pairs of lengths whose rank correlation (Spearman's) is `correlation`, but for ties.

    For a Gaussian copula the correlation of the normals is 2 sin(pi/6 * rank correlation) (Pearson 1907).
    """
    ours = rng.standard_normal(count)
    theirs = rng.standard_normal(count)
    tie = 2 * math.sin(math.pi / 6 * correlation)
    return first.at(ours), second.at(tie * ours + math.sqrt(max(0.0, 1 - tie**2)) * theirs)


def parse_lengths(text: str | int, column: Column) -> Lengths:
    """The distribution that `text` describes (see the module's docstring).

    Args:
        text: the description; a bare number is a fixed length.
        column: which of a trace's two lengths `trace:` takes.
    """
    kind, _, rest = str(text).partition(":")
    kind = kind.strip().lower()
    if not rest and kind.isdigit():
        kind, rest = "fixed", kind
    if kind == "trace" and rest:
        columns = read_trace(rest)
        recorded = columns.prompt_tokens if column == "prompt_tokens" else columns.output_tokens
        return Recorded(tuple(np.sort(recorded).tolist()))
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        numbers = []
    made = _from_numbers(kind, numbers)
    if made is None:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "a length must be N, fixed:N, uniform:LOW,HIGH (1 <= LOW <= HIGH), geometric:MEAN (MEAN >= 1), "
            "lognormal:MEAN,CV[,MAX] (MEAN >= 1, CV > 0) or trace:FILE, with no number above "
            f"{MOST_TOKENS}, given {str(text)!r}",
            param=column,
        )
    return made


def _from_numbers(kind: str, numbers: Sequence[float]) -> Lengths | None:
    if not numbers or not all(abs(number) <= MOST_TOKENS for number in numbers):
        return None
    whole = all(number == int(number) for number in numbers)
    match kind, list(numbers):
        case "fixed", [length] if whole and length >= 1:
            return Fixed(int(length))
        case "uniform", [low, high] if whole and 1 <= low <= high:
            return Uniform(int(low), int(high))
        case "geometric", [mean] if mean >= 1:
            return Geometric(mean)
        case "lognormal", [mean, cv] if mean >= 1 and cv > 0:
            return Lognormal(mean, cv)
        case "lognormal", [mean, cv, limit] if mean >= 1 and cv > 0 and limit >= 1 and limit == int(limit):
            return Lognormal(mean, cv, int(limit))
    return None


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _share_below(normals: Normals) -> Normals:
    """The standard normal distribution function."""
    return np.asarray(_erfc(normals / -math.sqrt(2)), dtype=np.float64) / 2
