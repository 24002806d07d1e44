"""Distributions of lengths in tokens: fixed, uniform, lognormal, or drawn from a recorded trace.

A distribution is written as one short word, the same in flags, deployment files and Python:

    128                      always 128 (also `fixed:128`)
    uniform:64,256           whole numbers from 64 to 256, both included
    lognormal:200,1.5        mean 200, coefficient of variation 1.5 (also `lognormal:200,1.5,1024`: at most 1024)
    trace:requests.jsonl     drawn with replacement from the lengths recorded in a JSONL file
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code

Column = Literal["prompt_tokens", "output_tokens"]


class Lengths(Protocol):
    """A distribution over lengths of at least one token."""

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`count` independent lengths."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Always the same length."""

    length: int

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.full(count, self.length, dtype=np.int64)


@dataclass(frozen=True)
class Uniform:
    """Every whole number from `low` to `high` is equally likely."""

    low: int
    high: int

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.integers(self.low, self.high + 1, size=count, dtype=np.int64)


@dataclass(frozen=True)
class Lognormal:
    """Lognormal with the given mean and coefficient of variation, rounded, held between 1 and `limit`.

    `mean` and `cv` describe the distribution before rounding and before the limit cuts its tail.
    """

    mean: float
    cv: float
    limit: int | None = None

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.sqrt(math.log1p(self.cv**2))

    @property
    def mu(self) -> float:
        """Mean of the logarithm."""
        return math.log(self.mean) - self.sigma**2 / 2

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        values = np.maximum(1, np.rint(rng.lognormal(self.mu, self.sigma, size=count)))
        if self.limit is not None:
            values = np.minimum(values, self.limit)
        return values.astype(np.int64)


@dataclass(frozen=True)
class Recorded:
    """Drawn with replacement from recorded lengths."""

    lengths: tuple[int, ...]
    source: str = ""

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.asarray(self.lengths, dtype=np.int64)[rng.integers(0, len(self.lengths), size=count)]


def read_trace(path: str | Path) -> list[tuple[int, int]]:
    """The (prompt_tokens, output_tokens) pairs of a JSONL trace, in order.

    A line that lacks either key, or holds something other than a positive whole number, is an error that
    names the line; a first line holding a workload header is skipped.
    """
    pairs: list[tuple[int, int]] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ArmillaryError(
            Code.NOT_FOUND, f"trace must be a readable JSONL file, given {str(path)!r}, so: {error}"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _bad_line(path, number, f"is not JSON ({error})") from error
        if isinstance(row, dict) and "armillary_workload" in row:
            continue
        pair: list[int] = []
        for key in ("prompt_tokens", "output_tokens"):
            value = row.get(key) if isinstance(row, dict) else None
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _bad_line(path, number, f"has {key} = {value!r}")
            pair.append(value)
        pairs.append((pair[0], pair[1]))
    if not pairs:
        raise ArmillaryError(Code.INVALID_REQUEST, f"trace must hold at least one line, given {str(path)!r} with none")
    return pairs


def _bad_line(path: str | Path, number: int, what: str) -> ArmillaryError:
    return ArmillaryError(
        Code.INVALID_REQUEST,
        "a trace line must be a JSON object with prompt_tokens and output_tokens, both whole numbers >= 1, "
        f"given {path}:{number} which {what}",
    )


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
        index = 0 if column == "prompt_tokens" else 1
        return Recorded(tuple(pair[index] for pair in read_trace(rest)), source=rest)
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        numbers = []
    made = _from_numbers(kind, numbers)
    if made is None:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "a length must be N, fixed:N, uniform:LOW,HIGH (1 <= LOW <= HIGH), lognormal:MEAN,CV[,MAX] "
            f"(MEAN >= 1, CV > 0) or trace:FILE, given {str(text)!r}",
            param=column,
        )
    return made


def _from_numbers(kind: str, numbers: Sequence[float]) -> Lengths | None:
    if not numbers or not all(math.isfinite(number) for number in numbers):
        return None
    whole = all(number == int(number) for number in numbers)
    if kind == "fixed" and len(numbers) == 1 and whole and numbers[0] >= 1:
        return Fixed(int(numbers[0]))
    if kind == "uniform" and len(numbers) == 2 and whole and 1 <= numbers[0] <= numbers[1]:
        return Uniform(int(numbers[0]), int(numbers[1]))
    if kind == "lognormal" and len(numbers) in (2, 3) and numbers[0] >= 1 and numbers[1] > 0:
        limit = None
        if len(numbers) == 3:
            if numbers[2] < 1 or numbers[2] != int(numbers[2]):
                return None
            limit = int(numbers[2])
        return Lognormal(numbers[0], numbers[1], limit)
    return None
