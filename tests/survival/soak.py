"""A soak: rounds of 80 % load, 300 % load and rest against a real server, with what it holds measured at every rest.

Nothing here is compared with a wall clock. Load is a share of what the server was found to do in the same minute,
resources are compared with themselves, and the speed of single requests with that of a fixed sum of this process.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from armillary.measure.bench import BenchOptions, run_bench
from armillary.measure.record import Outcome
from survival.process import Server

MEGABYTE = 2**20
LENGTHS: dict[str, Any] = {
    "prompt_length": "uniform:8,120",
    "output_length": "uniform:4,48",
    "prefixes": 4,
    "prefix_length": 48,
    "prefix_share": 0.5,
}
"""Short and long, half of them with a shared beginning."""


@dataclass
class Rest:
    """What the server held after a round, when nothing ran."""

    at_s: float
    resident_mb: float
    handles: int
    threads: int
    single_ms: float
    """Median time of one small request, alone."""
    reference_ms: float
    """Median time of a fixed sum in this process, taken turn by turn with the requests."""


@dataclass
class Round:
    """What came of the load. `lost` is whatever was accepted and neither finished nor failed with an error."""

    load: float
    offered_per_s: float
    outcomes: dict[str, int]
    p50_s: float | None
    p99_s: float | None
    lost: int


@dataclass
class Soak:
    capacity_per_s: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(asdict(self), indent=1) + "\n")
        path.with_suffix(".partial").replace(path)


def soak(server: Server, minutes: float) -> Soak:
    """Rounds until the minutes are over, at least four: load at 80 % of capacity, at 300 %, then rest."""
    result = Soak()
    began = time.monotonic()
    count = max(4, round(minutes))
    length = minutes * 60 / count
    result.rests.append(rest(server, began))
    for number in range(count):
        result.capacity_per_s = capacity(server, number, 0.1 * length)
        for load, share in ((0.8, 0.45), (3.0, 0.25)):
            result.rounds.append(press(server, number, load, result.capacity_per_s, share * length))
        server.quiet(60)
        result.rests.append(rest(server, began))
    return result


def capacity(server: Server, number: int, seconds: float) -> float:
    """Requests a second that sixteen users who never pause get through."""
    began = time.monotonic()
    done = 0
    while time.monotonic() - began < seconds:
        report = _bench(server, seed=1000 + 100 * number + done, requests=48, users=16)
        done += sum(record.ok for record in report.records)
    return done / (time.monotonic() - began)


def press(server: Server, number: int, load: float, rate: float, seconds: float) -> Round:
    """Poisson arrivals at `load` times `rate`."""
    requests = max(8, round(load * rate * seconds))
    report = _bench(server, seed=2 * number + (load > 1), requests=requests, rate=load * rate)
    outcomes = Counter(str(record.outcome) for record in report.records)
    times = sorted(record.e2e for record in report.records if record.ok and record.e2e is not None)
    lost = sum(record.outcome in (Outcome.UNREACHED, Outcome.TIMEOUT) for record in report.records)
    return Round(
        load,
        load * rate,
        dict(outcomes),
        statistics.median(times) if times else None,
        times[int(0.99 * (len(times) - 1))] if times else None,
        lost,
    )


def rest(server: Server, began: float) -> Rest:
    """What the server holds, and how fast it answers one at a time."""
    body = {"prompt": "What is 3 + 4?", "max_tokens": 16, "temperature": 0, "ignore_eos": True, "model": "isles"}
    singles, references = [], []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(15):
            singles.append(_timed(lambda: client.post("/v1/completions", json=body).raise_for_status()))
            references.append(_timed(lambda: sum(range(200_000))))
    time.sleep(0.5)  # closed connections take a moment to go
    memory = server.resources.memory_info().rss / MEGABYTE
    return Rest(
        time.monotonic() - began,
        memory,
        server.resources.num_fds(),
        server.resources.num_threads(),
        1000 * statistics.median(singles),
        1000 * statistics.median(references),
    )


def slope(points: list[tuple[float, float]]) -> float:
    """Theil-Sen: the median of the slopes between all pairs of points, so that one odd point does not matter."""
    return statistics.median(
        (y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :] if x2 > x1
    )


def _bench(server: Server, **spec: Any) -> Any:
    options = BenchOptions(url=server.url, endpoint="completions", warmup=0, timeout=120, **LENGTHS, **spec)
    return run_bench(options)


def _timed(action: Any) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
