"""The sampler against the processors of transformers, and its promises about seeds and neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers.generation.logits_process as oracle

from armillary.core.request import Request, Sequence
from armillary.errors import ArmillaryError, Code
from armillary.kernels import native
from armillary.runtime import sampler as module
from armillary.runtime.native_sampler import NativeSampler
from armillary.runtime.sampling import GREEDY, SamplingParams, check_vocabulary
from armillary.runtime.torch_sampler import _draw, _floors
from armillary.runtime.wishes import Row, uniform

VOCAB = 700
_UIDS = iter(range(10**9))
_PATH: list[str | None] = [None]


def Sampler() -> module.Sampler:
    """By torch, or by the native kernels: the rules are the same."""
    return module.Sampler(None if _PATH[0] is None else NativeSampler(_PATH[0]))


@pytest.fixture(params=["torch", "native"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    path = None if request.param == "torch" else native.choose()
    if request.param == "native" and path is None:
        pytest.skip("the native kernels are not built")
    _PATH[0] = path
    yield
    _PATH[0] = None


def sequence(
    params: SamplingParams | None, prompt: tuple[int, ...] = (1, 2, 3), answer: tuple[int, ...] = (), **fields: Any
) -> Sequence:
    uid = next(_UIDS)
    made = Sequence(Request(f"r{uid}", prompt, 50, sampling=params, **fields), 0, uid, 0.0)
    made.tokens += answer
    return made


def logits(rows: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def sample(scores: torch.Tensor, *sequences: Sequence) -> list[int]:
    return Sampler().sample(scores.numpy(), [Row(s, 0) for s in sequences]).tokens


def allowed(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Which tokens our filters leave, for rows that all have the same parameters."""
    work = (scores - scores.amax(1, keepdim=True)) / params.temperature
    return work >= _floors(work, [params] * len(work))[:, None]


FILTERS = [
    {"top_k": 1}, {"top_k": 40}, {"top_k": VOCAB + 5}, {"top_p": 0.1}, {"top_p": 0.9}, {"top_p": 0.999},
    {"min_p": 0.05}, {"min_p": 1.0}, {"top_k": 50, "top_p": 0.8}, {"top_p": 0.95, "min_p": 0.01},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.1, "temperature": 0.7}, {"top_p": 0.5, "temperature": 1.9},
]  # fmt: skip


@pytest.mark.parametrize("fields", FILTERS, ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
def test_filters_leave_the_tokens_that_transformers_leaves(fields: dict[str, Any], scale: float) -> None:
    params = SamplingParams(**fields)
    scores = logits(8, scale=scale)
    wanted = oracle.TemperatureLogitsWarper(params.temperature)(None, scores.clone())
    if params.top_k:
        wanted = oracle.TopKLogitsWarper(params.top_k)(None, wanted)
    if params.top_p < 1:
        wanted = oracle.TopPLogitsWarper(params.top_p)(None, wanted)
    if params.min_p:
        wanted = oracle.MinPLogitsWarper(params.min_p)(None, wanted)
    got, kept = allowed(scores, params), wanted > -torch.inf
    # Their cumulative sums are in float32, so a token at the very edge may fall on the other side.
    assert (got != kept).sum(1).max() <= 1
    assert ((got != kept).sum() <= 2) and got.any(1).all()


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    scores, prompt, answer = logits(1, seed=4), (5, 9, 9, 600), (17, 5)
    wanted = oracle.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[*prompt, *answer]]), scores.clone())
    made = sequence(SamplingParams(temperature=0, repetition_penalty=penalty), prompt, answer)
    assert sample(scores, made) == wanted.argmax(1).tolist()
    best = int(scores.argmax())
    banned = sequence(SamplingParams(temperature=0, repetition_penalty=100.0), (best,))
    assert sample(scores, banned) == [scores.topk(2).indices[0, 1].item()]


def penalised(params: SamplingParams, made: Sequence, scores: torch.Tensor) -> torch.Tensor:
    """All altered logits of one row, read out token by token through a forced comparison."""
    work = scores.numpy().copy()
    wishes = Sampler()._wishes_of(made)
    module._add_biases(work, [wishes])
    module._penalise(work, [Row(made, 0)], [wishes])
    module._ban_stops(work, [Row(made, 0)], [wishes])
    return torch.from_numpy(work)


def test_every_penalised_logit_is_right() -> None:
    params = SamplingParams(
        repetition_penalty=1.4, presence_penalty=0.6, frequency_penalty=-0.3, logit_bias={7: 2.5, 17: -1}
    )
    prompt, answer = (5, 9, 9, 17), (17, 5, 17, 40)
    scores = logits(1, seed=5)
    got = penalised(params, sequence(params, prompt, answer), scores)
    wanted = oracle.SequenceBiasLogitsProcessor([[[7], 2.5], [[17], -1.0]])(torch.tensor([[1]]), scores.clone())
    wanted = oracle.RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([[*prompt, *answer]]), wanted)
    for token in set(answer):
        wanted[0, token] -= -0.3 * answer.count(token) + 0.6
    torch.testing.assert_close(got, wanted)


