"""Makes prompts of a wanted length: as token ids, or as text whose length in tokens the server has told us.

The tokenizer of a server that we drive from outside is unknown. `Calibration` holds what two short requests
reveal (tokens the server counts for a given number of words), so that lengths in tokens can be asked for by words.
The lengths that the server reports for each request are what the report states.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.measure.workload import Workload

WORDS = (
    "the of and to in is was for on that with as it be by at from or an are this which you one had not but all "
    "were when we there can more if no out so said what up its about into than them only other time new some could "
    "these two may then do first any my now such like our over man me even most made after also did many before must "
    "through back years where much your way well down should because each just those people how too little state good "
    "very make world still own see men work long get here between both life being under never day same another know "
    "while last might us great old year off come since against go came right used take three"
).split()


@dataclass(frozen=True)
class Calibration:
    """Prompt tokens that a server counts: `base` plus `per_word` times the number of words."""

    base: float = 0.0
    per_word: float = 1.0

    @staticmethod
    def fit(few_words: int, few_tokens: int, many_words: int, many_tokens: int) -> Calibration:
        """The line through two observations; one token a word where they make no sense."""
        slope = (many_tokens - few_tokens) / (many_words - few_words)
        if slope <= 0:
            return Calibration()
        return Calibration(few_tokens - slope * few_words, slope)

    def words(self, tokens: int) -> int:
        """How many words make a prompt of about `tokens` tokens, at least one."""
        return max(1, round((tokens - self.base) / self.per_word))


def _seed(*parts: object) -> int:
    # Not hash(): it differs from process to process.
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def words(count: int, *key: object) -> str:
    """`count` words that depend only on `key`; fewer words of one key are the beginning of more."""
    return " ".join(random.Random(_seed("words", *key)).choices(WORDS, k=count))


def _numbers(seed: int, count: int) -> NDArray[np.uint64]:
    """The first `count` outputs of splitmix64 (Steele, Lea and Flood 2014): the same with every version of numpy."""
    state = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


class Prompts:
    """The prompts of a workload: those it brings, else made up so that they share what it says they share.

    Args:
        seed: workloads alike with different seeds have nothing in common.
    """

    def __init__(self, workload: Workload, calibration: Calibration, seed: int) -> None:
        self._columns = workload.columns
        self._calibration = calibration
        self._seed = seed
        self._before = self._columns.turn_before() if self._columns.history is not None else None

    def history(self, row: int) -> int:
        """How many leading tokens of a row's prompt repeat its conversation."""
        return 0 if self._columns.history is None else int(self._columns.history[row])

    def text(self, row: int) -> str:
        """A row's prompt as text, but for the conversation that it repeats."""
        prompt, _ = self._columns.texts.get(row, (None, None))
        if prompt is not None:
            return prompt
        tokens = int(self._columns.prompt_tokens[row]) - self.history(row)
        left = self._calibration.words(tokens) if not self.history(row) else self._fraction(tokens)
        parts = []
        for name, length in self._columns.prefix(row):
            count = min(left, max(1, self._fraction(length)))
            parts.append(words(count, self._seed, "run", name))
            left -= count
        if left:
            parts.append(words(left, self._seed, "own", self._columns.id(row)))
        return " ".join(part for part in parts if part)

    def spoken(self, row: int, said: Sequence[str]) -> list[str]:
        """What was said before a row's turn, as far as its prompt repeats it: texts of user and model in turns.

        Args:
            said: all of the conversation so far, in turns.

        A history that leaves something out is one text, cut after as many words.
        """
        if self._before is None or not self.history(row):
            return []
        before = int(self._before[row])
        if self.history(row) >= self._columns.prompt_tokens[before] + self._columns.output_tokens[before]:
            return list(said)
        return [" ".join(" ".join(said).split()[: max(1, self._fraction(self.history(row)))])]

    def ids(self, row: int, vocab_size: int) -> list[int]:
        """A row's prompt as exactly `prompt_tokens` ids. Answers that it repeats are made up as well.

        Ids come from the middle four fifths of the vocabulary, since special tokens sit at its ends.
        """
        _, token_ids = self._columns.texts.get(row, (None, None))
        if token_ids is not None:
            return list(token_ids)
        low, high = vocab_size // 10, max(vocab_size // 10 + 1, vocab_size - vocab_size // 10)
        ids: list[int] = []
        for kind, name, tokens in self.parts(row):
            ids += (low + _numbers(_seed("ids", self._seed, kind, name), tokens) % np.uint64(high - low)).tolist()
        return ids

    def parts(self, row: int) -> list[tuple[str, str, int]]:
        """What a row's prompt consists of: (kind, name, tokens), where equal kind and name mean the same tokens.

        Kinds are `run` (shared), `own` (a request's) and `answer` (what was generated for a request).
        """
        rows = [row]
        while self._before is not None and self.history(rows[-1]):
            rows.append(int(self._before[rows[-1]]))
        parts: list[tuple[str, str, int]] = []
        for place in reversed(rows):
            parts = _cut(parts, self.history(place)) + [("run", *run) for run in self._columns.prefix(place)]
            own = int(self._columns.prompt_tokens[place]) - sum(tokens for _, _, tokens in parts)
            if own:
                parts.append(("own", self._columns.id(place), own))
            if place != row:
                parts.append(("answer", self._columns.id(place), int(self._columns.output_tokens[place])))
        return parts

    def _fraction(self, tokens: int) -> int:
        """How many words add so many tokens to a text."""
        return max(1, round(tokens / self._calibration.per_word))


def _cut(parts: list[tuple[str, str, int]], tokens: int) -> list[tuple[str, str, int]]:
    """The beginning of `parts`."""
    kept = []
    for kind, name, length in parts:
        if tokens <= 0:
            break
        kept.append((kind, name, min(length, tokens)))
        tokens -= length
    return kept
