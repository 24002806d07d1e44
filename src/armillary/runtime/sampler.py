"""The sampler: from rows of logits to tokens, all rows together, doing only what some row asks for.

A row's token depends on its own logits, parameters and history alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ReadOnlyList
from dataclasses import dataclass

import numpy as np

from armillary.core.request import Sequence
from armillary.core.step import OwnFault
from armillary.runtime.grammar_masks import Allowed
from armillary.runtime.native_sampler import GREEDY_DRAW, NONE_LEFT, Draws, NativeSampler, Scores
from armillary.runtime.sampling import TokenLogprobs
from armillary.runtime.wishes import Asked, Row, Wishes

_NO_LOGITS = "the model computed no finite logits for this sequence"
_RULED_OUT = "no token is left to choose: all are ruled out by this request's parameters"
_TOO_LARGE = "no token can be chosen: this request's parameters make logits infinite"


@dataclass(slots=True)
class Sampled:
    """The tokens chosen, row by row; `details` as `StepResult` has them; `failures` maps a row to why it has none."""

    tokens: list[int]
    details: list[TokenLogprobs | None] | None
    failures: dict[int, str]


class Sampler:
    """Chooses tokens. Keeps, per sequence uid, what is costly to derive again; `forget` drops it.

    Args:
        natively: the native sampler to choose with, in a fraction of the time; None chooses with torch
            (`armillary.runtime.torch_sampler`). Both draw the same tokens but where rounding decides.
    """

    def __init__(self, natively: NativeSampler | None = None) -> None:
        self._wishes: dict[int, Wishes] = {}
        self._salt = secrets.randbits(64)
        self._native = natively
        self._asked: Asked | None = None

    def forget(self, uids: Iterable[int]) -> None:
        """Drop what is kept about sequences that have ended."""
        for uid in uids:
            self._wishes.pop(uid, None)

    def sample(
        self, logits: Scores, rows: ReadOnlyList[Row], masks: Mapping[int, Allowed | OwnFault] | None = None
    ) -> Sampled:
        """Choose a token for each row of logits, float32 [R, vocab]; logits are left as they are.

        Args:
            rows: at least one. What they ask for is kept for the next call with this very object, which nobody changes.
            masks: row -> the tokens that it may take, bool, of the vocabulary or its beginning; or why it fails.
        """
        masks = masks or {}
        asked = self._asked
        if asked is None or asked.rows is not rows:
            asked = self._asked = Asked(rows, [self._wishes_of(row.sequence) for row in rows])
        altered = asked.altered_now(masks)
        if self._native is None:
            # Drawing overwrites logits, so these rows are copied as well.
            altered = sorted({*altered, *asked.drawn})
            draws = None
            tokens = _by_torch(logits, rows, [None] * len(rows))
        else:
            draws = first = asked.draws()
            if altered:
                first = draws.copy()
                first[altered] = GREEDY_DRAW  # only to see whether the model computed any logits
            tokens = self._native.choose(logits, first)
        failures: dict[int, str] = {}
        if min(tokens) < 0:
            failures = {index: _NO_LOGITS for index, token in enumerate(tokens) if token < 0}
        if altered:
            self._choose_altered(logits, asked, altered, masks, draws, tokens, failures)
        for index in failures:
            tokens[index] = 0
        return Sampled(tokens, self._details(logits, tokens, asked, failures) if asked.told else None, failures)

    def _choose_altered(
        self,
        logits: Scores,
        asked: Asked,
        altered: list[int],
        masks: Mapping[int, Allowed | OwnFault],
        draws: Draws | None,
        tokens: list[int],
        failures: dict[int, str],
    ) -> None:
        """Choose anew, into `tokens`, for rows whose logits are not those of the model."""
        for index, mask in masks.items():
            if isinstance(mask, OwnFault):
                failures.setdefault(index, mask)
        altered = [index for index in altered if index not in failures]
        if not altered:
            return
        few, own = [asked.rows[index] for index in altered], [asked.wishes[index] for index in altered]
        work = logits[altered]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what becomes infinite is told below
            _add_biases(work, own)
            _penalise(work, few, own)
        _ban_stops(work, few, own)
        _obey(work, [masks.get(index) for index in altered] if masks else [])
        if self._native is None or draws is None:
            chosen = _by_torch(work, few, own)
        else:
            chosen = self._native.choose(work, draws[altered])
        for index, token in zip(altered, chosen, strict=True):
            tokens[index] = token
            if token < 0:
                failures[index] = OwnFault(_RULED_OUT if token == NONE_LEFT else _TOO_LARGE)

    def token_logprobs(
        self, logits: Scores, tokens: ReadOnlyList[int], counts: ReadOnlyList[int], rows: list[int] | None = None
    ) -> list[TokenLogprobs]:
        """What the model thought of these tokens (`armillary.runtime.torch_sampler.token_logprobs`).

        Args:
            rows: the rows of logits that the tokens belong to; None: all of them.
        """
        if self._native is not None:
            return self._native.token_logprobs(logits, range(len(logits)) if rows is None else rows, tokens, counts)
        if rows is not None and len(rows) < len(logits):
            logits = logits[rows]
        import torch

        from armillary.runtime.torch_sampler import token_logprobs

        return token_logprobs(torch.from_numpy(logits), tokens, counts)

    def _wishes_of(self, sequence: Sequence) -> Wishes:
        wishes = self._wishes.get(sequence.uid)
        if wishes is None:
            wishes = self._wishes[sequence.uid] = Wishes(sequence, self._salt)
        return wishes

    def _details(
        self, logits: Scores, tokens: list[int], asked: Asked, failures: dict[int, str]
    ) -> list[TokenLogprobs | None] | None:
        """Logprobs for the rows that ask for them."""
        told = [index for index in asked.told if index not in failures]
        if not told:
            return None
        counts = [asked.wishes[index].params.logprobs or 0 for index in told]
        found = self.token_logprobs(logits, [tokens[index] for index in told], counts, told)
        details: list[TokenLogprobs | None] = [None] * len(tokens)
        for index, detail in zip(told, found, strict=True):
            details[index] = detail
        return details


def _by_torch(work: Scores, rows: ReadOnlyList[Row], wishes: ReadOnlyList[Wishes | None]) -> list[int]:
    """See `armillary.runtime.torch_sampler.choose`."""
    import torch

    from armillary.runtime.torch_sampler import choose

    return choose(torch.from_numpy(work), rows, wishes)


def _add_biases(work: Scores, wishes: list[Wishes]) -> None:
    """Add each row's logit_bias, in place."""
    for index, wish in enumerate(wishes):
        if wish.biased:
            bias = wish.params.logit_bias
            work[index, list(bias)] += np.array(list(bias.values()), dtype=np.float32)


