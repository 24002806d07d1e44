"""What a request is given on the native kernels does not depend on who is beside it: tokens and logprobs, bit for bit.

{alone, 1, 7, 31 neighbours} × {cache hit, miss} × {chunks of 8, 48, whole} × {preempted, not} × {1, 2 threads}, for
each number format; then 100 mixtures of all these drawn at random; then prompts that are computed together, each from
what others compute in the same step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.request import Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event
from armillary.kernels import native
from armillary.models.config import spec_from_config
from armillary.models.decoder import Decoder
from armillary.models.native import NativeDecoder, native_decoder
from armillary.models.quantized import Quantization
from armillary.runtime.compute import Floats, NativeCompute
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.sampling import SamplingParams
from packed_matrices import packed

VOCAB, BLOCK, BLOCKS, FEW = 211, 8, 768, 40
GENERATED = 12
PROMPT = [(7 * place * place + 3 * place) % VOCAB for place in range(75)]
FORMATS = {
    "float32": (Quantization("float32"), "float32"),
    "bfloat16": (Quantization("bfloat16"), "bfloat16"),
    "int8": (Quantization("int8"), "int8"),
    "int4": (Quantization("int4"), "bfloat16"),
    "int8 by int8": (Quantization("int8", int8_activations=True), "float32"),
    "int4 by int8": (Quantization("int4", int8_activations=True), "int8"),
}
"""Of weights, and of keys and values."""
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
pytestmark = pytest.mark.skipif(not native.paths(), reason="the native kernels were not built")

Given = list[tuple[int, Any]]
"""Each token with its logprobs."""


@cache
def decoder(kind: str, path: str) -> NativeDecoder | Decoder:
    torch.manual_seed(5)
    asked = FORMATS[kind][0]
    made = Decoder(spec_from_config(CONFIG, {}), torch.bfloat16 if kind == "bfloat16" else torch.float32)
    made.initialise(0.2, torch.Generator().manual_seed(5))
    return made.eval() if path == "torch" else native_decoder(made.eval(), path, asked)


class Situation:
    """What is going on around the request that is looked at."""

    def __init__(self, neighbours: int, hit: bool, chunk: int | None, preempted: bool, threads: int) -> None:
        self.neighbours, self.hit, self.chunk, self.preempted, self.threads = neighbours, hit, chunk, preempted, threads

    def __repr__(self) -> str:
        return str(self.__dict__)


CALM = Situation(0, False, None, False, 1)


class EveryThread(TorchExecutor):
    """Runs every step on all of its threads. A server's steps take as many as are quickest beside other work, and a
    situation of two threads might be one of one."""

    def __init__(self, model: NativeDecoder, spec: Any, blocks: int, block: int, dtype: Any, threads: int) -> None:
        super().__init__(model, spec, blocks, block, dtype, threads)
        assert isinstance(self.compute, NativeCompute)
        self.program = native.extension().Program(model.model, threads, adapt=False)
        self.compute._program = self.program


def given(kind: str, path: str, situation: Situation, seed: int, executor: type[EveryThread] = EveryThread) -> Given:
    """Run the request in this situation; what it was given."""
    random, model = Random(seed), decoder(kind, path)
    config = SchedulerConfig(
        num_blocks=FEW if situation.preempted and situation.neighbours else BLOCKS,
        block_size=BLOCK,
        max_context=256,
        max_chunk_tokens=situation.chunk,
        max_running=64,
        prefix_cache=situation.hit,
        preempt_every=5 if situation.preempted else 0,
    )
    assert isinstance(model, NativeDecoder)
    runner = executor(model, model.spec, config.num_blocks, BLOCK, FORMATS[kind][1], situation.threads)
    assert runner.program.threads == situation.threads
    found: Given = []

    def sink(events: list[Event]) -> None:
        for event in events:
            assert event.error is None, event.error
            if event.request_id == "watched" and event.token is not None:
                found.append((event.token, event.detail))

    engine = Engine(Scheduler(config), runner, VirtualClock(), sink)
    if situation.hit:
        engine.submit(Request("before", tuple(PROMPT), 1, sampling=SamplingParams(temperature=0)))
        engine.run_until_idle()
    others = [
        Request(
            f"other-{number}",
            tuple(random.randrange(VOCAB) for _ in range(random.randint(1, 40))),
            random.randint(1, 12),
            sampling=SamplingParams(temperature=random.choice([0.0, 1.0]), seed=number),
        )
        for number in range(situation.neighbours)
    ]
    early = random.randint(0, len(others))
    for other in others[:early]:
        engine.submit(other)
    for _ in range(random.randint(0, 3)):
        engine.step()
    drawn = SamplingParams(temperature=0.8, top_p=0.95, seed=3, logprobs=3)
    engine.submit(Request("watched", tuple(PROMPT), GENERATED, sampling=drawn))
    for other in others[early:]:
        engine.step()
        engine.submit(other)
    engine.run_until_idle()
    stats = engine.scheduler.stats
    assert (stats.preemptions > 0) == situation.preempted
    assert (stats.prefix_hit_tokens > 0) == situation.hit
    return found


def situations() -> Iterator[Situation]:
    for values in itertools.product((0, 1, 7, 31), (False, True), (8, 48, None), (False, True), (1, 2)):
        yield Situation(*values)


QUICK = [s for number, s in enumerate(situations()) if number % 13 == 0]


@pytest.mark.parametrize("path", native.paths())
@pytest.mark.parametrize("kind", FORMATS)
def test_situations_that_cover_every_value(kind: str, path: str) -> None:
    wanted = given(kind, path, CALM, 0)
    assert len(wanted) == GENERATED
    for number, situation in enumerate(QUICK):
        assert given(kind, path, situation, number) == wanted, situation


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_all_situations(kind: str) -> None:
    path = native.paths()[-1]
    wanted = given(kind, path, CALM, 0)
    for number, situation in enumerate(situations()):
        assert given(kind, path, situation, number) == wanted, situation


@pytest.mark.slow
def test_a_hundred_random_mixtures() -> None:
    path, random = native.paths()[-1], Random(1)
    wanted = {kind: given(kind, path, CALM, 0) for kind in FORMATS}
    for trial in range(100):
        kind = random.choice(list(FORMATS))
        situation = Situation(
            random.randint(0, 40),
            random.random() < 0.5,
            random.choice([None, random.randint(1, 60)]),
            random.random() < 0.5,
            random.randint(1, 3),
        )
        assert given(kind, path, situation, 1000 + trial) == wanted[kind], (kind, situation)


SHARERS = [
    PROMPT[:shared] + list(range(own, 2 * own))
    for shared, own in ((66, 5), (70, 3), (64, 9), (66, 5), (40, 30), (72, 1))
]
"""Prompts that begin alike, for so long each, and go on for themselves."""


def sharing(
    kind: str, path: str, prompts: list[list[int]], chunk: int | None, threads: int = 1
) -> tuple[list[Given], int]:
    """What each prompt is given where all come at once, and how many positions need not be computed."""
    model = decoder(kind, path)
    config = SchedulerConfig(BLOCKS, 256, block_size=BLOCK, max_step_tokens=2048, max_chunk_tokens=chunk)
    executor: Any = EveryThread if isinstance(model, NativeDecoder) else TorchExecutor
    runner = executor(model, model.spec, config.num_blocks, BLOCK, FORMATS[kind][1], threads)
    found: list[Given] = [[] for _ in prompts]

    def sink(events: list[Event]) -> None:
        for event in events:
            assert event.error is None, event.error
            found[int(event.request_id)].append((event.token or 0, event.detail))

    engine = Engine(Scheduler(config), runner, VirtualClock(), sink)
    drawn = SamplingParams(temperature=0.8, top_p=0.95, seed=3, logprobs=3)
    for number, prompt in enumerate(prompts):
        engine.submit(Request(str(number), tuple(prompt), 4, sampling=drawn))
    engine.run_until_idle()
    return found, engine.scheduler.stats.prefix_hit_tokens


@pytest.mark.parametrize("path", native.paths())
@pytest.mark.parametrize("kind", FORMATS)
def test_who_takes_what_others_compute_in_the_same_step(kind: str, path: str) -> None:
    wanted = [sharing(kind, path, [prompt], None)[0][0] for prompt in SHARERS]
    for chunk, threads in itertools.product((None, 8, 21, 64), (1, 3)):
        given, hits = sharing(kind, path, SHARERS, chunk, threads)
        assert given == wanted, (chunk, threads)
        assert hits >= 250, "all but the first have taken nearly all that they share"


def test_who_takes_what_others_compute_in_the_same_step_by_torch() -> None:
    wanted = [sharing("float32", "torch", [prompt], None)[0][0] for prompt in SHARERS]
    for chunk in (None, 21):
        given, hits = sharing("float32", "torch", SHARERS, chunk)
        assert [[token for token, _ in one] for one in given] == [[token for token, _ in one] for one in wanted]
        assert hits >= 250


class SplitByBatch(EveryThread):
    """Broken on purpose: how many pieces the inputs of the last product are split into depends on the number of rows,
    as where each of a processor's parts is to have something to do."""

    def __init__(self, model: NativeDecoder, spec: Any, blocks: int, block: int, dtype: Any, threads: int) -> None:
        super().__init__(model, spec, blocks, block, dtype, threads)
        whole = self.compute.logits
        torch_decoder = decoder("float32", "torch")
        assert isinstance(torch_decoder, Decoder)
        matrix = torch_decoder.embed.detach().float().numpy()
        middle = matrix.shape[1] // 2
        first, second = packed(model.path, matrix[:, :middle].copy()), packed(model.path, matrix[:, middle:].copy())

        def logits(hidden: Floats, places: list[int]) -> Floats:
            if len(places) < 4:
                return whole(hidden, places)
            rows = hidden[places]
            split: Floats = first(rows[:, :middle].copy()) + second(rows[:, middle:].copy())
            np.testing.assert_allclose(split, whole(hidden, places), rtol=1e-4, atol=1e-5)  # as exact as the whole
            return split

        self.compute.logits = logits  # type: ignore[method-assign]


@pytest.mark.parametrize("path", native.paths())
def test_a_split_chosen_by_the_batch_is_found(path: str) -> None:
    """By the very situations that the kernels must pass, on every path by itself."""
    wanted = given("float32", path, CALM, 0)
    assert given("float32", path, CALM, 0, SplitByBatch) == wanted  # alone nothing shows
    failed = [
        situation
        for number, situation in enumerate(QUICK)
        if given("float32", path, situation, number, SplitByBatch) != wanted
    ]
    assert failed and all(situation.neighbours for situation in failed)
