"""What rows ask of the sampler: parameters sorted once for each sequence, and once for each batch of rows.

Randomness is a function of (seed, choice, position), with no state that neighbours, preemption or chunking could move.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as ReadOnlyList
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from armillary.core.request import Sequence
from armillary.runtime.native_sampler import GREEDY_DRAW, Draws
from armillary.runtime.sampling import GREEDY, SamplingParams

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Row:
    """One token to choose: for which sequence, and as which of its request's choices."""

    sequence: Sequence
    choice: int


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) for this draw: three rounds of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    return uniform_at(stream(seed, choice), position)


def stream(seed: int, choice: int) -> int:
    """What all numbers of a choice begin from: two of the rounds."""
    return mix(mix((seed + 0x9E3779B97F4A7C15) & _MASK) ^ mix((choice + 0xBF58476D1CE4E5B9) & _MASK))


def uniform_at(state: int, position: int) -> float:
    """The number at a position of a stream: the last round."""
    return (mix((state + (position + 1) * 0x9E3779B97F4A7C15) & _MASK) >> 11) * 2.0**-53


def mix(z: int) -> int:
    """The step of splitmix64 that spreads the bits of its state."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class History:
    """Which tokens a sequence has seen, and how often it generated each; grows with the sequence."""

    __slots__ = ("_counts", "_ids", "_places", "_seen", "_size")

    def __init__(self, sequence: Sequence) -> None:
        prompt = list(dict.fromkeys(sequence.tokens[: sequence.prompt_length]))
        self._places = {token: place for place, token in enumerate(prompt)}
        self._size = len(prompt)
        self._ids = np.zeros(self._size + 64, dtype=np.int64)
        self._ids[: self._size] = prompt
        self._counts = np.zeros(self._size + 64, dtype=np.float32)
        self._seen = sequence.prompt_length

    def update(self, tokens: ReadOnlyList[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Take in what was generated since the last time; returns token ids and their counts in the answer."""
        for token in tokens[self._seen :]:
            place = self._places.get(token)
            if place is None:
                place = self._places[token] = self._size
                if place == len(self._ids):
                    self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                    self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
                self._ids[place] = token
                self._size += 1
            self._counts[place] += 1
        self._seen = len(tokens)
        return self._ids[: self._size], self._counts[: self._size]


class Wishes:
    """A request's parameters, sorted once into what must be done for its rows."""

    __slots__ = (
        "biased", "bounded", "draw", "filtered", "greedy", "history", "params", "penalised", "seed", "stop_ids",
    )  # fmt: skip

    def __init__(self, sequence: Sequence, salt: int) -> None:
        request = sequence.request
        params = request.sampling if isinstance(request.sampling, SamplingParams) else GREEDY
        self.params = params
        # A temperature that is 0 in float32 would divide 0 by 0.
        self.greedy = float(np.float32(params.temperature)) == 0
        self.seed = params.seed if params.seed is not None else mix(salt ^ sequence.uid)
        self.stop_ids = sorted(request.stop_ids)
        self.bounded = request.min_tokens if self.stop_ids else 0
        self.biased = bool(params.logit_bias)
        self.penalised = params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        self.filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        # Any number of tokens beyond the vocabulary is no limit; float64 knows no larger integers exactly.
        top_k = float(min(params.top_k, 2**53))
        self.draw = GREEDY_DRAW if self.greedy else (params.temperature, top_k, params.top_p, params.min_p, 0.0)
        self.history = History(sequence) if self.penalised else None


class Asked:
    """What rows ask for together. While the same rows come it stays, and a step costs what changes with it.

    Attributes:
        wishes: row by row.
        altered: rows whose logits are changed in every step.
        drawn: rows that are drawn at random.
        told: rows that want logprobs.
    """

    __slots__ = ("_bounded", "_draws", "_streams", "altered", "drawn", "rows", "told", "wishes")

    def __init__(self, rows: ReadOnlyList[Row], wishes: list[Wishes]) -> None:
        self.rows = rows
        self.wishes = wishes
        self.altered = [index for index, wish in enumerate(wishes) if wish.biased or wish.penalised]
        self._bounded = [index for index, wish in enumerate(wishes) if wish.bounded]
        self.drawn = [index for index, wish in enumerate(wishes) if not wish.greedy]
        self._streams = [(index, stream(wishes[index].seed, rows[index].choice)) for index in self.drawn]
        self.told = [index for index, wish in enumerate(wishes) if wish.params.logprobs is not None]
        self._draws: Draws = np.array([wish.draw for wish in wishes], dtype=np.float64).reshape(-1, 5)

    def altered_now(self, masked: Collection[int]) -> list[int]:
        """Rows whose logits are changed in this step, those with masks among them."""
        if not masked and not self._bounded:
            return self.altered
        banned = [i for i in self._bounded if self.rows[i].sequence.generated < self.wishes[i].bounded]
        return sorted({*self.altered, *masked, *banned})

    def draws(self) -> Draws:
        """How the native sampler shall choose in this step; valid until the next."""
        for index, state in self._streams:
            self._draws[index, 4] = uniform_at(state, len(self.rows[index].sequence.tokens))
        return self._draws
