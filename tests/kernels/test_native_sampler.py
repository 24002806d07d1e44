"""The native sampler against the torch one: the same rules, the same tokens, on every path of this processor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from armillary.runtime import torch_sampler
from armillary.runtime.sampling import SamplingParams

native: Any = pytest.importorskip("armillary.kernels._native", reason="the native kernels are not built")

PATHS: list[str] = native.paths()
FILTERS: list[dict[str, Any]] = [
    {}, {"top_k": 1}, {"top_k": 40}, {"top_k": 2}, {"top_k": 700}, {"top_k": 10**9}, {"top_p": 0.1}, {"top_p": 0.9},
    {"top_p": 1e-9}, {"top_p": 1 - 1e-12}, {"min_p": 0.05}, {"min_p": 1.0}, {"min_p": 1e-300},
    {"top_k": 50, "top_p": 0.8}, {"top_p": 0.95, "min_p": 0.01}, {"top_k": 30, "top_p": 0.9, "min_p": 0.1},
]  # fmt: skip

pytestmark = pytest.mark.parametrize("path", PATHS)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def choose(path: str, scores: torch.Tensor, params: list[SamplingParams], uniforms: list[float]) -> list[int]:
    draws = np.array(
        [(p.temperature, p.top_k, p.top_p, p.min_p, u) for p, u in zip(params, uniforms, strict=True)]
    ).reshape(-1, 5)
    tokens = np.empty(len(params), dtype=np.int64)
    native.Sampler(path, native.Team(1)).choose(scores, np.arange(len(params)), draws, tokens)
    return tokens.tolist()


def wanted(scores: torch.Tensor, params: list[SamplingParams], uniforms: list[float]) -> list[int]:
    """What the torch sampler draws, all temperatures above 0."""
    work = (scores - scores.amax(1, keepdim=True)) / torch.tensor([[p.temperature] for p in params])
    return torch_sampler._draw(work, torch_sampler._floors(work, params), uniforms)


def rows_of_all_kinds(vocab: int, least: float = 1e-5) -> torch.Tensor:
    """Rows of every shape that a model or a mask may leave, the flattest of them with logits `least` apart."""
    kinds = [draw(vocab, seed=1, scale=scale) for scale in (0.0, least, 0.3, 1.0, 3.0, 20.0)]
    coarse = (draw(vocab, seed=2) * 2).round() / 2  # many ties
    masked = draw(vocab, seed=3, scale=2.0).masked_fill(draw(vocab, seed=4) > -1.0, -torch.inf)
    one = torch.full((vocab,), -torch.inf)
    one[vocab // 2] = 3.0
    peaked = draw(vocab, seed=5)
    peaked[-1] = 30.0
    same = masked.clone()
    same[masked > -torch.inf] = 2.5
    if not bool((masked > -torch.inf).any()):
        masked, same = one, one
    ramp = torch.linspace(-60, 0, vocab)
    return torch.stack([*kinds, coarse, masked, one, peaked, same, ramp, ramp.flip(0)])


@pytest.mark.parametrize("fields", FILTERS, ids=str)
@pytest.mark.parametrize("vocab", [1, 2, 17, 513, 1024])
def test_tokens_are_those_of_the_torch_sampler(path: str, vocab: int, fields: dict[str, Any]) -> None:
    scores = rows_of_all_kinds(vocab)
    numbers = np.random.default_rng(vocab)
    for temperature in (1.0, 0.7, 1.9):
        params = [SamplingParams(temperature=temperature, **fields)] * len(scores)
        for _ in range(3):
            uniforms = numbers.random(len(scores)).tolist()
            assert choose(path, scores, params, uniforms) == wanted(scores, params, uniforms)


@pytest.mark.parametrize("fields", [*FILTERS, {"top_k": 5000}, {"top_k": 100_000}], ids=str)
def test_tokens_of_a_large_vocabulary_are_those_of_the_torch_sampler(path: str, fields: dict[str, Any]) -> None:
    # So many tokens with logits 1e-5 apart share a few odds, and where those end is a matter of the last bit of exp.
    scores = rows_of_all_kinds(151_936, least=0.1)
    params = [SamplingParams(temperature=0.9, **fields)] * len(scores)
    uniforms = np.random.default_rng(5).random(len(scores)).tolist()
    assert choose(path, scores, params, uniforms) == wanted(scores, params, uniforms)


def test_what_may_be_drawn_is_what_the_torch_sampler_leaves(path: str) -> None:
    """All tokens that evenly spread numbers reach, so that a threshold one token off is seen."""
    scores = rows_of_all_kinds(60)
    for fields in FILTERS:
        params = SamplingParams(temperature=2.0 if len(fields) < 2 else 1.0, **fields)
        for row in scores:
            uniforms = [(index + 0.5) / 400 for index in range(400)]
            repeated = row.repeat(400, 1)
            got = choose(path, repeated, [params] * 400, uniforms)
            assert got == wanted(repeated, [params] * 400, uniforms)


def test_every_parameter_beside_every_other(path: str) -> None:
    """A row's token is the same beside any rows, in any order, and over any number of threads."""
    numbers = np.random.default_rng(1)
    scores = torch.cat([rows_of_all_kinds(5000), draw(20, 5000, scale=4.0)])
    params = [
        SamplingParams(
            temperature=float(numbers.choice([0.0, 0.5, 1.0])), **FILTERS[int(numbers.integers(len(FILTERS)))]
        )
        for _ in scores
    ]
    uniforms = numbers.random(len(scores))
    draws = np.array([(p.temperature, p.top_k, p.top_p, p.min_p, u) for p, u in zip(params, uniforms, strict=True)])
    whole = np.empty(len(scores), dtype=np.int64)
    native.Sampler(path, native.Team(1)).choose(scores, np.arange(len(scores)), draws, whole)
    for threads in (1, 2, 3):
        sampler = native.Sampler(path, native.Team(threads))
        order = numbers.permutation(len(scores))
        tokens = np.empty_like(whole)
        sampler.choose(scores, order, draws[order], tokens)
        assert (tokens == whole[order]).all()
        for row in range(len(scores)):
            sampler.choose(scores[row : row + 1], np.zeros(1, dtype=np.int64), draws[row : row + 1], tokens[:1])
            assert tokens[0] == whole[row]