def test_counts_follow_a_growing_sequence() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=2.0)
    sampler, made = Sampler(), sequence(params)
    scores = torch.zeros(1, VOCAB)
    seen = []
    for _ in range(200):  # more than the room that the history begins with
        token = sampler.sample(scores.numpy(), [Row(made, 0)]).tokens[0]
        seen.append(token)
        made.tokens.append(token)
    assert seen == list(range(200))
    made.tokens += [300] * 3
    fresh = Sampler().sample(scores.numpy(), [Row(made, 0)]).tokens
    assert sampler.sample(scores.numpy(), [Row(made, 0)]).tokens == fresh == [200]


def test_stop_tokens_wait_for_min_tokens() -> None:
    scores = torch.zeros(1, VOCAB)
    scores[0, [4, 6]] = torch.tensor([9.0, 8.0])
    fields: dict[str, Any] = {"stop_ids": frozenset({4}), "min_tokens": 2}
    assert sample(scores, sequence(GREEDY, answer=(8,), **fields)) == [6]
    assert sample(scores, sequence(GREEDY, answer=(8, 8), **fields)) == [4]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    scores = torch.zeros(3, VOCAB)
    scores[1, [650, 90, 333]] = 5.0
    scores[2, VOCAB - 1] = 1.0
    assert sample(scores, *(sequence(GREEDY) for _ in range(3))) == [0, 90, VOCAB - 1]
    # The altered path too.
    biased = SamplingParams(temperature=0, logit_bias={1: -1.0})
    assert sample(scores, *(sequence(biased) for _ in range(3))) == [0, 90, VOCAB - 1]


def test_bias_forces_and_forbids() -> None:
    scores = logits(2, seed=8)
    best = scores.argmax(1).tolist()
    forced = SamplingParams(temperature=1.0, seed=1, logit_bias={123: 100})
    forbidden = SamplingParams(temperature=0, logit_bias={best[1]: -100})
    tokens = sample(scores, sequence(forced), sequence(forbidden))
    assert tokens[0] == 123 and tokens[1] != best[1]


MIXED = [
    SamplingParams(temperature=1.0, seed=1), GREEDY, SamplingParams(temperature=0.7, seed=2, top_k=20, logprobs=2),
    SamplingParams(temperature=1.3, seed=3, top_p=0.9, repetition_penalty=1.2),
    SamplingParams(temperature=0, logprobs=20),
    SamplingParams(temperature=2.0, seed=4, min_p=0.02, presence_penalty=1.0, logit_bias={3: 4.0}),
    SamplingParams(temperature=1.0, seed=1, top_p=0.9999), SamplingParams(temperature=0.01, seed=9),
]  # fmt: skip


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    scores = logits(len(MIXED), seed=2, scale=1.0)
    made = [sequence(params, answer=(5, 6)) for params in MIXED]
    together = Sampler().sample(scores.numpy(), [Row(s, 0) for s in made])
    assert together.details is not None and not together.failures
    for index, one in enumerate(made):
        alone = Sampler().sample(scores[index : index + 1].numpy(), [Row(one, 0)])
        assert alone.tokens == [together.tokens[index]]
        assert (alone.details[0] if alone.details else None) == together.details[index]


def test_rows_that_come_again_are_chosen_for_as_if_they_were_new() -> None:
    """What rows ask for is kept while they come again; what changes from token to token must not be."""
    fields: dict[str, Any] = {"stop_ids": frozenset({4, 9}), "min_tokens": 3}
    made = [sequence(params, **(fields if index % 2 else {})) for index, params in enumerate([*MIXED, *MIXED])]
    rows = tuple(Row(one, index % 3) for index, one in enumerate(made))
    kept = Sampler()
    for step in range(6):
        scores = logits(len(rows), seed=100 + step, scale=0.5)
        scores[:, [4, 9]] += 4.0  # stop tokens, as long as they are not banned
        masks: dict[int, Any] = {step: np.arange(VOCAB) % 7 == step} if step % 2 else {}
        found = kept.sample(scores.numpy(), rows, masks)
        fresh = Sampler().sample(scores.numpy(), list(rows), masks)
        assert (found.tokens, found.details, found.failures) == (fresh.tokens, fresh.details, fresh.failures)
        for one, token in zip(made, found.tokens, strict=True):
            one.tokens.append(token)
    swapped = kept.sample(scores.numpy(), rows[::-1])
    assert swapped.tokens == Sampler().sample(scores.numpy(), rows[::-1]).tokens


