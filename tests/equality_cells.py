"""The equality matrix: its requests, its cells, and what a cell must show to count.

Whatever a cell changes (neighbours, prefix cache, chunks, pool size, preemption), tokens and logprobs must not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.request import Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event, Step, StepResult
from armillary.models.checkpoint import load_decoder
from armillary.models.decoder import Decoder
from armillary.models.native import NativeDecoder, native_decoder
from armillary.runtime.compute import Floats
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.sampling import SamplingParams
from families import VOCAB, oracle

BLOCK = 8
MANY, FEW = 256, 24
PREEMPT_EVERY = 13
GENERATED = {"long": 64, "shared": 64, "short": 16, "drawn": 12}
"""Tokens per choice."""
_BASE = torch.randint(3, VOCAB, (80,), generator=torch.Generator().manual_seed(3)).tolist()

PROMPTS: dict[str, list[int]] = {
    "long": _BASE[:57],
    # Shares whole blocks with the one before, so that the prefix index has something to find.
    "shared": [*_BASE[:50], *_BASE[66:78]],
    "short": _BASE[60:69],
}
"""Greedy requests, which transformers generates too."""


@dataclass(frozen=True)
class Cell:
    """One way to run the same requests."""

    batch: bool
    cache: bool
    chunk: int | None
    many: bool
    preempted: bool

    def __str__(self) -> str:
        return "-".join(
            (
                "batch" if self.batch else "alone",
                "cache" if self.cache else "nocache",
                f"chunk{self.chunk or 'whole'}",
                "many" if self.many else "few",
                "preempted" if self.preempted else "calm",
            )
        )


_BOTH = (False, True)
FULL = [Cell(*values) for values in itertools.product(_BOTH, _BOTH, (8, 48, None), _BOTH, _BOTH)]
REFERENCE = Cell(batch=False, cache=False, chunk=None, many=True, preempted=False)
QUICK = [
    Cell(True, True, 8, True, True),
    Cell(True, False, 8, False, False),
    Cell(True, True, 48, False, True),
    Cell(True, True, None, True, False),
    Cell(False, True, 48, True, True),
    Cell(False, False, 8, False, True),
    Cell(False, True, None, False, False),
    Cell(True, False, 48, True, False),
]
"""Every value of every factor, and every pair of the factors with two values, occurs in these."""
REST = [cell for cell in FULL if cell not in QUICK and cell != REFERENCE]


@dataclass
class Outcome:
    """What a cell generated, by (request, choice), and what happened on the way."""

    tokens: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    logprobs: dict[tuple[str, int], list[Any]] = field(default_factory=dict)
    logits: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    """(greedy request, position) -> the logits that its token was chosen from."""
    preemptions: int = 0
    hits: int = 0
    copies: int = 0
    chunks: int = 0
    """Entries of more than one token that left known tokens uncomputed."""
    widest: int = 0
    """Most sequences in one step."""
    errors: list[str] = field(default_factory=list)


class RecordingExecutor(TorchExecutor):
    """Keeps the logits of greedy rows, and counts what it was asked to do."""

    outcome: Outcome

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        compute = self.compute.logits

        def logits(hidden: Floats, places: list[int]) -> Floats:
            found = compute(hidden, places)
            self.last_logits = torch.tensor(found)
            return found

        self.compute.logits = logits  # type: ignore[method-assign]

    def run(self, step: Step) -> StepResult:
        places = {
            (entry.sequence.request.id, len(entry.sequence.tokens)): row
            for row, entry in enumerate(entry for entry in step.entries for _ in range(entry.rows))
            if entry.sequence.request.id in PROMPTS
        }
        self.outcome.widest = max(self.outcome.widest, len(step.entries))
        self.outcome.chunks += sum(entry.count > 1 and entry.rows == 0 for entry in step.entries)
        result = super().run(step)
        for key, row in places.items():
            self.outcome.logits[key] = self.last_logits[row]
        return result


def run_cell(
    decoder: Decoder | NativeDecoder, cell: Cell, executor: type[RecordingExecutor] = RecordingExecutor
) -> Outcome:
    """Run all requests in a fresh engine."""
    outcome = Outcome()
    config = SchedulerConfig(
        num_blocks=MANY if cell.many else FEW,
        block_size=BLOCK,
        max_context=decoder.spec.max_context,
        max_chunk_tokens=cell.chunk,
        prefix_cache=cell.cache,
        preempt_every=PREEMPT_EVERY if cell.preempted else 0,
    )
    scheduler = Scheduler(config)
    runner = executor(decoder, decoder.spec, config.num_blocks, BLOCK)
    runner.outcome = outcome

    def sink(events: list[Event]) -> None:
        for event in events:
            key = (event.request_id, event.index)
            if event.token is None:
                outcome.errors.append(f"{key}: {event.finish} {event.error}")
                continue
            outcome.tokens.setdefault(key, []).append(event.token)
            outcome.logprobs.setdefault(key, []).append(event.detail)

    engine = Engine(scheduler, runner, VirtualClock(), sink)
    for request in requests():
        engine.submit(request)
        # Beside neighbours, the first request's prompt is computed before the others come, so that they can hit.
        while not cell.batch and engine.step():
            pass
        while ("long", 0) not in outcome.tokens and not outcome.errors:
            engine.step()
    engine.run_until_idle()
    scheduler.check()
    stats = scheduler.stats
    outcome.preemptions, outcome.hits, outcome.copies = stats.preemptions, stats.prefix_hit_tokens, stats.copies
    return outcome


def requests() -> list[Request]:
    """The greedy requests, and one that is drawn twice from a shared prompt."""
    greedy = [
        Request(name, tuple(prompt), GENERATED[name], sampling=SamplingParams(temperature=0, logprobs=3))
        for name, prompt in PROMPTS.items()
    ]
    drawn = SamplingParams(temperature=1.0, top_k=50, top_p=0.95, frequency_penalty=0.5, seed=11, logprobs=3, n=2)
    return [*greedy, Request("drawn", tuple(_BASE[5:26]), GENERATED["drawn"], n=2, sampling=drawn)]


def check_rare_paths(cell: Cell, outcome: Outcome) -> None:
    """The cell did what its name says."""
    assert not outcome.errors
    assert (outcome.widest >= 4) == cell.batch
    assert (outcome.hits > 0) if cell.cache else (outcome.hits == 0)
    assert (outcome.chunks > 0) == (cell.chunk is not None)
    assert outcome.copies > 0
    if cell.preempted or (cell.batch and not cell.many):
        assert outcome.preemptions > 0
    else:
        assert outcome.preemptions == 0


def difference(outcome: Outcome, reference: Outcome, native_kernels: bool) -> str | None:
    """How an outcome differs from the reference beyond what the platform explains; None if it does not. With native
    kernels it explains nothing."""
    if outcome.tokens != reference.tokens:
        return f"tokens differ: {outcome.tokens} instead of {reference.tokens}"
    if native_kernels or bitwise():
        return None if outcome.logprobs == reference.logprobs else "logprobs differ in their bits"
    for key, details in reference.logprobs.items():
        for got, wanted in zip(outcome.logprobs[key], details, strict=True):
            if abs(got.logprob - wanted.logprob) > 1e-5:
                return f"logprobs differ: {got} instead of {wanted}"
    return None


def bitwise() -> bool:
    """Whether this platform's matrix products give a row the same bits beside any multiple of eight rows."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 96, generator=generator), torch.randn(160, 96, generator=generator)
    whole = F.linear(x, w)
    return all(torch.equal(F.linear(x[:rows], w), whole[:rows]) for rows in range(8, 64, 8))


