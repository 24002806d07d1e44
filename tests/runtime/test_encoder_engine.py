"""Encoders under the engine: whole prompts, any neighbours, one record; their plan; a folder from Python."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.journal import Journal
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event
from armillary.deployment import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.models.encoder_checkpoint import load_encoder
from armillary.models.encoder_config import read_model
from armillary.models.encoder_spec import EncoderSpec
from armillary.runtime.doctor import Diagnosis, encoder_ceilings
from armillary.runtime.encoder_executor import EncoderExecutor
from armillary.runtime.encoder_plan import make_encoder_plan
from armillary.runtime.llm import LLM
from armillary.runtime.machine import Machine, read_machine
from armillary.runtime.pooling import PoolingParams
from armillary.runtime.speed import Rate
from encoders import POSITIONS, vocabulary, write, write_layout


class Bench:
    """An engine over an encoder, stepped by hand."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        spec = read_model(folder)
        assert isinstance(spec, EncoderSpec)
        given = {"num_blocks": 16, "max_context": POSITIONS, "block_size": POSITIONS, "max_step_tokens": 96}
        config = SchedulerConfig(
            **{**given, "max_running": 8, "prefix_cache": False, "whole_prompts": True, **settings}
        )
        encoder = load_encoder(folder, spec)
        encoder.settle()
        self.encoder = encoder
        self.lines: list[str] = []
        self.found: dict[str, Any] = {}
        self.finish: dict[str, FinishReason | None] = {}
        self.batch = 0
        executor = EncoderExecutor(encoder, spec)
        self.scheduler = Scheduler(config)
        self.engine = Engine(self.scheduler, executor, VirtualClock(), self._hear, Journal(self.lines.append))

    def _hear(self, events: list[Event]) -> None:
        self.batch = max(self.batch, len(events))
        for event in events:
            assert event.token is None
            self.found[event.request_id] = event.prompt_detail
            self.finish[event.request_id] = event.finish

    def run(self, *requests: Request) -> dict[str, Any]:
        for request in requests:
            self.engine.submit(request)
        self.engine.run_until_idle()
        self.scheduler.check()
        assert self.scheduler.pool.used_count == 0
        return self.found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judge")
    write("bert", root, "ForSequenceClassification")
    return Path(root)


def requests(name: str = "bert", count: int = 40) -> list[Request]:
    """Texts of all lengths; every way of pooling, and scores, with second texts of all lengths."""
    rnd = random.Random(4)
    made = []
    for i in range(count):
        length = rnd.choice([1, 2, 7, rnd.randint(1, POSITIONS), POSITIONS])
        mode = ("mean", "last", "cls", "score")[i % 4]
        wish = PoolingParams(mode, second=rnd.randrange(length) if i % 3 else None)  # type: ignore[arg-type]
        prompt = tuple(rnd.randrange(vocabulary(name)) for _ in range(length))
        made.append(Request(f"{mode}{i}", prompt, 0, sampling=wish, reuse_prefix=False))
    return made


def same(one: object, other: object) -> bool:
    if isinstance(one, float):
        return one == other
    return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.tobytes() == other.tobytes()


def test_the_same_bits_alone_and_in_any_company(folder: Path) -> None:
    asked = requests()
    bench = Bench(folder)
    alone = {request.id: bench.run(request)[request.id] for request in asked}
    for seed, settings in enumerate(
        ({}, {"max_step_tokens": 400, "max_running": 24, "num_blocks": 48}, {"num_blocks": 3})
    ):
        crowd = Bench(folder, **settings)
        random.Random(seed).shuffle(order := list(asked))
        found = crowd.run(*order)
        assert all(same(found[name], alone[name]) for name in alone)
        assert crowd.batch > 1
        lines = [json.loads(line) for line in crowd.lines]
        runs = [run for line in lines for run in line.get("run", [])]
        lengths = {request.id: len(request.prompt) for request in asked}
        assert all(start == 0 and count == lengths[name] for name, _, start, count in runs), "no text was cut"
        assert sum(len(line.get("ended", [])) for line in lines) == len(asked)


def test_one_bad_text_fails_alone(folder: Path) -> None:
    bench = Bench(folder)
    good = requests(count=4)
    wanted = Bench(folder).run(*good)
    size = vocabulary("bert")
    bad = [
        Request("unknown", (1, size), 0, sampling=PoolingParams("mean")),
        Request("talk", (1, 2), 3),
        Request("wishless", (1, 2), 0),
    ]
    found = bench.run(good[0], *bad, *good[1:])
    assert {name: reason for name, reason in bench.finish.items() if reason is FinishReason.ERROR} == {
        request.id: FinishReason.ERROR for request in bad
    }
    assert all(same(found[request.id], wanted[request.id]) for request in good)
    with torch.inference_mode():
        bench.encoder.embed[9] = float("nan")
    bench.run(
        Request("nan", (8, 9), 0, sampling=PoolingParams("mean")),
        Request("ok", (8, 7), 0, sampling=PoolingParams("mean")),
    )
    assert bench.finish["nan"] is FinishReason.ERROR and bench.finish["ok"] is FinishReason.STOP


# ---------------------------------------------------------------- the plan


