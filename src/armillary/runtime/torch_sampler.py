"""Choosing tokens by torch, and what a model thought of them, where there is no native sampler.

Draws the tokens that the native sampler draws, but where rounding decides.
"""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList

import torch
from torch import Tensor

from armillary.runtime.native_sampler import NONE_LEFT, NOT_FINITE
from armillary.runtime.sampling import MAX_LOGPROBS, SamplingParams, TokenLogprobs
from armillary.runtime.wishes import Row, Wishes, uniform

RUN = 512
"""Vocabulary entries summed at once when drawing."""
FIRST_CANDIDATES = 256
"""Most probable tokens looked at first for top-p; the rest only where these do not reach p."""


@torch.inference_mode()
def choose(work: Tensor, rows: ReadOnlyList[Row], wishes: ReadOnlyList[Wishes | None]) -> list[int]:
    """Tokens for rows of logits, float32 [R, vocab]; NONE_LEFT and NOT_FINITE instead of a token.

    Logits may be overwritten. Rows without wishes take their largest logit, and are not overwritten.
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


@torch.inference_mode()
def token_logprobs(logits: Tensor, tokens: ReadOnlyList[int], counts: ReadOnlyList[int]) -> list[TokenLogprobs]:
    """What each row's model thought of that row's token.

    logits float32 [R, vocab], untouched by penalties or temperature; `counts` says how many alternatives
    each row lists. A row's numbers do not depend on the other rows.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    if not any(counts):
        return [TokenLogprobs(value, []) for value in chosen]
    # Always the same count, so that the order among equals is the same whoever asks beside.
    values, ids = torch.topk(logprobs, min(MAX_LOGPROBS, logits.shape[1]), dim=-1)
    return [
        TokenLogprobs(value, list(zip(row_ids[:count], row_values[:count], strict=True)))
        for value, row_ids, row_values, count in zip(chosen, ids.tolist(), values.tolist(), counts, strict=True)
    ]


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