def test_greedy_rows_take_the_first_of_equals_and_others_are_told(path: str) -> None:
    scores = torch.zeros(6, 700)
    scores[1, [650, 90, 333]] = 5.0
    scores[2] = -torch.inf
    scores[3, 699] = torch.nan
    scores[4, 3] = torch.inf
    scores[5, :-1] = -torch.inf
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(temperature=1e-60),
        SamplingParams(temperature=1e-40, top_k=1),
        SamplingParams(top_k=2),
        SamplingParams(top_p=0.5),
        SamplingParams(),
    ):
        tokens = choose(path, scores, [params] * 6, [0.0] * 6)
        assert tokens == [0, 90 if params.temperature < 1 or params.top_k else tokens[1], -1, -2, -2, 699], params


def test_draws_have_the_odds(path: str) -> None:
    scores, count = draw(1, 700, seed=3, scale=2.0), 20_000
    uniforms = [(index + 0.5) / count for index in range(count)]
    for fields in ({}, {"top_k": 50}, {"top_p": 0.8}, {"min_p": 0.02}):
        params = SamplingParams(**fields)
        tokens = torch.tensor(choose(path, scores.repeat(count, 1), [params] * count, uniforms))
        work = scores - scores.max()
        work[work < torch_sampler._floors(work, [params])[:, None]] = -torch.inf
        shares = torch.bincount(tokens, minlength=700) / count
        assert (shares - work.softmax(1)[0]).abs().max() < 2 / count


def test_a_draw_at_either_end_takes_a_possible_token(path: str) -> None:
    scores = torch.full((2, 700), -torch.inf)
    scores[:, 100:103] = 0.0
    for fields in ({}, {"top_k": 3}, {"top_p": 0.999}, {"min_p": 0.5}):
        params = [SamplingParams(**fields)] * 2
        assert choose(path, scores, params, [0.0, 1.0 - 2**-53]) == [100, 102]


