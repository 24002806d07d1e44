"""What is measured when: engines take turns on each workload, every other round in reverse."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from .environments import BUILD, ENGINES, Engine, Unavailable, interpreter
from .limits import fastest, measure
from .process import Process
from .record import HEAD, Cell, Record, Results
from .shapes import SHAPES, checkpoint
from .workloads import make, warm_up

ROOM = 8 << 30
"""Bytes of main memory that stay free; engines that were used longest ago go until there are so many."""
RUN_SECONDS = 900.0
"""After which a run is given up at the latest."""
PATIENCE, HOPELESS = 120.0, 40.0
"""It is given up too after so many seconds and so many times what the limit allows."""
SLOWDOWN = 8.0
"""How much slower than the limit an engine is taken to be until one knows."""
START_SECONDS = 5.0
"""That a start is taken to need, likewise."""


@dataclass(frozen=True)
class Choice:
    """What to measure.

    Attributes:
        seconds: after which nothing is begun any more; None: no end.
    """

    engines: Sequence[str]
    workloads: Sequence[str]
    precisions: Sequence[str]
    shapes: Sequence[str]
    repeats: int
    scale: float
    threads: int
    seconds: float | None


Say = Callable[[str], None]


class Session:
    """One run of the bench."""

    def __init__(self, choice: Choice, results: Results, say: Say, folder: Path = BUILD) -> None:
        self.choice, self.results, self.say, self.folder = choice, results, say, folder
        self._open: dict[tuple[str, str, str], _Loaded] = {}  # the one used longest ago first
        self._pythons: dict[str, Path | Unavailable] = {}
        self._useless: dict[tuple[str, str, str], str] = {}  # engine, shape, precision -> why
        self._end: float | None = None

    def prepare(self) -> None:
        """Environments, checkpoints and conversions: everything that need not be repeated."""
        measure(self.choice.threads, 0.01, self.folder)
        for shape in self.choice.shapes:
            checkpoint(SHAPES[shape], self._checkpoint(shape))
            for name in self.choice.engines:
                for precision in self.choice.precisions:
                    try:
                        self._convert(ENGINES[name], shape, precision)
                    except Unavailable as error:
                        self._useless[name, shape, precision] = str(error)
                        self.say(f"{name}, {shape}, {precision}: {error}")

    def run(self) -> None:
        """Measure what is chosen and not measured yet, as far as the time goes."""
        self._end = None if self.choice.seconds is None else time.monotonic() + self.choice.seconds
        try:
            for repeat in range(self.choice.repeats):
                engines = list(self.choice.engines) if repeat % 2 == 0 else list(self.choice.engines)[::-1]
                for shape in self.choice.shapes:
                    for precision in self.choice.precisions:
                        for workload in self.choice.workloads:
                            for name in engines:
                                self._measure(Cell(shape, precision, workload, name, self.choice.scale), repeat)
                    self.close()
        finally:
            self.close()

    def close(self) -> None:
        """End all processes."""
        while self._open:
            self._open.popitem()[1].process.close()

    def _measure(self, cell: Cell, repeat: int) -> None:
        if self.results.has(cell, repeat):
            return
        key = (cell.engine, cell.shape, cell.precision)
        failed = self._useless.get(key) or next(
            (r.error for r in self.results.records if r.cell == cell and r.repeat < repeat and r.error), None
        )
        if failed is not None:
            if repeat == 0:
                self.results.add(Record(cell, repeat, error=failed))
            return
        shape = SHAPES[cell.shape]
        workload = make(cell.workload, shape.vocab, repeat, cell.scale)
        limits = measure(self.choice.threads, folder=self.folder)
        limit = fastest(shape, cell.precision, workload, limits)
        if self._end is not None and time.monotonic() + self._expected(cell, workload.tokens / limit) > self._end:
            self.say(f"no time left for {cell.engine}, {cell.precision}, {cell.workload}, round {repeat + 1}")
            return
        load_average = os.getloadavg()[0]
        began = time.monotonic()
        try:
            loaded = self._loaded(key)
        except Unavailable as error:
            self._useless[key] = str(error)
            self.results.add(Record(cell, repeat, error=str(error)))
            self.say(f"{cell.engine}, {cell.shape}, {cell.precision}: {error}")
            return
        patience = min(RUN_SECONDS, PATIENCE + HOPELESS * workload.tokens / limit)
        try:
            loaded.process.forget_peak()
            seconds, outputs = loaded.process.run(workload, patience)
            if workload.unit == "decode":  # what one token takes is no decoding yet
                one = make(cell.workload, shape.vocab, repeat + 1000, cell.scale)
                first = min(loaded.process.run(one, patience, 1)[0] for _ in range(2))
                if first >= seconds:
                    raise Unavailable(
                        f"took {seconds:.3f} s, no longer than for the first token: too short to be timed"
                    )
                seconds -= first
            peak = loaded.process.peak()
        except Unavailable as error:
            self._open.pop(key).process.close()
            self.results.add(Record(cell, repeat, error=str(error)))
            self.say(f"{cell.engine}, {cell.shape}, {cell.precision}, {cell.workload}: {error}")
            return
        rate = workload.tokens / max(seconds, 1e-9)
        self.results.add(
            Record(
                cell,
                repeat,
                None,
                rate,
                time.monotonic() - began,
                loaded.seconds,
                peak,
                limits.as_json(),
                limit,
                [tokens[:HEAD] for tokens in outputs],
                loaded.facts,
                load_average,
            )
        )
        self.say(
            f"{cell.shape} {cell.precision} {cell.workload} round {repeat + 1} {cell.engine}: {rate:.1f} tokens/s, "
            f"{rate / limit:.0%} of the limit ({limits.read / 1e9:.1f} GB/s)"
        )

    def _expected(self, cell: Cell, ideal: float) -> float:
        """Seconds that a cell may take, by its last time, or by how slow the engine was elsewhere."""
        own = [r.seconds for r in self.results.records if r.cell == cell and r.rate]
        if own:
            return max(own)
        slowdowns = [
            r.limit / r.rate for r in self.results.records if r.cell.engine == cell.engine and r.limit and r.rate
        ]
        return START_SECONDS + ideal * max(slowdowns, default=SLOWDOWN)

    def _loaded(self, key: tuple[str, str, str]) -> _Loaded:
        """The process that has this model loaded, started where there is none."""
        if key in self._open and self._open[key].process.alive:
            self._open[key] = self._open.pop(key)
            return self._open[key]
        while self._open and psutil.virtual_memory().available < ROOM:
            self._open.pop(next(iter(self._open))).process.close()
        name, shape, precision = key
        started = time.monotonic()
        process = self._start(ENGINES[name])
        try:
            vocab, scale = SHAPES[shape].vocab, self.choice.scale
            every = [make(workload, vocab, scale=scale) for workload in self.choice.workloads]
            facts = process.load(self._model(name, shape, precision), precision, [*every, warm_up(vocab)])
            seconds = time.monotonic() - started
            process.run(warm_up(vocab), RUN_SECONDS)
        except Unavailable:
            process.close()
            raise
        self._open[key] = _Loaded(process, seconds, facts)
        return self._open[key]

    def _convert(self, engine: Engine, shape: str, precision: str) -> None:
        """Raises Unavailable: where the engine has no such precision, is not there, or cannot convert."""
        about = engine.load().about
        if precision not in about.precisions:
            raise Unavailable(about.missing.get(precision, "has no such precision"))
        self._interpreter(engine)
        target = self._model(engine.name, shape, precision)
        done = target / "converted.json"
        wanted = json.dumps([SHAPES[shape].config, about.packages, about.precisions[precision]])
        if done.exists() and done.read_text(encoding="utf-8") == wanted:
            return
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        self.say(f"converting {shape} for {engine.name} in {precision}")
        process = self._start(engine)
        try:
            process.convert(self._checkpoint(shape), target, precision)
        finally:
            process.close()
        done.write_text(wanted, encoding="utf-8")

    def _interpreter(self, engine: Engine) -> Path:
        """The engine's Python; what did not install is not tried again."""
        found = self._pythons.get(engine.name)
        if found is None:
            try:
                found = interpreter(engine, self.folder)
            except Unavailable as error:
                found = error
            self._pythons[engine.name] = found
        if isinstance(found, Unavailable):
            raise found
        return found

    def _start(self, engine: Engine) -> Process:
        log = self.folder / "logs" / f"{engine.name}.log"
        return Process(engine, self._interpreter(engine), self.choice.threads, log)

    def _checkpoint(self, shape: str) -> Path:
        return self.folder / "models" / shape / "checkpoint"

    def _model(self, engine: str, shape: str, precision: str) -> Path:
        return self.folder / "models" / shape / f"{engine}-{precision}"


@dataclass(frozen=True)
class _Loaded:
    process: Process
    seconds: float
    facts: dict[str, str]
