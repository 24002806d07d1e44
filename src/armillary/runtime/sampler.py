"""The sampler: from rows of logits to tokens, all rows together, doing only what some row asks for.

A row's token depends on its own logits, parameters and history alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ReadOnlyList
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from armillary.core.request import Sequence
from armillary.core.step import OwnFault
from armillary.runtime.logprobs import token_logprobs
from armillary.runtime.native_sampler import GREEDY_DRAW, NONE_LEFT, NOT_FINITE, Draws, NativeSampler, Scores
from armillary.runtime.sampling import SamplingParams, TokenLogprobs
from armillary.runtime.threads import use_threads
from armillary.runtime.wishes import Asked, Row, Wishes, uniform

RUN = 512
"""Vocabulary entries summed at once when drawing."""
FIRST_CANDIDATES = 256
"""Most probable tokens looked at first for top-p; the rest only where these do not reach p."""

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
        natively: the native sampler to choose with, in a fraction of the time; None chooses with torch. Both draw the
            same tokens but where rounding decides.
        threads: how many torch computes with; None leaves that to whoever calls.
    """

    def __init__(self, natively: NativeSampler | None = None, threads: int | None = None) -> None:
        self._wishes: dict[int, Wishes] = {}
        self._salt = secrets.randbits(64)
        self._native = natively
        self._threads = threads
        self._asked: Asked | None = None

    def forget(self, uids: Iterable[int]) -> None:
        """Drop what is kept about sequences that have ended."""
        for uid in uids:
            self._wishes.pop(uid, None)

    def sample(
        self, logits: Scores, rows: ReadOnlyList[Row], masks: Mapping[int, Tensor | OwnFault] | None = None
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
            tokens = _choose(torch.from_numpy(logits), rows, [None] * len(rows))
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

    @torch.inference_mode()
    def _choose_altered(
        self,
        logits: Scores,
        asked: Asked,
        altered: list[int],
        masks: Mapping[int, Tensor | OwnFault],
        draws: Draws | None,
        tokens: list[int],
        failures: dict[int, str],
    ) -> None:
        """Choose anew, into `tokens`, for rows whose logits are not those of the model."""
        use_threads(self._threads)
        for index, mask in masks.items():
            if isinstance(mask, OwnFault):
                failures.setdefault(index, mask)
        altered = [index for index in altered if index not in failures]
        if not altered:
            return
        few, own = [asked.rows[index] for index in altered], [asked.wishes[index] for index in altered]
        work = torch.from_numpy(logits[altered])
        _add_biases(work, own)
        _penalise(work, few, own)
        _ban_stops(work, few, own)
        _obey(work, [masks.get(index) for index in altered] if masks else [])
        if self._native is None or draws is None:
            chosen = _choose(work, few, own)
        else:
            chosen = self._native.choose(work.numpy(), draws[altered])
        for index, token in zip(altered, chosen, strict=True):
            tokens[index] = token
            if token < 0:
                failures[index] = OwnFault(_RULED_OUT if token == NONE_LEFT else _TOO_LARGE)

    def token_logprobs(
        self, logits: Scores, tokens: ReadOnlyList[int], counts: ReadOnlyList[int], rows: list[int] | None = None
    ) -> list[TokenLogprobs]:
        """What the model thought of these tokens (`armillary.runtime.logprobs.token_logprobs`).

        Args:
            rows: the rows of logits that the tokens belong to; None: all of them.
        """
        if self._native is not None:
            return self._native.token_logprobs(logits, range(len(logits)) if rows is None else rows, tokens, counts)
        if rows is not None and len(rows) < len(logits):
            logits = logits[rows]
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


@torch.inference_mode()
def _choose(work: Tensor, rows: ReadOnlyList[Row], wishes: ReadOnlyList[Wishes | None]) -> list[int]:
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


def _add_biases(work: Tensor, wishes: list[Wishes]) -> None:
    """Add each row's logit_bias, in place."""
    for index, wish in enumerate(wishes):
        if wish.biased:
            bias = wish.params.logit_bias
            work[index].index_add_(0, torch.tensor(list(bias)), torch.tensor(list(bias.values()), dtype=work.dtype))


def _penalise(work: Tensor, rows: list[Row], wishes: list[Wishes]) -> None:
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


def _ban_stops(work: Tensor, rows: list[Row], wishes: list[Wishes]) -> None:
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
