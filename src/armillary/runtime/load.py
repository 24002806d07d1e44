"""From a model folder and settings to an engine that runs, with the time of every phase."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from random import Random

import torch

from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine, Sink
from armillary.core.journal import Journal
from armillary.core.request import Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import Entry, Step
from armillary.deployment.settings import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.models.checkpoint import DTYPES, load_decoder
from armillary.models.config import read_config
from armillary.models.spec import ModelSpec
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.clock import WallClock
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.machine import read_machine
from armillary.runtime.plan import MemoryPlan, make_plan
from armillary.runtime.speed import read_bandwidth

PROBE_BYTES = 64 * 2**20
PROBE_SECONDS = 0.03

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine ready to run, and what was found on the way.

    Attributes:
        phases: name -> seconds, in order; together the whole time that loading took.
        seeds: draws the seed of a request that brings none, as the settings want it.
    """

    engine: Engine
    spec: ModelSpec
    tokenizer: Tokenizer
    plan: MemoryPlan
    phases: dict[str, float]
    seeds: Callable[[], int]


class _Phases:
    """A stopwatch whose laps leave nothing out."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        """Book the time since the last call under this name."""
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def build_engine(
    folder: Path,
    settings: EngineSettings,
    sink: Sink,
    on_plan: Callable[[MemoryPlan], None] = lambda plan: None,
) -> LoadedEngine:
    """Plan, load and connect everything; the plan is made, and may refuse, before memory is taken.

    Args:
        folder: a model folder (`armillary.models.locate`).
        sink: receives the engine's events.
        on_plan: is shown the plan before anything that it names is allocated.

    Raises:
        ArmillaryError: INVALID_CHECKPOINT, UNSUPPORTED_MODEL, MEMORY, INVALID_DEPLOYMENT.
    """
    phases = _Phases()
    spec = read_config(folder)
    phases.end("config")
    machine = read_machine()
    torch.set_num_threads(settings.threads or machine.threads)
    bandwidth = read_bandwidth(min(PROBE_BYTES, machine.available // 8), PROBE_SECONDS).best
    plan = make_plan(spec, settings, machine, bandwidth)
    on_plan(plan)
    spec = spec.with_context(plan.max_context)
    config = _scheduler_config(settings, plan)
    phases.end("plan")
    tokenizer = Tokenizer.from_folder(folder)
    phases.end("tokenizer")
    decoder = load_decoder(folder, DTYPES[plan.dtype], spec).eval()
    decoder.settle()
    phases.end("weights")
    executor = TorchExecutor(decoder, spec, plan.num_blocks, plan.block_size, DTYPES[plan.dtype])
    phases.end("KV cache")
    warm_up(executor)
    phases.end("warm-up")
    journal = None if settings.journal is None else _journal(settings.journal)
    engine = Engine(Scheduler(config), executor, WallClock(), sink, journal)
    phases.end("engine")
    return LoadedEngine(engine, spec, tokenizer, plan, phases.laps, _seeds(settings.seed))


def warm_up(executor: TorchExecutor) -> None:
    """Run one token through, so that the first request does not pay for what libraries do only once."""
    sequence = Sequence(Request("warm-up", (0,), 1), 0, -1, 0.0)
    sequence.blocks = [0]
    executor.run(Step(0, [Entry(sequence, 0, 1, 1)]))
    executor.sampler.forget([sequence.uid])


def _scheduler_config(settings: EngineSettings, plan: MemoryPlan) -> SchedulerConfig:
    return SchedulerConfig(
        num_blocks=plan.num_blocks,
        max_context=plan.max_context,
        block_size=plan.block_size,
        max_step_tokens=plan.max_step_tokens,
        max_chunk_tokens=settings.max_chunk_tokens,
        max_running=plan.max_running,
        max_waiting=settings.max_waiting,
        order=settings.order,
        starvation_s=settings.starvation_s,
        prefix_cache=settings.prefix_cache,
    )


def _seeds(seed: int | None) -> Callable[[], int]:
    """Where seeds come from: the same ones in the same order where the deployment sets a seed."""
    if seed is None:
        return lambda: secrets.randbits(63)
    source = Random(seed)
    return lambda: source.getrandbits(63)


def _journal(path: Path) -> Journal:
    """A journal that appends to a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT, f"journal must be a file that can be written, given {path}: {error}", "journal"
        ) from error
    return Journal(_writer(file, path))


def _writer(file: TextIOWrapper, path: Path) -> Callable[[str], None]:
    """Write lines until the disk refuses one: then say so once, and let the engine live on."""
    failed = False

    def write(line: str) -> None:
        nonlocal failed
        if failed:
            return
        try:
            file.write(line + "\n")
        except OSError as error:
            failed = True
            logger.error("the journal %s ends here, because it cannot be written: %s", path, error)

    return write