def test_draws_follow_seed_choice_and_position() -> None:
    scores = torch.zeros(1, VOCAB)

    def draw(seed: int, choice: int, answer: int) -> int:
        made = sequence(SamplingParams(seed=seed), answer=(1,) * answer)
        return Sampler().sample(scores.numpy(), [Row(made, choice)]).tokens[0]

    assert draw(1, 0, 0) == draw(1, 0, 0)
    assert len({draw(seed, choice, answer) for seed in range(4) for choice in range(4) for answer in range(4)}) > 55
    unset = {sample(scores, sequence(SamplingParams()))[0] for _ in range(20)}
    assert len(unset) > 10


def test_uniform_numbers_are_uniform() -> None:
    numbers = sorted(
        uniform(seed, choice, position) for seed in range(10) for choice in range(10) for position in range(100)
    )
    assert numbers[0] >= 0 and numbers[-1] < 1
    # Kolmogorov-Smirnov at a level of one in a million.
    distance = max(abs(number - index / len(numbers)) for index, number in enumerate(numbers))
    assert distance < 2.7 / math.sqrt(len(numbers))


def test_draws_have_the_model_s_odds() -> None:
    scores = logits(1, seed=3, scale=2.0)
    count = 20_000
    draws = [(index + 0.5) / count for index in range(count)]
    tokens = torch.tensor(_draw(scores.repeat(count, 1) - scores.max(), None, draws))
    shares = torch.bincount(tokens, minlength=VOCAB) / count
    assert (shares - scores.softmax(1)[0]).abs().max() < 2 / count


def test_a_draw_at_either_end_takes_a_possible_token() -> None:
    scores = torch.full((2, VOCAB), -torch.inf)
    scores[:, 100:103] = 0.0
    assert _draw(scores, None, [0.0, 1.0 - 2**-53]) == [100, 102]


def test_rows_that_are_not_finite_fail_alone() -> None:
    scores = logits(3)
    scores[1, 7] = torch.nan
    params = SamplingParams(seed=1, logprobs=1)
    sampled = Sampler().sample(scores.numpy(), [Row(sequence(params), 0) for _ in range(3)])
    assert list(sampled.failures) == [1] and sampled.details is not None
    assert sampled.details[1] is None and sampled.details[2] is not None
    banned = sequence(GREEDY, stop_ids=frozenset(range(VOCAB)), min_tokens=5)
    sampled = Sampler().sample(scores[2:].numpy(), [Row(banned, 0)])
    assert "no token is left" in sampled.failures[0]


def test_logprobs_are_those_of_the_model_itself() -> None:
    scores = logits(1, seed=6)
    params = SamplingParams(temperature=0.3, seed=5, logit_bias={9: 50.0}, logprobs=4, top_k=3)
    sampled = Sampler().sample(scores.numpy(), [Row(sequence(params), 0)])
    assert sampled.details is not None and sampled.details[0] is not None
    detail, raw = sampled.details[0], scores.log_softmax(1)[0]
    assert sampled.tokens == [9] and detail.logprob == pytest.approx(raw[9].item(), abs=1e-6)
    assert [token for token, _ in detail.top] == raw.topk(4).indices.tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", math.nan), ("temperature", "1"), ("top_p", 0.0),
        ("top_p", 1.01), ("top_k", -2), ("top_k", 1.5), ("min_p", 1.1), ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5), ("frequency_penalty", math.inf), ("logit_bias", {1: 101}), ("logit_bias", {-1: 1}),
        ("logit_bias", {"a": 1}), ("logit_bias", [1]), ("seed", 2**64), ("seed", True), ("logprobs", 21),
        ("prompt_logprobs", -1), ("stop", ("",)), ("stop", ("x" * 2000,)), ("stop", tuple("abcdefghijklmnopqrs")),
        ("stop", 5), ("stop_token_ids", (-1,)), ("min_tokens", -1), ("max_tokens", 0), ("n", 0), ("n", 129),
        ("ignore_eos", 1),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ArmillaryError) as caught:
        SamplingParams(**{field: value})
    assert (caught.value.code, caught.value.param) == (Code.INVALID_REQUEST, field)
    assert "must be" in caught.value.message and "given" in caught.value.message


def test_parameters_that_contradict_each_other_or_the_model_are_refused() -> None:
    with pytest.raises(ArmillaryError, match="min_tokens must be at most max_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(ArmillaryError, match="logit_bias"):
        check_vocabulary(SamplingParams(logit_bias={10: 1}), 10)
    check_vocabulary(SamplingParams(logit_bias={9: 1}, stop_token_ids=(0,)), 10)


def test_what_clients_write_for_nothing_is_nothing() -> None:
    nothing: dict[str, Any] = {"top_k": -1, "stop": None, "logit_bias": None, "stop_token_ids": None}
    assert SamplingParams(**nothing) == SamplingParams()
    text: Any = "end"
    assert SamplingParams(stop=text).stop == ("end",)