@dataclass
class Subject:
    """A family's decoder and what transformers says about it."""

    decoder: Decoder | NativeDecoder
    tokens: dict[str, list[int]]
    logits: dict[str, torch.Tensor]
    reference: Outcome


def make_subject(name: str, folder: Path, path: str | None) -> Subject:
    """Write the family's checkpoint, generate with transformers, and run the reference cell on that path of the native
    kernels, or on torch."""
    changes: dict[str, Any] = {"num_hidden_layers": 2}
    if name == "gemma3":
        changes["layer_types"] = ["sliding_attention", "full_attention"]
    model = oracle(name, **changes)
    model.save_pretrained(folder)
    tokens, logits = {}, {}
    for request, prompt in PROMPTS.items():
        ids = torch.tensor([prompt])
        model.generation_config.eos_token_id = None
        with torch.inference_mode():
            mask, count = torch.ones_like(ids), GENERATED[request]
            found = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)[0]
            tokens[request] = found[len(prompt) :].tolist()
            logits[request] = model(found[None]).logits[0]
    loaded = load_decoder(folder).eval()
    if path is None:
        loaded.settle()  # as serving does
    decoder = loaded if path is None else native_decoder(loaded, path)
    return Subject(decoder, tokens, logits, run_cell(decoder, REFERENCE))


def check_against_oracle(subject: Subject, outcome: Outcome) -> None:
    """Greedy tokens equal those of transformers, and logits to 1e-4."""
    for name, wanted in subject.tokens.items():
        assert outcome.tokens[name, 0] == wanted, name
        start, count = len(PROMPTS[name]), GENERATED[name]
        got = torch.stack([outcome.logits[name, start + i] for i in range(count)])
        torch.testing.assert_close(got, subject.logits[name][start - 1 : start - 1 + count], atol=1e-4, rtol=0)
