"""From a model folder and settings to an engine that runs, with the time of every phase."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Protocol, cast

from armillary.core.engine import Engine, Sink
from armillary.core.journal import Journal
from armillary.core.recent import Recent
from armillary.core.request import Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import Entry, Step
from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.models.encoder_config import read_model
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.native import NativeDecoder
from armillary.models.pooling import PoolingSpec, read_pooling
from armillary.models.spec import ModelSpec
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.clock import WallClock
from armillary.runtime.encoder_plan import make_encoder_plan
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.machine import read_machine
from armillary.runtime.memory import taken, trim
from armillary.runtime.memory_plan import MemoryPlan
from armillary.runtime.native_load import kernels_for, load_native
from armillary.runtime.plan import make_plan
from armillary.runtime.pooling import PoolingParams
from armillary.runtime.scheduling import scheduler_config
from armillary.runtime.speed import read_bandwidth
from armillary.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from armillary.models.decoder import Decoder
    from armillary.models.encoder import Encoder
    from armillary.runtime.encoder_executor import EncoderExecutor

PROBE_BYTES = 64 * 2**20
PROBE_SECONDS = 0.03

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine ready to run, and what was found on the way.

    Attributes:
        phases: lap -> seconds of the stopwatch, in order; together the whole time that loading took.
        seeds: draws the seed of a request that brings none, as the settings want it.
        pooling: what vectors the model gives, and whether it generates.
    """

    engine: Engine
    spec: ModelSpec | EncoderSpec
    tokenizer: Tokenizer
    plan: MemoryPlan
    phases: dict[str, float]
    seeds: Callable[[], int]
    pooling: PoolingSpec
    _executor: TorchExecutor | EncoderExecutor

    @property
    def executor(self) -> TorchExecutor | EncoderExecutor:
        """What computes, without what may have been put around it since."""
        return self._executor

    @property
    def outstanding(self) -> int:
        """Bytes that the plan promises to this engine and that it has not taken yet. From any thread."""
        if not isinstance(self._executor, TorchExecutor):
            return 0 if self._executor.released else self.plan.workspace
        compute = getattr(self._executor, "compute", None)
        if compute is None:  # released
            return 0
        return max(0, self.plan.kv - self.kv_taken) + max(0, self.plan.workspace - int(compute.workspace_bytes))

    @property
    def kv_taken(self) -> int:
        """Bytes of the KV pool that have been written at least once."""
        cache = getattr(self._executor, "cache", None)
        return 0 if cache is None else taken(cache.memory)

    def keep(self) -> Kept:
        """What another engine over the same weights can go on with."""
        executor = self._executor
        model = executor.decoder if isinstance(executor, TorchExecutor) else executor.encoder
        return Kept(model, self.spec, self.tokenizer, self.pooling, self.plan.weights)

    def release(self) -> None:
        """Give the memory back. The engine's thread has ended; nothing can be computed any more."""
        self.engine.journal = None
        self._executor.release()


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights that outlive their engine.

    Attributes:
        bytes: memory that they occupy.
    """

    model: Decoder | NativeDecoder | Encoder
    spec: ModelSpec | EncoderSpec
    tokenizer: Tokenizer
    pooling: PoolingSpec
    bytes: int


def build_engine(
    folder: Path,
    settings: EngineSettings,
    sink: Sink,
    on_plan: Callable[[MemoryPlan], None] = lambda plan: None,
    *,
    watch: Stopwatch | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
    promised: int = 0,
    kept: Kept | None = None,
) -> LoadedEngine:
    """Plan, load and connect everything; the plan is made, and may refuse, before memory is taken.

    Args:
        folder: a model folder (`armillary.models.locate`).
        sink: receives the engine's events.
        on_plan: is shown the plan before anything that it names is allocated.
        watch: books the time of every phase; its current lap ends as this begins.
        on_bytes: is told how many bytes each piece of the weights fills as it is read.
        promised: bytes that other engines of this process may still take.
        kept: weights that are in memory already, of the same folder and element type.

    Raises:
        ArmillaryError: INVALID_CHECKPOINT, UNSUPPORTED_MODEL, MEMORY, INVALID_DEPLOYMENT.
    """
    watch = watch or Stopwatch("config")
    watch.begin("config")
    spec = read_model(folder) if kept is None else kept.spec
    pooling = read_pooling(folder, spec) if kept is None else kept.pooling
    watch.begin("plan")
    machine = read_machine()
    threads = settings.threads or machine.threads
    bandwidth = read_bandwidth(min(PROBE_BYTES, machine.available // 8), threads, PROBE_SECONDS).best
    if kept is not None:
        machine = replace(machine, available=machine.available + kept.bytes)
    kernels = None
    if isinstance(spec, EncoderSpec):
        plan = make_encoder_plan(spec, settings, machine, promised)
    else:
        kernels = kernels_for(folder, spec, None if kept is None else kept.model)
        plan = make_plan(spec, settings, machine, bandwidth, promised, kernels)
    on_plan(plan)
    spec = spec.with_context(plan.max_context)
    config = scheduler_config(settings, plan.num_blocks, plan.max_context)
    if isinstance(spec, EncoderSpec):
        config = replace(
            config,
            block_size=plan.block_size,
            max_step_tokens=plan.max_step_tokens,
            prefix_cache=False,
            whole_prompts=True,
        )
    model: Decoder | NativeDecoder | Encoder
    if kept is None:
        watch.begin("tokenizer")
        tokenizer = Tokenizer.from_folder(folder)
        trim()  # reading a vocabulary of 150,000 leaves 110 MB free that the weights could not use
        if isinstance(spec, ModelSpec) and kernels is not None and kernels.path is not None:
            watch.begin("weights")
            model = load_native(folder, spec, settings, plan, kernels, watch, on_bytes)
        else:
            watch.begin("torch")
            from armillary.runtime.torch_load import load_torch

            watch.begin("weights")
            model = load_torch(folder, spec, plan, watch, on_bytes)
    else:
        model, tokenizer = kept.model, kept.tokenizer
    watch.begin("KV cache")
    executor = _executor(model, spec, plan, settings.forced_tokens)
    watch.begin("warm-up")
    warm_up(executor)
    watch.begin("engine")
    journal = None if settings.journal is None else _journal(settings.journal)
    recent = Recent(settings.timeline_steps) if settings.timeline_steps else None
    engine = Engine(Scheduler(config), executor, WallClock(), sink, journal, recent)
    watch.end()
    return LoadedEngine(engine, spec, tokenizer, plan, watch.laps, _seeds(settings.seed), pooling, executor)


def _executor(
    model: Decoder | NativeDecoder | Encoder, spec: ModelSpec | EncoderSpec, plan: MemoryPlan, forced_tokens: bool
) -> TorchExecutor | EncoderExecutor:
    if isinstance(spec, EncoderSpec):
        from armillary.runtime.encoder_executor import EncoderExecutor

        return EncoderExecutor(cast("Encoder", model), spec, plan.threads)
    model = cast("Decoder | NativeDecoder", model)
    return TorchExecutor(model, spec, plan.num_blocks, plan.block_size, plan.kv_dtype, plan.threads, forced_tokens)


def warm_up(executor: TorchExecutor | EncoderExecutor) -> None:
    """Run one token through, so that the first request does not pay for what libraries do only once."""
    encodes = not isinstance(executor, TorchExecutor)
    wish = PoolingParams("mean") if encodes else None
    sequence = Sequence(Request("warm-up", (0,), 0 if encodes else 1, sampling=wish), 0, -1, 0.0)
    sequence.blocks = [0]
    executor.run(Step(0, [Entry(sequence, 0, 1, sequence.rows)]))
    if isinstance(executor, TorchExecutor):
        executor.sampler.forget([sequence.uid])


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
    return Journal(lines_to(file, path))


class Writable(Protocol):
    """What a journal is written to."""

    def write(self, text: str, /) -> int: ...


def lines_to(file: Writable, path: Path) -> Callable[[str], None]:
    """Write lines until the disk refuses one: then say so once, and let the engine live on, whatever it is doing.

    No request is worth less than its record.
    """
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