def machine(available: int) -> Machine:
    from dataclasses import replace

    return replace(read_machine(), available=available)


def spec_of(folder: Path) -> EncoderSpec:
    spec = read_model(folder)
    assert isinstance(spec, EncoderSpec)
    return spec


def test_the_plan_has_room_for_a_whole_text_and_no_keys_and_values(folder: Path) -> None:
    spec = spec_of(folder)
    plan = make_encoder_plan(spec, EngineSettings(), machine(1 << 30))
    assert plan.kv == 0 and plan.max_context == POSITIONS and plan.max_step_tokens == 512
    assert plan.weights == spec.num_parameters() * 4 and "needs none" in str(plan)
    long = make_encoder_plan(spec.with_context(4000), EngineSettings(), machine(1 << 30))
    assert long.max_step_tokens == long.max_context == 4000
    short = make_encoder_plan(spec, EngineSettings(max_step_tokens=32, max_running=8), machine(1 << 30))
    assert short.max_context == 32
    SchedulerConfig(short.num_blocks, short.max_context, short.block_size, max_step_tokens=short.max_step_tokens,
                    max_running=short.max_running, whole_prompts=True)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "code", "param"),
    [
        ({"kv_blocks": 8}, Code.INVALID_DEPLOYMENT, "kv_blocks"),
        ({"kv_memory": "1MiB"}, Code.INVALID_DEPLOYMENT, "kv_memory"),
        ({"block_size": 8}, Code.INVALID_DEPLOYMENT, "block_size"),
        ({"max_chunk_tokens": 8}, Code.INVALID_DEPLOYMENT, "max_chunk_tokens"),
        ({"prefix_cache": True}, Code.INVALID_DEPLOYMENT, "prefix_cache"),
        ({"max_context": POSITIONS + 1}, Code.INVALID_DEPLOYMENT, "max_context"),
        ({"max_context": 40, "max_step_tokens": 20, "max_running": 2}, Code.INVALID_DEPLOYMENT, "max_step_tokens"),
    ],
)
def test_settings_that_an_encoder_cannot_obey_are_refused(
    settings: dict[str, Any], code: Code, param: str, folder: Path
) -> None:
    with pytest.raises(ArmillaryError) as caught:
        make_encoder_plan(spec_of(folder), EngineSettings.model_validate(settings), machine(1 << 30))
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_model_that_cannot_fit_is_refused_with_the_number_that_would(folder: Path) -> None:
    with pytest.raises(ArmillaryError, match="million parameters") as caught:
        make_encoder_plan(spec_of(folder), EngineSettings(), machine(1 << 16))
    assert caught.value.code is Code.MEMORY


def test_the_doctor_says_what_an_encoder_can_do(folder: Path) -> None:
    rate = Rate(best=1e10, median=1e10, repeats=1)
    diagnosis = Diagnosis(machine(1 << 30), 1, rate, {"float32": rate, "bfloat16": rate})
    found = encoder_ceilings(spec_of(folder), diagnosis)
    assert len(found) == 2 and all(c.fits and c.tokens > 0 and c.text_tokens == POSITIONS for c in found)
    assert all(c.alone * c.text_tokens <= c.tokens * 1.0001 for c in found)


# ---------------------------------------------------------------- the Python interface


def test_a_folder_embeds_and_ranks(tmp_path: Path, folder: Path) -> None:
    model = write("roberta", tmp_path)
    write_layout(tmp_path, "pooling_mode_cls_token")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 30, "do_lower_case": false}')
    texts = ["The ferry takes three hours.", "Ελληνικά", "A loaf costs 4 crowns."]
    with LLM(tmp_path, threads=1) as llm:
        found = llm.embed(texts)
        ids = torch.tensor([llm.tokenizer.encode(texts[1])])
        with torch.inference_mode():
            wanted = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 0]
        np.testing.assert_allclose(found[1], (wanted / wanted.norm()).numpy(), atol=1e-4, rtol=0)
        scores = llm.rerank(texts[0], texts)
        assert len(scores) == 3 and abs(scores[0] - 1) < 1e-5 and max(scores) <= 1
        assert scores[1] == pytest.approx(float(found[0] @ found[1]), abs=1e-5)
        with pytest.raises(ArmillaryError, match="maximum context length is 30"):
            llm.embed([5] * 31)
        with pytest.raises(ArmillaryError, match="given an encoder"):
            raise llm.generate("Hello")[0].error or AssertionError("must be refused")
    with LLM(folder, threads=1) as judge:
        many = judge.rerank(texts[0], texts * 20)
        assert many == judge.rerank(texts[0], texts) * 20 and all(0 < score < 1 for score in many)
        assert judge.rerank(texts[0], []) == []
        with pytest.raises(ArmillaryError, match="rerank"):
            judge.embed("a")


def test_a_layout_that_cannot_be_computed_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    write("bert", tmp_path)
    write_layout(tmp_path, "pooling_mode_weightedmean_tokens")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ArmillaryError, match="pooling_mode_weightedmean_tokens"):
        LLM(tmp_path)
    write_layout(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(ArmillaryError, match="do_lower_case"):
        LLM(tmp_path)
