"""The sampler: from rows of logits to tokens, all rows together, doing only what some row asks for.

A row's token depends on its own logits, parameters and history alone. Randomness is a function of (seed,
choice, position), with no state that neighbours, preemption or chunking could move.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ReadOnlyList
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from armillary.core.request import Sequence
from armillary.core.step import OwnFault
from armillary.runtime.logprobs import token_logprobs
from armillary.runtime.native_sampler import GREEDY_DRAW, NONE_LEFT, NOT_FINITE, Draws, NativeSampler
from armillary.runtime.sampling import GREEDY, SamplingParams, TokenLogprobs

RUN = 512
"""Vocabulary entries summed at once when drawing."""
FIRST_CANDIDATES = 256
"""Most probable tokens looked at first for top-p; the rest only where these do not reach p."""

_MASK = (1 << 64) - 1
_RULED_OUT = "no token is left to choose: all are ruled out by this request's parameters"
_TOO_LARGE = "no token can be chosen: this request's parameters make logits infinite"


@dataclass(frozen=True, slots=True)
class Row:
    """One token to choose: for which sequence, and as which of its request's choices."""

    sequence: Sequence
    choice: int


@dataclass(slots=True)
class Sampled:
    """The tokens chosen, row by row; `details` as `StepResult` has them; `failures` maps a row to why it has none."""

    tokens: list[int]
    details: list[TokenLogprobs | None] | None
    failures: dict[int, str]


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) for this draw: three rounds of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    state = _mix((seed + 0x9E3779B97F4A7C15) & _MASK)
    state = _mix(state ^ _mix((choice + 0xBF58476D1CE4E5B9) & _MASK))
    state = _mix((state + (position + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return (state >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class _History:
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


class _Wishes:
    """A request's parameters, sorted once into what must be done for its rows."""

    __slots__ = ("biased", "bounded", "filtered", "greedy", "history", "params", "penalised", "seed", "stop_ids")

    def __init__(self, sequence: Sequence, salt: int) -> None:
        request = sequence.request
        params = request.sampling if isinstance(request.sampling, SamplingParams) else GREEDY
        self.params = params
        # A temperature that is 0 in float32 would divide 0 by 0.
        self.greedy = float(np.float32(params.temperature)) == 0
        self.seed = params.seed if params.seed is not None else _mix(salt ^ sequence.uid)
        self.stop_ids = sorted(request.stop_ids)
        self.bounded = request.min_tokens if self.stop_ids else 0
        self.biased = bool(params.logit_bias)
        self.penalised = params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        self.filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        self.history = _History(sequence) if self.penalised else None


class Sampler:
    """Chooses tokens. Keeps, per sequence uid, what is costly to derive again; `forget` drops it.

    Args:
        natively: the native sampler to choose with, in a fraction of the time; None chooses with torch. Both draw the
            same tokens but where rounding decides.
    """

    def __init__(self, natively: NativeSampler | None = None) -> None:
        self._wishes: dict[int, _Wishes] = {}
        self._salt = secrets.randbits(64)
        self._native = natively

    def forget(self, uids: Iterable[int]) -> None:
        """Drop what is kept about sequences that have ended."""
        for uid in uids:
            self._wishes.pop(uid, None)

    def sample(
        self, logits: Tensor, rows: ReadOnlyList[Row], masks: Mapping[int, Tensor | OwnFault] | None = None
    ) -> Sampled:
        """Choose a token for each row of logits, float32 [R, vocab]; logits are left as they are.

        Args:
            masks: row -> the tokens that it may take, bool, of the vocabulary or its beginning; or why it fails.
        """
        masks = masks or {}
        wishes = [self._wishes_of(row.sequence) for row in rows]
        altered = [
            index
            for index, (row, wish) in enumerate(zip(rows, wishes, strict=True))
            if wish.biased or wish.penalised or index in masks or row.sequence.generated < wish.bounded
        ]
        if self._native is None:
            # Drawing overwrites logits, so these rows are copied as well.
            drawn = [index for index, wish in enumerate(wishes) if not wish.greedy]
            altered = sorted({*altered, *drawn})
            tokens = _choose(logits, rows, [None] * len(rows))
        else:
            skip = set(altered)
            tokens = self._native.choose(
                logits, _draws(rows, [None if i in skip else wish for i, wish in enumerate(wishes)])
            )
        failures: dict[int, str] = {
            index: "the model computed no finite logits for this sequence"
            for index, token in enumerate(tokens)
            if token < 0
        }
        for index, mask in masks.items():
            if isinstance(mask, OwnFault):
                failures.setdefault(index, mask)
        altered = [index for index in altered if index not in failures]
        if altered:
            few, own = [rows[index] for index in altered], [wishes[index] for index in altered]
            work = logits.index_select(0, torch.tensor(altered))
            _add_biases(work, own)
            _penalise(work, few, own)
            _ban_stops(work, few, own)
            _obey(work, [masks.get(index) for index in altered] if masks else [])
            if self._native is None:
                chosen = _choose(work, few, own)
            else:
                chosen = self._native.choose(work, _draws(few, own))
            for index, token in zip(altered, chosen, strict=True):
                tokens[index] = token
                if token < 0:
                    failures[index] = OwnFault(_RULED_OUT if token == NONE_LEFT else _TOO_LARGE)
        for index in failures:
            tokens[index] = 0
        return Sampled(tokens, self._details(logits, tokens, wishes, failures), failures)

    def token_logprobs(
        self, logits: Tensor, tokens: ReadOnlyList[int], counts: ReadOnlyList[int], rows: list[int] | None = None
    ) -> list[TokenLogprobs]:
        """What the model thought of these tokens (`armillary.runtime.logprobs.token_logprobs`).

        Args:
            rows: the rows of logits that the tokens belong to; None: all of them.
        """
        if self._native is not None:
            return self._native.token_logprobs(logits, range(len(logits)) if rows is None else rows, tokens, counts)
        if rows is not None and len(rows) < len(logits):
            logits = logits.index_select(0, torch.tensor(rows))
        return token_logprobs(logits, tokens, counts)

    def _wishes_of(self, sequence: Sequence) -> _Wishes:
        wishes = self._wishes.get(sequence.uid)
        if wishes is None:
            wishes = self._wishes[sequence.uid] = _Wishes(sequence, self._salt)
        return wishes

    def _details(
        self, logits: Tensor, tokens: list[int], wishes: list[_Wishes], failures: dict[int, str]
    ) -> list[TokenLogprobs | None] | None:
        """Logprobs for the rows that ask for them."""
        asking = [
            (index, wish.params.logprobs)
            for index, wish in enumerate(wishes)
            if wish.params.logprobs is not None and index not in failures
        ]
        if not asking:
            return None
        indices = [index for index, _ in asking]
        counts = [count for _, count in asking]
        found = self.token_logprobs(logits, [tokens[index] for index in indices], counts, indices)
        details: list[TokenLogprobs | None] = [None] * len(wishes)
        for index, detail in zip(indices, found, strict=True):
            details[index] = detail
        return details


def _draws(rows: ReadOnlyList[Row], wishes: ReadOnlyList[_Wishes | None]) -> Draws:
    """How the native sampler shall choose; the largest logit for rows without wishes."""
    draws = []
    for row, wish in zip(rows, wishes, strict=True):
        if wish is None or wish.greedy:
            draws.append(GREEDY_DRAW)
            continue
        params = wish.params
        # Any number of tokens beyond the vocabulary is no limit; float64 knows no larger integers exactly.
        top_k = float(min(params.top_k, 2**53))
        number = uniform(wish.seed, row.choice, len(row.sequence.tokens))
        draws.append((params.temperature, top_k, params.top_p, params.min_p, number))
    return np.array(draws, dtype=np.float64).reshape(-1, 5)


def _choose(work: Tensor, rows: ReadOnlyList[Row], wishes: ReadOnlyList[_Wishes | None]) -> list[int]:
    """Tokens by torch, where work may be overwritten; NONE_LEFT and NOT_FINITE instead of a token.

    Rows without wishes take their largest logit, and are not overwritten.
    """
    peaks, best = work.max(dim=-1)
    tokens: list[int] = torch.where(
        torch.isfinite(peaks), best, torch.where(peaks == -torch.inf, NONE_LEFT, NOT_FINITE)
    ).tolist()
    drawn = [
        (index, row, wish)
        for index, (row, wish) in enumerate(zip(rows, wishes, strict=True))
        if wish is not None and not wish.greedy and tokens[index] >= 0
    ]
    if not drawn:
        return tokens
    if len(drawn) < len(rows):
        select = torch.tensor([index for index, _, _ in drawn])
        work, peaks = work.index_select(0, select), peaks.index_select(0, select)
    params = [wish.params for _, _, wish in drawn]
    temperatures = torch.tensor([p.temperature for p in params])
    # The most probable token gets 0, so that no temperature overflows.
    work.sub_(peaks[:, None]).div_(temperatures[:, None])
    numbers = [uniform(wish.seed, row.choice, len(row.sequence.tokens)) for _, row, wish in drawn]
    floors = _floors(work, params) if any(wish.filtered for _, _, wish in drawn) else None
    for (index, _, _), token in zip(drawn, _draw(work, floors, numbers), strict=True):
        tokens[index] = token
    return tokens


def _add_biases(work: Tensor, wishes: list[_Wishes]) -> None:
    """Add each row's logit_bias, in place."""
    for index, wish in enumerate(wishes):
        if wish.biased:
            bias = wish.params.logit_bias
            work[index].index_add_(0, torch.tensor(list(bias)), torch.tensor(list(bias.values()), dtype=work.dtype))


def _penalise(work: Tensor, rows: list[Row], wishes: list[_Wishes]) -> None:
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
    place = torch.from_numpy(np.concatenate(places))
    factor = torch.from_numpy(np.concatenate(factors))
    flat = work.view(-1)
    found = flat[place]
    found = torch.where(found > 0, found / factor, found * factor)
    flat[place] = found - torch.from_numpy(np.concatenate(fees).astype(np.float32))


def _ban_stops(work: Tensor, rows: list[Row], wishes: list[_Wishes]) -> None:
    """Rule out stop tokens, in place, for rows that have not reached min_tokens."""
    for index, (row, wish) in enumerate(zip(rows, wishes, strict=True)):
        if row.sequence.generated < wish.bounded:
            work[index, torch.tensor(wish.stop_ids)] = -torch.inf


def _obey(work: Tensor, allowed: list[Tensor | OwnFault | None]) -> None:
    """Rule out, in place, what a row's grammar does not allow. Rows of the model beyond its vocabulary go too."""
    for index, mask in enumerate(allowed):
        if isinstance(mask, Tensor):
            size = len(mask)
            work[index, :size].masked_fill_(~mask, -torch.inf)
            work[index, size:] = -torch.inf


def _floors(work: Tensor, params: list[SamplingParams]) -> Tensor:
    """The lowest scaled logit that each row may still draw; top-k, then top-p of what is left, then min-p.

    work [R, vocab]: logits over temperature, the largest 0. The rules are thresholds and not sets, so that
    tokens with equal logits are treated alike.
    """
    rows, vocab = work.shape
    floors = torch.full((rows,), -torch.inf)
    limited = [index for index, p in enumerate(params) if 0 < p.top_k < vocab]
    if limited:
        counts = torch.tensor([params[index].top_k for index in limited])
        best = torch.topk(work[torch.tensor(limited)], int(counts.max()), dim=-1).values
        floors[limited] = best.gather(1, counts[:, None] - 1)[:, 0]
    nucleus = [index for index, p in enumerate(params) if p.top_p < 1]
    size = FIRST_CANDIDATES
    if nucleus:
        part = work[torch.tensor(nucleus)]
        odds = torch.where(part >= floors[nucleus][:, None], part, -torch.inf).exp_()
        wanted = _total(odds) * torch.tensor([params[index].top_p for index in nucleus], dtype=torch.float64)
        pending = torch.arange(len(nucleus))
        while pending.numel():
            best = torch.topk(odds[pending], min(size, vocab), dim=-1).values
            before = best.cumsum(1, dtype=torch.float64) - best
            kept = (before < wanted[pending][:, None]).sum(dim=1)
            enough = (kept < best.shape[1]) | (best.shape[1] == vocab)
            done = pending[enough]
            lowest = best[enough].gather(1, kept[enough][:, None] - 1)[:, 0]
            for row, floor in zip(done.tolist(), _inverse_floor(part[done], odds[done], lowest), strict=True):
                floors[nucleus[row]] = max(float(floors[nucleus[row]]), floor)
            pending = pending[~enough]
            size *= 16
    shares = [p.min_p for p in params]
    if any(shares):
        floors = torch.maximum(floors, torch.tensor(shares, dtype=torch.float64).log().to(floors.dtype))
    return floors


def _inverse_floor(scaled: Tensor, odds: Tensor, lowest: Tensor) -> list[float]:
    """The smallest scaled logit whose odds are at least `lowest`: exactly, without inverting exp."""
    return torch.where(odds >= lowest[:, None], scaled, torch.inf).amin(dim=1).tolist()


def _total(odds: Tensor) -> Tensor:
    """Sum over the last axis in float64, of a shape that depends on the row's length alone."""
    return _runs(odds).sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)[:, -1]


def _runs(odds: Tensor) -> Tensor:
    """[R, vocab] -> [R, runs, RUN], padded with zeros."""
    missing = -odds.shape[1] % RUN
    if missing:
        odds = torch.nn.functional.pad(odds, (0, missing))
    return odds.view(odds.shape[0], -1, RUN)


def _draw(work: Tensor, floors: Tensor | None, draws: list[float]) -> list[int]:
    """Invert the cumulative distribution: first the run, then the token within it.

    work [R, vocab]: scaled logits, overwritten.
    """
    if floors is not None:
        work.masked_fill_(work < floors[:, None], -torch.inf)
    runs = _runs(work.exp_())
    ends = runs.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = torch.tensor(draws, dtype=torch.float64) * ends[:, -1]
    run = torch.searchsorted(ends, target[:, None], right=True).clamp_(max=runs.shape[1] - 1)
    before = torch.where(run > 0, ends.gather(1, (run - 1).clamp_(min=0)), 0.0)
    inside = runs.gather(1, run[:, :, None].expand(-1, -1, RUN))[:, 0].cumsum(dim=-1, dtype=torch.float64)
    # Below the run's end, so that rounding cannot lead past its last possible token.
    end = inside[:, -1:]
    rest = torch.minimum(target[:, None] - before, torch.nextafter(end, torch.zeros_like(end)))
    return (run * RUN + torch.searchsorted(inside, rest, right=True))[:, 0].tolist()
