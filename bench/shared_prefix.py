"""What it saves that sequences take what others compute in the same step.

    python -m bench.shared_prefix [--requests 32] [--prefix 512] [--own 32] [--repeats 5] [--json PATH]

Requests that come at once, whose prompts begin alike: the bundled model on one thread with a prefix of its own in every
round, then the twin of a Llama of 8B on an H100, then there fan-outs (eight requests at once, again and again, with
another prefix of 2,048 tokens each time). In turns: `step`, as it is; `computed`, blocks can be found once they have
been computed; `off`, no prefix cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from statistics import median
from typing import Any
from unittest.mock import patch

from armillary.core.config import SchedulerConfig
from armillary.core.request import Request
from armillary.core.sharing import Sharing
from armillary.core.step import Event
from armillary.deployment import EngineSettings
from armillary.measure.workload import WorkItem
from armillary.models.locate import locate
from armillary.runtime.load import build_engine
from armillary.runtime.sampling import SamplingParams
from armillary.twin.analytic import AnalyticCost
from armillary.twin.hardware import find_hardware
from armillary.twin.shapes import read_shape
from armillary.twin.simulate import simulate

WAYS = ("step", "computed", "off")
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}  # fmt: skip
OUTPUT = 8


@contextmanager
def once_computed() -> Iterator[None]:
    """Blocks are entered into the prefix index when their step is over."""
    with (
        patch.object(Sharing, "announce", lambda self, step, entry: None),
        patch.object(Sharing, "advance", lambda self, step, tokens: tokens),
    ):
        yield


def real(options: argparse.Namespace, way: str, seed: int) -> dict[str, float]:
    """One round on the bundled model. Seconds are of the processor; so are times to first tokens."""
    random = Random(seed)
    first: dict[str, float] = {}
    started = 0.0

    def sink(events: list[Event]) -> None:
        for event in events:
            first.setdefault(event.request_id, time.process_time() - started)

    settings = EngineSettings(
        threads=1, max_running=options.requests, max_step_tokens=2048, max_chunk_tokens=options.chunk, kv_blocks=2048,
        max_context=1024, prefix_cache=way != "off",
    )  # fmt: skip
    loaded = build_engine(locate("isles"), settings, sink)
    engine, vocabulary = loaded.engine, loaded.spec.vocab_size

    def prompt(prefix: tuple[int, ...], own: int) -> tuple[int, ...]:
        return prefix + tuple(random.randrange(vocabulary) for _ in range(own))

    greedy = SamplingParams(temperature=0.0)
    engine.submit(Request("warm", prompt((), 600), OUTPUT, sampling=greedy))
    engine.run_until_idle()
    stats = engine.scheduler.stats
    before = stats.computed_tokens, stats.steps
    prefix = prompt((), options.prefix)
    for number in range(options.requests):
        engine.submit(Request(f"r{number}", prompt(prefix, options.own), OUTPUT, sampling=greedy))
    first.clear()
    started, wall = time.process_time(), time.perf_counter()
    engine.run_until_idle()
    return {
        "prompt_tokens": stats.computed_tokens - before[0] - options.requests * (OUTPUT - 1),
        "steps": stats.steps - before[1],
        "cpu_s": time.process_time() - started,
        "wall_s": time.perf_counter() - wall,
        "ttft_median_s": median(first.values()),
        "ttft_last_s": max(first.values()),
    }


def twin(config: SchedulerConfig, items: list[WorkItem]) -> dict[str, float]:
    """A simulation. Seconds are virtual."""
    result = simulate(config, items, AnalyticCost(read_shape(LLAMA_8B), find_hardware("h100")))
    found = sorted((result.requests.first - result.requests.due).tolist())
    return {
        "prompt_tokens": result.stats.computed_tokens - sum(item.output_tokens - 1 for item in items),
        "steps": result.steps.steps,
        "duration_s": result.duration_s,
        "ttft_first_s": found[0],
        "ttft_median_s": median(found),
        "ttft_p99_s": found[int(0.99 * (len(found) - 1))],
        "ttft_last_s": found[-1],
    }


def fan_outs(seed: int, bursts: int, rate: float) -> list[WorkItem]:
    """Eight requests at once, bursts at random moments."""
    random, now, items = Random(seed), 0.0, []
    for burst in range(bursts):
        now += random.expovariate(rate)
        for copy in range(8):
            items.append(
                WorkItem(
                    id=f"{burst}-{copy}", arrival=now, prompt_tokens=2048 + 64, output_tokens=64,
                    prefix=((f"p{burst}", 2048),),
                )
            )  # fmt: skip
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prefix", type=int, default=512)
    parser.add_argument("--own", type=int, default=32)
    parser.add_argument("--chunk", type=int, help="most tokens of one sequence in one step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(options.repeats):
        for way in WAYS:
            with once_computed() if way == "computed" else nullcontext():
                found[way].append(real(options, way, number))
    for way, rounds in found.items():
        spread = {key: sorted(one[key] for one in rounds) for key in rounds[0]}
        tell({"where": "isles", "way": way, **{k: [v[0], median(v), v[-1]] for k, v in spread.items()}})
    total = options.prefix + options.own
    at_once = [
        WorkItem(id=str(n), arrival=0.0, prompt_tokens=total, output_tokens=OUTPUT, prefix=(("p", options.prefix),))
        for n in range(options.requests)
    ]
    for name, items, chunk in (
        ("at once", at_once, options.chunk),
        ("at once in chunks of 128", at_once, 128),
        ("fan-outs", fan_outs(0, 400, 5.0), options.chunk),
    ):
        for way in WAYS:
            config = SchedulerConfig(
                30_000, 8192, max_step_tokens=2048, max_chunk_tokens=chunk, max_running=256, max_waiting=10**6,
                prefix_cache=way != "off",
            )  # fmt: skip
            with once_computed() if way == "computed" else nullcontext():
                tell({"where": "twin", "workload": name, "way": way, **twin(config, items)})
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