def _penalise(work: Scores, rows: list[Row], wishes: list[Wishes]) -> None:
    """Apply repetition, presence and frequency penalties in place, at the tokens that occurred only."""
    vocab = work.shape[1]
    places, factors, fees = [], [], []
    for index, (row, wish) in enumerate(zip(rows, wishes, strict=True)):
        if wish.history is not None:
            ids, counts = wish.history.update(row.sequence.tokens)
            params = wish.params
            places.append(ids + index * vocab)
            factors.append(np.full(len(ids), params.repetition_penalty, dtype=np.float32))
            fees.append(params.frequency_penalty * counts + params.presence_penalty * (counts > 0))
    if not places:
        return
    place, factor = np.concatenate(places), np.concatenate(factors)
    flat = work.reshape(-1)
    found = flat[place]
    found = np.where(found > 0, found / factor, found * factor)
    flat[place] = found - np.concatenate(fees).astype(np.float32)


def _ban_stops(work: Scores, rows: list[Row], wishes: list[Wishes]) -> None:
    """Rule out stop tokens, in place, for rows that have not reached min_tokens."""
    for index, (row, wish) in enumerate(zip(rows, wishes, strict=True)):
        if row.sequence.generated < wish.bounded:
            work[index, wish.stop_ids] = -np.inf


def _obey(work: Scores, allowed: list[Allowed | OwnFault | None]) -> None:
    """Rule out, in place, what a row's grammar does not allow. Rows of the model beyond its vocabulary go too."""
    for index, mask in enumerate(allowed):
        if isinstance(mask, np.ndarray):
            size = len(mask)
            work[index, :size][~mask] = -np.inf
            work[index, size:] = -np.inf
