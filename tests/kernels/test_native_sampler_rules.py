"""The whole sampler, by torch and natively: all parameters together give the same tokens, logprobs and failures."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from armillary.core.request import Request, Sequence
from armillary.core.step import OwnFault
from armillary.kernels import native
from armillary.runtime.native_sampler import NativeSampler
from armillary.runtime.sampler import Sampler
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.wishes import Row

pytestmark = [
    pytest.mark.skipif(native.module() is None, reason="the native kernels are not built"),
    pytest.mark.parametrize("path", native.paths()),
]
_UIDS = itertools.count()


def random_row(numbers: np.random.Generator, vocab: int) -> tuple[Row, torch.Tensor, Any]:
    """A row with random parameters, its logits, and its mask or None."""

    def one(*values: Any) -> Any:
        return values[int(numbers.integers(len(values)))]

    uid = next(_UIDS)
    params = SamplingParams(
        temperature=one(0, 0, 0.3, 1, 2, 1e-60), top_k=one(0, 0, 1, 5, vocab), top_p=one(1, 1, 0.4, 0.95),
        min_p=one(0, 0, 0.1), repetition_penalty=one(1, 1, 1.3, 0.8), presence_penalty=one(0, 0, 1.5),
        frequency_penalty=one(0, 0, -0.7), logit_bias=one({}, {}, {vocab - 1: 4.0, 0: -2.5}), seed=uid,
        logprobs=one(None, None, 0, 3, 20),
    )  # fmt: skip
    stops = one(frozenset(), frozenset({0}), frozenset({vocab - 1}))
    request = Request(f"r{uid}", (0, vocab - 1), 50, sampling=params, stop_ids=stops, min_tokens=one(0, 9))
    made = Sequence(request, 0, uid, 0.0)
    made.tokens += numbers.integers(0, vocab, size=int(numbers.integers(0, 6))).tolist()
    scores = torch.from_numpy(numbers.standard_normal(vocab).astype(np.float32)) * one(0.0, 1.0, 5.0)
    kind = one("plain", "plain", "plain", "ties", "holes", "nan", "nothing", "infinite")
    if kind == "ties":
        scores = scores.round()
    elif kind == "holes":
        scores[torch.from_numpy(numbers.random(vocab) < 0.7)] = -torch.inf
    elif kind != "plain":
        scores[int(numbers.integers(vocab))] = {"nan": torch.nan, "nothing": -torch.inf, "infinite": torch.inf}[kind]
        if kind == "nothing":
            scores[:] = -torch.inf
    mask = one(None, None, numbers.random(vocab) < 0.6, OwnFault("as planned"))
    return Row(made, 0), scores, mask


@pytest.mark.parametrize("vocab", [2, 17, 1024])
def test_random_rows_with_random_parameters(path: str, vocab: int) -> None:
    numbers = np.random.default_rng(vocab)
    seen: set[str] = set()
    module = native.module()
    team = module.Team(2) if module else None
    for _ in range(12):
        made = [random_row(numbers, vocab) for _ in range(25)]
        rows, scores = [row for row, _, _ in made], torch.stack([one for _, one, _ in made])
        masks = {index: mask for index, (_, _, mask) in enumerate(made) if mask is not None}
        before = scores.clone()
        natively, by_torch = Sampler(NativeSampler(path, team)), Sampler()
        got, wanted = natively.sample(scores.numpy(), rows, masks), by_torch.sample(scores.numpy(), rows, masks)
        assert torch.equal(scores.nan_to_num(7.5), before.nan_to_num(7.5))
        assert got.tokens == wanted.tokens and got.failures == wanted.failures
        seen.update(got.failures.values())
        assert (got.details is None) == (wanted.details is None)
        for index, (mine, theirs) in enumerate(zip(got.details or [], wanted.details or [], strict=True)):
            assert (mine is None) == (theirs is None)
            if mine is None or theirs is None:
                continue
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
            assert [value for _, value in mine.top] == pytest.approx([value for _, value in theirs.top], abs=1e-5)
            # Among equals the lowest number comes first; torch promises no order.
            assert mine.top == sorted(mine.top, key=lambda pair: (-scores[index, pair[0]], pair[0]))
        for index, (row, one, mask) in enumerate(made):
            alone = Sampler(NativeSampler(path)).sample(one[None].numpy(), [row], {} if mask is None else {0: mask})
            assert alone.tokens == [got.tokens[index]]
            assert (None if alone.details is None else alone.details[0]) == (got.details and got.details[index])
    assert seen >= {"as planned", "the model computed no finite logits for this sequence"}


def test_parameters_that_make_logits_infinite_fail_alone(path: str) -> None:
    """Too small a repetition penalty is 0 in float32, and dividing by it has no token as its result."""
    params = SamplingParams(repetition_penalty=1e-60, seed=1)
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    rows = [
        Row(Sequence(Request(f"r{index}", (0, 1), 9, sampling=one), 0, index, 0.0), 0)
        for index, one in enumerate((params, SamplingParams(temperature=0)))
    ]
    for sampler in (Sampler(), Sampler(NativeSampler(path))):
        sampled = sampler.sample(scores.numpy(), rows)
        assert "make logits infinite" in sampled.failures[0] and isinstance(sampled.failures[0], OwnFault)
        assert sampled.tokens == [0, 2] and len(sampled.failures) == 1
