"""The executor on hand-made steps: against a dense forward, with failures, prompt logprobs and forgetting."""

from __future__ import annotations

import pytest
import torch

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.request import FinishReason, Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import Entry, Event, Step
from armillary.models.checkpoint import load_decoder
from armillary.models.decoder import Decoder
from armillary.models.packed import PackedAttention, packed_positions
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.sampling import GREEDY, SamplingParams, TokenLogprobs
from families import VOCAB, write

BLOCK = 4


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("qwen3")
    return load_decoder(write("qwen3", folder, num_hidden_layers=2, tie_word_embeddings=False)).eval()


def ids(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def dense_logits(decoder: Decoder, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        lengths = [len(tokens)]
        attend = PackedAttention(decoder.spec, lengths)
        return decoder.logits(decoder(torch.tensor(tokens), packed_positions(lengths), attend))


def executor(decoder: Decoder, blocks: int = 64) -> TorchExecutor:
    return TorchExecutor(decoder, decoder.spec, blocks, BLOCK)


def placed(uid: int, prompt: tuple[int, ...], first: int, params: SamplingParams = GREEDY) -> Sequence:
    """A sequence whose blocks begin at `first`."""
    made = Sequence(Request(f"r{uid}", prompt, 20, sampling=params, n=params.n), 0, uid, 0.0)
    made.blocks = list(range(first, first + -(-(len(prompt) + 20) // BLOCK)))
    return made


def test_a_mixed_step_equals_dense_forwards(decoder: Decoder) -> None:
    runner = executor(decoder)
    params = SamplingParams(temperature=0, logprobs=20)
    one, two = placed(1, ids(30, 1), 0, params), placed(2, ids(19, 2), 30, params)
    runner.run(Step(0, [Entry(one, 0, 29, 0)]))
    result = runner.run(Step(1, [Entry(two, 0, 19, 1), Entry(one, 29, 1, 1)]))
    assert result.details is not None and result.failures is None
    for row, sequence in enumerate((two, one)):
        wanted = dense_logits(decoder, tuple(sequence.tokens))[-1].log_softmax(0)
        detail = result.details[row]
        assert isinstance(detail, TokenLogprobs)
        assert result.tokens[row] == wanted.argmax()
        torch.testing.assert_close(
            torch.tensor([value for _, value in detail.top]), wanted.topk(20).values, atol=1e-5, rtol=0
        )


def test_a_step_without_rows_samples_nothing(decoder: Decoder) -> None:
    result = executor(decoder).run(Step(0, [Entry(placed(1, ids(9), 0), 0, 5, 0)]))
    assert (result.tokens, result.details, result.prompt_details, result.failures) == ([], None, None, None)


def test_choices_of_one_prompt_differ_by_their_index(decoder: Decoder) -> None:
    params = SamplingParams(temperature=2.0, seed=3, n=8)
    result = executor(decoder).run(Step(0, [Entry(placed(1, ids(9), 0, params), 0, 9, 8)]))
    assert len(result.tokens) == 8 and len(set(result.tokens)) > 4


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_prompt_logprobs_do_not_depend_on_chunks(decoder: Decoder, chunk: int) -> None:
    prompt = ids(33, 5)
    params = SamplingParams(temperature=0, prompt_logprobs=2)
    runner, sequence = executor(decoder), placed(1, prompt, 0, params)
    delivered = []
    for start in range(0, len(prompt), chunk):
        count = min(chunk, len(prompt) - start)
        entry = Entry(sequence, start, count, int(start + count == len(prompt)))
        result = runner.run(Step(0, [Entry(placed(2, ids(6, 9), 40), 0, 6, 0), entry]))
        if result.prompt_details is not None:
            delivered.append(result.prompt_details)
    assert len(delivered) == 1
    found = delivered[0]["r1"]
    wanted = dense_logits(decoder, prompt).log_softmax(1)
    assert isinstance(found, list) and len(found) == len(prompt) and found[0] is None
    for position, detail in enumerate(found[1:], start=1):
        assert detail.logprob == pytest.approx(wanted[position - 1, prompt[position]].item(), abs=1e-5)
        assert [token for token, _ in detail.top] == wanted[position - 1].topk(2).indices.tolist()


def test_prompt_logprobs_come_once_even_after_a_preemption(decoder: Decoder) -> None:
    params = SamplingParams(temperature=0, prompt_logprobs=0)
    runner, sequence = executor(decoder), placed(1, ids(10), 0, params)
    assert runner.run(Step(0, [Entry(sequence, 0, 10, 1)])).prompt_details is not None
    sequence.tokens.append(5)
    assert runner.run(Step(1, [Entry(sequence, 0, 11, 1)])).prompt_details is None


def broken(decoder: Decoder, token: int) -> Decoder:
    """The same decoder, whose embedding of one token is not a number."""
    spoiled = Decoder(decoder.spec).eval()
    spoiled.load_state_dict(decoder.state_dict())
    with torch.no_grad():
        spoiled.embed[token] = torch.nan
    return spoiled


def test_values_that_are_not_finite_fail_their_own_request_and_leave_no_trace(decoder: Decoder) -> None:
    prompt, bad = ids(21, 4), 7
    clean = tuple(token for token in prompt if token != bad)
    spoiled = broken(decoder, bad)
    # The pool holds both requests exactly, so that the third must take blocks of the one that failed.
    scheduler = Scheduler(SchedulerConfig(num_blocks=14, block_size=BLOCK, max_context=64, max_chunk_tokens=6))
    runner = executor(spoiled, 14)
    events: list[Event] = []
    engine = Engine(scheduler, runner, VirtualClock(), events.extend)
    engine.submit(Request("good", clean, 6, sampling=GREEDY))
    engine.submit(Request("bad", (*clean[:9], bad, *clean[:5]), 6, sampling=GREEDY))
    engine.run_until_idle()
    for number in range(6):
        engine.submit(Request(f"later{number}", clean[number:], 6, sampling=GREEDY))
        engine.run_until_idle()
    ends = {event.request_id: event for event in events if event.finish is not None}
    assert ends["bad"].finish is FinishReason.ERROR and "finite" in (ends["bad"].error or "")
    assert {e.finish for name, e in ends.items() if name != "bad"} == {FinishReason.LENGTH}
    alone: list[Event] = []
    fresh = Engine(
        Scheduler(SchedulerConfig(num_blocks=14, block_size=BLOCK, max_context=64)),
        executor(decoder, 14),
        VirtualClock(),
        alone.extend,
    )
    fresh.submit(Request("good", clean, 6, sampling=GREEDY))
    fresh.run_until_idle()
    assert [e.token for e in alone] == [e.token for e in events if e.request_id == "good"]


def test_unknown_token_ids_fail_their_own_entry(decoder: Decoder) -> None:
    one, two = placed(1, (3, VOCAB, 5), 0), placed(2, ids(8), 20)
    result = executor(decoder).run(Step(0, [Entry(one, 0, 3, 1), Entry(two, 0, 8, 1)]))
    assert result.failures is not None and list(result.failures) == [0]
    assert f"given {VOCAB}" in result.failures[0]
    assert result.tokens[1] == dense_logits(decoder, tuple(two.tokens))[-1].argmax()


def test_ended_sequences_are_forgotten(decoder: Decoder) -> None:
    params = SamplingParams(temperature=1.0, seed=1, frequency_penalty=0.5, prompt_logprobs=1)
    runner = executor(decoder)
    runner.run(Step(0, [Entry(placed(uid, ids(6), 8 * uid, params), 0, 6, 1) for uid in range(4)]))
    assert len(runner.sampler._wishes) == len(runner._prompts) == 4
    runner.run(Step(1, [Entry(placed(9, ids(6), 40), 0, 6, 1)], ended=[0, 1, 2, 3]))
    assert list(runner.sampler._wishes) == [9] and not runner._prompts
