"""Constrained requests on a small random model, run in many ways.

Random weights are the best adversary of a grammar: they want nothing that it allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.journal import Journal
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.stats import SchedulerStats
from armillary.core.step import Event
from armillary.models.checkpoint import load_decoder
from armillary.models.decoder import Decoder
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.grammar import compile_grammar
from armillary.runtime.grammar_masks import GrammarStats
from armillary.runtime.sampling import SamplingParams
from server.scripted import write_model
from small_tokenizers import BYTE_LEVEL_CONFIG, byte_level, write_tokenizer

SPARE_ROWS = 7
"""Rows that the model has beyond its tokenizer, as padded checkpoints do."""
MANY, FEW = 256, 26
BLOCK = 8


@dataclass(frozen=True)
class Model:
    """A decoder of a few thousand random numbers, with a tokenizer."""

    decoder: Decoder
    tokenizer: Tokenizer
    folder: Path

    @property
    def ends(self) -> frozenset[int]:
        return self.tokenizer.eos_ids


def make_model(
    folder: Path, definition: str | None = None, settings: dict[str, Any] = BYTE_LEVEL_CONFIG, **changes: Any
) -> Model:
    """Write a model folder and load it."""
    text = definition or byte_level()
    write_tokenizer(folder, text, settings)
    tokenizer = Tokenizer.from_folder(folder)
    write_model(folder, vocab_size=tokenizer.vocab_size + SPARE_ROWS, **changes)
    for name in ("generation_config.json",):
        (folder / name).unlink(missing_ok=True)
    write_tokenizer(folder, text, settings)
    torch.set_num_threads(1)
    return Model(load_decoder(folder, torch.float32).eval(), Tokenizer.from_folder(folder), folder)


@dataclass(frozen=True)
class Way:
    """One way to run the same requests. Whatever it says, the tokens must be the same."""

    batch: bool = True
    cache: bool = True
    chunk: int | None = None
    many: bool = True
    preempt_every: int = 0
    forced: bool = True


@dataclass
class Told:
    """What was generated, by (request, choice), and what happened on the way."""

    tokens: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    details: dict[tuple[str, int], list[Any]] = field(default_factory=dict)
    finish: dict[tuple[str, int], FinishReason] = field(default_factory=dict)
    errors: list[str | None] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    stats: SchedulerStats = field(default_factory=SchedulerStats)
    grammars: GrammarStats = field(default_factory=GrammarStats)

    def text(self, model: Model, request: str, choice: int = 0) -> str:
        ids = self.tokens[request, choice]
        return model.tokenizer.decode(ids, continues=True)


def constrained(model: Model, kind: str, source: object = None, **params: Any) -> SamplingParams:
    return SamplingParams(grammar=compile_grammar(kind, source, model.tokenizer), **params)


def request(model: Model, name: str, params: SamplingParams, prompt: str = "Say it: ", limit: int = 200) -> Request:
    """An engine request as `Preparer` makes it."""
    ends = frozenset(params.stop_token_ids) | model.ends
    ids = tuple(model.tokenizer.encode(prompt + name))
    seed = params.seed if params.seed is not None else sum(map(ord, name))
    return Request(
        name, ids, params.max_tokens or limit, n=params.n, stop_ids=ends, sampling=replace(params, seed=seed)
    )


def run(model: Model, requests: list[Request], way: Way = Way(), executor: type[TorchExecutor] = TorchExecutor) -> Told:
    """Run all requests in a fresh engine."""
    told = Told()
    config = SchedulerConfig(
        num_blocks=MANY if way.many else FEW,
        block_size=BLOCK,
        max_context=model.decoder.spec.max_context if way.many else FEW * BLOCK,
        max_chunk_tokens=way.chunk,
        prefix_cache=way.cache,
        preempt_every=way.preempt_every,
    )
    scheduler = Scheduler(config)
    runner = executor(model.decoder, model.decoder.spec, config.num_blocks, BLOCK, forced_tokens=way.forced)

    def sink(events: list[Event]) -> None:
        for event in events:
            key = (event.request_id, event.index)
            if event.token is None:
                told.errors.append(event.error)
            else:
                told.tokens.setdefault(key, []).append(event.token)
                told.details.setdefault(key, []).append(event.detail)
            if event.finish is not None:
                assert key not in told.finish
                told.finish[key] = event.finish

    engine = Engine(scheduler, runner, VirtualClock(), sink, Journal(told.journal.append))
    for each in requests:
        engine.submit(each)
        while not way.batch and engine.step():
            scheduler.check()
    while engine.step():
        scheduler.check()
    told.stats, told.grammars = scheduler.stats, runner.grammars.stats()
    runner.grammars.close()
    assert scheduler.pool.used_count == 0
    return told
