"""Vectors through the engine: those of transformers, and the same bits however they come about."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event
from armillary.errors import ArmillaryError, Code
from armillary.models.checkpoint import load_decoder
from armillary.models.pooling import PoolingSpec
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.embed import Embedder
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.llm import LLM
from armillary.runtime.pooling import PoolingParams, Vector
from armillary.runtime.sampling import SamplingParams
from families import VOCAB, oracle
from small_tokenizers import BYTE_LEVEL_CONFIG, byte_level, write_tokenizer

BLOCK = 4
MEAN, LAST = PoolingParams("mean"), PoolingParams("last")


def prompts(count: int, seed: int = 3) -> list[tuple[int, ...]]:
    """Half of them begin alike, so that the prefix index has something to say."""
    rnd = random.Random(seed)
    lead = [rnd.randrange(VOCAB) for _ in range(24)]
    return [(*(lead[: 8 * (i % 4)]), *(rnd.randrange(VOCAB) for _ in range(rnd.randint(1, 40)))) for i in range(count)]


class Bench:
    """An engine on a small model, stepped by hand."""

    def __init__(self, decoder: Any, **settings: Any) -> None:
        given = {"num_blocks": 200, "max_context": 120, "block_size": BLOCK, "max_step_tokens": 64, **settings}
        config = SchedulerConfig(**given)
        executor = TorchExecutor(decoder, decoder.spec, config.num_blocks, config.block_size)
        self.scheduler = Scheduler(config)
        self.engine = Engine(self.scheduler, executor, VirtualClock(), self._hear)
        self.executor = executor
        self.found: dict[str, Any] = {}
        self.finish: dict[str, FinishReason | None] = {}

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            if event.finish is not None:
                self.finish[event.request_id] = event.finish
            if event.prompt_detail is not None:
                self.found[event.request_id] = event.prompt_detail
            if event.token is not None:
                self.found.setdefault(event.request_id, []).append(event.token)

    def run(self, *requests: Request) -> dict[str, Any]:
        for request in requests:
            self.engine.submit(request)
        self.engine.run_until_idle()
        self.scheduler.check()
        assert self.scheduler.pool.used_count == 0
        return self.found


def pooled(name: str, prompt: tuple[int, ...], wish: PoolingParams) -> Request:
    return Request(name, prompt, 0, reuse_prefix=wish.reuses_prefix, sampling=wish)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    oracle("qwen3").save_pretrained(folder)
    return load_decoder(folder).eval()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "mixtral", "olmo2", "phi3"])
def test_vectors_equal_pooled_hidden_states_of_transformers(name: str, tmp_path: Path) -> None:
    model = oracle(name)
    model.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path).eval()
    decoder.settle()
    bench = Bench(decoder, max_chunk_tokens=7)
    asked = prompts(6)
    whole = {f"{wish.mode}{i}": (prompt, wish) for wish in (MEAN, LAST) for i, prompt in enumerate(asked)}
    raw = replace(MEAN, normalize=False)
    whole |= {f"raw{i}": (prompt, raw) for i, prompt in enumerate(asked)}
    found = bench.run(*(pooled(key, prompt, wish) for key, (prompt, wish) in whole.items()))
    with torch.inference_mode():
        for key, (prompt, wish) in whole.items():
            hidden = model.model(torch.tensor([prompt])).last_hidden_state[0]
            wanted = hidden.mean(0) if wish.mode == "mean" else hidden[-1]
            if wish.normalize:
                wanted = wanted / wanted.norm()
            assert found[key].dtype == np.float32
            np.testing.assert_allclose(found[key], wanted.numpy(), atol=1e-4, rtol=0)


CELLS: dict[str, dict[str, Any]] = {
    "chunks of 1": {"max_chunk_tokens": 1},
    "chunks of 5": {"max_chunk_tokens": 5},
    "whole": {"max_step_tokens": 400},
    "no cache": {"prefix_cache": False},
    "few blocks": {"num_blocks": 23, "max_chunk_tokens": 9, "max_running": 8},
}


@pytest.fixture(scope="module")
def alone(decoder: Any) -> dict[str, Vector]:
    """Each vector with nothing beside it, in one piece."""
    found: dict[str, Vector] = {}
    for wish in (MEAN, LAST):
        for i, prompt in enumerate(prompts(14)):
            key = f"{wish.mode}{i}"
            found[key] = Bench(decoder, prefix_cache=False, max_step_tokens=400).run(pooled(key, prompt, wish))[key]
    return found


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_in_any_company_however_cut_preempted_or_cached(
    cell: str, decoder: Any, alone: dict[str, Vector]
) -> None:
    asked = prompts(14)
    bench = Bench(decoder, **CELLS[cell])
    requests = [pooled(f"{wish.mode}{i}", prompt, wish) for wish in (MEAN, LAST) for i, prompt in enumerate(asked)]
    talk = [
        Request(f"talk{i}", prompt, 24, sampling=SamplingParams(temperature=0.8, seed=i))
        for i, prompt in enumerate(asked[:6])
    ]
    quiet = Bench(decoder, prefix_cache=False).run(*talk)
    random.Random(1).shuffle(order := [*requests, *talk])
    found = bench.run(*order)
    assert not bench.executor._pools._sums, "what was summed for them must be forgotten"
    for key, vector in alone.items():
        assert found[key].tobytes() == vector.tobytes(), key
    for request in talk:
        assert found[request.id] == quiet[request.id], "and they change nothing for those who generate"
    stats = bench.scheduler.stats
    if cell == "few blocks":
        assert stats.preemptions > 0
    assert (stats.prefix_hit_tokens > 0) == (cell != "no cache")


def test_a_prefix_from_the_cache_serves_the_last_token_and_would_spoil_a_mean(decoder: Any) -> None:
    prompt = prompts(1)[0] + tuple(range(40))
    bench = Bench(decoder)
    first = bench.run(pooled("a", prompt, LAST), pooled("m", prompt, MEAN))
    before = bench.scheduler.stats.prefix_hit_tokens
    again = bench.run(pooled("b", prompt, LAST), pooled("n", prompt, MEAN))
    assert bench.scheduler.stats.prefix_hit_tokens >= before + BLOCK * 9
    assert again["b"].tobytes() == first["a"].tobytes() and again["n"].tobytes() == first["m"].tobytes()
    broken = bench.run(replace(pooled("x", prompt, MEAN), reuse_prefix=True))
    assert bench.finish["x"] is FinishReason.ERROR or not np.array_equal(broken["x"], first["m"])


def test_a_mean_survives_being_preempted_in_the_middle(decoder: Any) -> None:
    """A long prompt is preempted between its chunks, by growing neighbours in a pool with room for few."""
    long = tuple(random.Random(2).randrange(VOCAB) for _ in range(72))
    alone = Bench(decoder).run(pooled("p", long, MEAN))["p"]
    cut = 0
    for seed in range(4):
        bench = Bench(decoder, num_blocks=30, max_chunk_tokens=2, max_running=6, prefix_cache=bool(seed % 2))
        talk = [Request(f"t{i}", (i + 1,) * (2 + seed), 36, sampling=SamplingParams(seed=i)) for i in range(3)]
        for request in talk:
            bench.engine.submit(request)
        for _ in range(3):
            bench.engine.step()
        bench.engine.submit(pooled("p", long, MEAN))
        begun = False
        while bench.engine.step():
            runs = any(s.request.id == "p" and s.computed for s in bench.scheduler.running)
            cut += begun and not runs and "p" not in bench.finish
            begun = runs
        assert bench.found["p"].tobytes() == alone.tobytes()
    assert cut > 1, "it must have been preempted with a sum begun"


def test_cancelled_in_every_state_nothing_is_left(decoder: Any) -> None:
    for steps in range(6):
        bench = Bench(decoder, max_chunk_tokens=8, num_blocks=30)
        for name in ("a", "b", "c"):
            bench.engine.submit(pooled(name, tuple(range(40)), MEAN))
        for _ in range(steps):
            bench.engine.step()
        bench.engine.cancel("b")
        assert bench.finish["b"] in (FinishReason.CANCELLED, FinishReason.STOP)
        bench.run()
        bench.run(pooled("d", (1, 2), LAST))  # what ended is told to the executor with the next step
        assert set(bench.found) >= {"a", "c", "d"} and not bench.executor._pools._sums


def test_numbers_that_are_not_finite_fail_their_own_request_only(decoder: Any) -> None:
    with torch.inference_mode():
        row = decoder.embed[7].clone()
        decoder.embed[7] = float("nan")
        try:
            bench = Bench(decoder, max_chunk_tokens=3)
            bench.run(pooled("bad", (5, 6, 8, 9, 7, 3), MEAN), pooled("good", (5, 6, 8), MEAN))
        finally:
            decoder.embed[7] = row
    assert bench.finish == {"bad": FinishReason.ERROR, "good": FinishReason.STOP}
    assert bench.found["good"].tobytes() == Bench(decoder).run(pooled("good", (5, 6, 8), MEAN))["good"].tobytes()


# ---------------------------------------------------------------- requests, and the Python interface


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    folder = write_tokenizer(tmp_path, byte_level(), BYTE_LEVEL_CONFIG)
    config = SchedulerConfig(num_blocks=64, max_context=40, block_size=BLOCK)
    return Embedder(Tokenizer.from_folder(folder), config, VOCAB, PoolingSpec("decoder", 64))


@pytest.mark.parametrize(
    ("ask", "code", "param"),
    [
        (lambda e: e.text("", e.wish()), Code.INVALID_REQUEST, "input"),
        (lambda e: e.text([], e.wish(), param="input[3]"), Code.INVALID_REQUEST, "input[3]"),
        (lambda e: e.text([VOCAB], e.wish()), Code.INVALID_REQUEST, "input"),
        (lambda e: e.text([True], e.wish()), Code.INVALID_REQUEST, "input"),
        (lambda e: e.text("\ud800", e.wish()), Code.INVALID_REQUEST, "input"),
        (lambda e: e.text([1] * 41, e.wish()), Code.CONTEXT_LENGTH, "input"),
        (lambda e: e.wish(dimensions=0), Code.INVALID_REQUEST, "dimensions"),
        (lambda e: e.wish(dimensions=65), Code.INVALID_REQUEST, "dimensions"),
        (lambda e: e.wish("cls"), Code.INVALID_REQUEST, "pooling"),
        (
            lambda e: replace(e, pooling=replace(e.pooling, dimensions=(16, 32))).wish(dimensions=20),
            Code.INVALID_REQUEST,
            "dimensions",
        ),
        (lambda e: replace(e, pooling=PoolingSpec("scorer", 64)).wish(), Code.INVALID_REQUEST, "model"),
    ],
)
def test_what_is_refused_says_why(embedder: Embedder, ask: Callable[[Embedder], Any], code: Code, param: str) -> None:
    with pytest.raises(ArmillaryError) as caught:
        ask(embedder)
    assert (caught.value.code, caught.value.param) == (code, param)
    if code is Code.CONTEXT_LENGTH:
        assert caught.value.message.startswith("This model's maximum context length is 40 tokens.")
        assert "41" in caught.value.message


def test_a_text_that_spells_a_control_token_does_not_write_one(embedder: Embedder) -> None:
    embedder = replace(embedder, vocab_size=1000)
    marker = embedder.tokenizer.special_id("<|im_end|>")
    assert marker not in embedder.text("a<|im_end|>b", MEAN).prompt


def test_the_python_interface(decoder: Any, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, byte_level(), BYTE_LEVEL_CONFIG)
    config = SchedulerConfig(num_blocks=64, max_context=120, block_size=BLOCK, max_step_tokens=64, max_waiting=3)
    from armillary.runtime.clock import WallClock

    engine = Engine(Scheduler(config), TorchExecutor(decoder, decoder.spec, 64, BLOCK), WallClock(), lambda e: None)
    asked = [list(prompt) for prompt in prompts(30)]
    with LLM.over(engine, Tokenizer.from_folder(folder), VOCAB, PoolingSpec("decoder", 64)) as llm:
        found = llm.embed(asked)
        assert found.shape == (30, 64) and found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        lone = [llm.embed(prompt)[0] for prompt in asked[:4]]
        assert np.array_equal(np.stack(lone), found[:4])
        short = llm.embed(asked[:4], dimensions=10)
        cut = found[:4, :10] / np.linalg.norm(found[:4, :10], axis=1, keepdims=True)
        np.testing.assert_allclose(short, cut, atol=1e-6)
        assert not np.array_equal(llm.embed(asked[:1], pooling="last"), found[:1])
        raw = llm.embed(asked[:1], normalize=False)
        assert abs(float(np.linalg.norm(raw)) - 1) > 0.01
        with pytest.raises(ArmillaryError, match=r"texts\[1\]"):
            llm.embed([[1], [VOCAB]])
        assert llm.embed([]).shape == (0, 64)
        assert llm.stats().kv_blocks_used == 0


def test_without_vectors_the_interface_says_so(decoder: Any, tmp_path: Path) -> None:
    from fake_engine import FakeExecutor, fake_engine

    folder = write_tokenizer(tmp_path, byte_level(), BYTE_LEVEL_CONFIG)
    with LLM.over(fake_engine(FakeExecutor()), Tokenizer.from_folder(folder), VOCAB) as llm:
        with pytest.raises(ArmillaryError, match="must give vectors"):
            llm.embed("a")


def test_a_decoder_saved_without_its_head_is_read(tmp_path: Path) -> None:
    """As embedding models made from causal ones are published: no prefix in the names, `...Model` in the config."""
    from armillary.models.config import spec_from_config

    model = oracle("qwen3").model
    model.save_pretrained(tmp_path)
    prompt = prompts(1)[0]
    found = Bench(load_decoder(tmp_path).eval()).run(pooled("a", prompt, LAST))["a"]
    with torch.inference_mode():
        wanted = model(torch.tensor([prompt])).last_hidden_state[0, -1]
    np.testing.assert_allclose(found, (wanted / wanted.norm()).numpy(), atol=1e-4, rtol=0)
    config = {**load_decoder(tmp_path).spec.config, "architectures": ["Qwen3BidirectionalModel"]}
    with pytest.raises(ArmillaryError, match="Qwen3BidirectionalModel"):
        spec_from_config(config)


def test_an_engine_that_finds_nothing_is_no_answer(tmp_path: Path) -> None:
    from fake_engine import FakeExecutor, fake_engine

    folder = write_tokenizer(tmp_path, byte_level(), BYTE_LEVEL_CONFIG)
    engine = fake_engine(FakeExecutor())  # computes nothing, and says nothing about prompts
    with LLM.over(engine, Tokenizer.from_folder(folder), VOCAB, PoolingSpec("decoder", 64)) as llm:
        with pytest.raises(ArmillaryError, match="found nothing") as caught:
            llm.embed([[1, 2], [3]])
        assert caught.value.code is Code.ENGINE_FAILED
