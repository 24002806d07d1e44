"""What a step costs beside the kernels: scheduling, Python, and what is delivered.

    python -m bench.step_overhead [--models bundled 0.6b] [--sequences 1 16] [--json PATH]

Decodes with one thread and measures, by the processor time of that thread, the whole of `Engine.step` and the calls
into the compiled program and the compiled sampler within it. The overhead is what is left: its share of a step,
and microseconds. `bundled` is the model that comes along, `0.6b` the shape of Qwen3-0.6B with random weights in int4.
Medians over rounds of many steps, with their spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.request import Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event
from armillary.kernels import native
from armillary.models.checkpoint import load_decoder
from armillary.models.config import spec_from_config
from armillary.models.decoder import Decoder
from armillary.models.locate import locate
from armillary.models.native import native_decoder
from armillary.models.quantized import Quantization
from armillary.runtime.clock import WallClock
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.sampling import SamplingParams

SHAPE = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
BLOCKS, BLOCK_SIZE, PROMPT, WARM_UP = 512, 16, 16, 8


class Clocked:
    """An object of the extension whose methods book their processor time to a shared sum."""

    def __init__(self, inner: Any, spent: list[float]) -> None:
        self._inner = inner
        self._spent = spent

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def timed(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return found(*arguments)
            finally:
                self._spent[0] += time.thread_time() - started

        setattr(self, name, timed)  # looked up once, so that little of what is measured is the measuring
        return timed


def decoder_of(model: str) -> Decoder:
    if model == "bundled":
        return load_decoder(locate("isles"))
    decoder = Decoder(spec_from_config(SHAPE), torch.bfloat16)
    decoder.initialise()
    return decoder


def measure(model: str, path: str, sequences: list[int], steps: int, rounds: int) -> dict[str, Any]:
    """Overheads of decoding with so many sequences at a time."""
    asked = Quantization("bfloat16" if model == "bundled" else "int4")
    decoder = native_decoder(decoder_of(model), path, asked, threads=1)
    executor = TorchExecutor(decoder, decoder.spec, BLOCKS, BLOCK_SIZE, "bfloat16", threads=1)
    spent = [0.0]
    compute: Any = executor.compute
    compute._program = Clocked(compute._program, spent)
    sampler: Any = executor.sampler
    sampler._native._sampler = Clocked(sampler._native._sampler, spent)
    found: dict[str, Any] = {}
    for count in sequences:
        shares, overheads, wholes = [], [], []
        for _ in range(rounds):
            events: list[Event] = []
            config = SchedulerConfig(BLOCKS, PROMPT + steps + WARM_UP + 2, BLOCK_SIZE, max_running=count)
            engine = Engine(Scheduler(config), executor, WallClock(), events.extend)
            params = SamplingParams(temperature=0.0, ignore_eos=True)
            for number in range(count):
                prompt = tuple(range(10 + number, 10 + number + PROMPT))
                engine.submit(Request(str(number), prompt, steps + WARM_UP, sampling=params))
            for _ in range(WARM_UP):
                engine.step()
            spent[0], started = 0.0, time.thread_time()
            for _ in range(steps - 1):
                engine.step()
            whole, inside = time.thread_time() - started, spent[0]
            engine.run_until_idle()
            if any(event.error for event in events):
                raise RuntimeError(next(event.error for event in events if event.error))
            shares.append(1 - inside / whole)
            overheads.append(1e6 * (whole - inside) / (steps - 1))
            wholes.append(1e6 * whole / (steps - 1))
        found[str(count)] = {
            "overhead_share": spread(shares),
            "overhead_us": spread(overheads),
            "step_us": spread(wholes),
        }
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("bundled", "0.6b"), default=["bundled", "0.6b"])
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    path = native.choose()
    if path is None:
        raise SystemExit(native.why())
    results: dict[str, Any] = {"path": path}
    for model in options.models:
        results[model] = found = measure(model, path, options.sequences, options.steps, options.rounds)
        for count, figures in found.items():
            share, spent, step = figures["overhead_share"], figures["overhead_us"], figures["step_us"]
            print(
                f"{model}, {count} at a time: {share['median']:.1%} ({share['least']:.1%} to {share['most']:.1%}) "
                f"of a step, {spent['median']:.0f} of {step['median']:.0f} us",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