@pytest.mark.parametrize("vocab", [2, 17, 1024, 151_936])
def test_logprobs_are_those_of_torch(path: str, vocab: int) -> None:
    scores = torch.cat([draw(4, vocab, scale=4.0), draw(1, vocab, scale=1e-3)])
    tokens = [0, vocab - 1, vocab // 2, 1, 0]
    tops = min(20, vocab)
    chosen, values = np.empty(5, dtype=np.float32), np.empty((5, tops), dtype=np.float32)
    ids = np.empty((5, tops), dtype=np.int64)
    native.Sampler(path, native.Team(2)).logprobs(scores, np.arange(5), np.array(tokens), chosen, values, ids)
    found = torch_sampler.token_logprobs(scores, tokens, [tops] * 5)
    for row, detail in enumerate(found):
        # Torch sums in float32; the last bit is that of the exact value below.
        assert chosen[row] == pytest.approx(detail.logprob, abs=1e-4)
        assert ids[row].tolist() == scores[row].topk(tops).indices.tolist() or vocab == 151_936
        np.testing.assert_allclose(values[row], [value for _, value in detail.top], atol=1e-4)
        exact = scores[row].double().log_softmax(0)
        assert chosen[row] == pytest.approx(float(exact[tokens[row]]), abs=1e-6, rel=1e-6)
        np.testing.assert_allclose(values[row], exact[torch.from_numpy(ids[row])].float(), atol=1e-6, rtol=1e-7)
    alone, empty = np.empty(1, dtype=np.float32), np.empty((1, 0), dtype=np.float32)
    for row, token in enumerate(tokens):
        native.Sampler(path, native.Team(1)).logprobs(
            scores[row : row + 1], np.array([0]), np.array([token]), alone, empty, np.empty((1, 0), dtype=np.int64)
        )
        assert alone[0] == chosen[row]


def test_logprobs_of_equals_and_of_what_is_not_finite(path: str) -> None:
    scores = torch.zeros(5, 100)
    scores[1, 7], scores[2, 7], scores[3] = torch.nan, torch.inf, -torch.inf
    scores[4, 2:] = -torch.inf
    chosen, values = np.empty(5, dtype=np.float32), np.empty((5, 4), dtype=np.float32)
    ids = np.empty((5, 4), dtype=np.int64)
    native.Sampler(path, native.Team(1)).logprobs(scores, np.arange(5), np.full(5, 9), chosen, values, ids)
    assert (ids == [0, 1, 2, 3]).all()
    assert chosen[0] == pytest.approx(-math.log(100)) and np.isnan(chosen[1:4]).all() and np.isnan(values[1:4]).all()
    assert chosen[4] == -math.inf and values[4, 2] == -math.inf


def test_what_does_not_fit_is_refused_by_name(path: str) -> None:
    sampler, scores = native.Sampler(path, native.Team(1)), torch.zeros(2, 10)
    rows, tokens = np.arange(2), np.zeros(2, dtype=np.int64)
    good = np.array([[1.0, 0, 1.0, 0, 0.5]] * 2)
    sampler.choose(scores, rows, good, tokens)
    sampler.choose(torch.zeros(0, 10), rows[:0], good[:0], tokens[:0])
    for column, value, words in [
        (0, -1.0, "temperature"), (0, math.nan, "temperature"), (1, -1, "top_k"), (2, 0.0, "top_p"), (2, 1.5, "top_p"),
        (3, 2.0, "min_p"), (4, 1.0, "uniform"), (4, math.nan, "uniform"),
    ]:  # fmt: skip
        bad = good.copy()
        bad[1, column] = value
        with pytest.raises(ValueError, match=words):
            sampler.choose(scores, rows, bad, tokens)
    with pytest.raises(ValueError, match="rows must be from 0 to 1, given 2"):
        sampler.choose(scores, rows + 1, good, tokens)
    with pytest.raises(ValueError, match="a column for each token"):
        sampler.choose(torch.zeros(2, 0), rows, good, tokens)
    with pytest.raises(ValueError, match="contiguous rows"):
        sampler.choose(torch.zeros(10, 2).t(), rows, good, tokens)
    with pytest.raises(ValueError, match="threads must be from 1 to 1024, given 0"):
        native.Team(0)
    with pytest.raises(ValueError, match="tokens must be from 0 to 9, given 10"):
        found = np.zeros(2, dtype=np.float32), np.zeros((2, 1), dtype=np.float32), np.zeros((2, 1), dtype=np.int64)
        sampler.logprobs(scores, rows, np.full(2, 10), *found)
