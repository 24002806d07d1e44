"""Offline throughput of concurrent sequences, against the continuous batching of transformers.

    python -m bench.throughput [--sequences 16] [--prompt 16] [--output 16] [--repeats 3] [--dtype bfloat16]

Both engines get the same random weights (a Qwen3 of 0.6B shape), the same random token ids, greedy sampling and fixed
output lengths, and run in turns in one process with the same number of threads. Loading and start-up are left
out on both sides; a warm-up comes first. Armillary computes with what it would serve with: the native kernels where
they were built. It says so, and `ARMILLARY_KERNELS` in the environment chooses otherwise. Reported is the ratio of
output tokens per second, round by round, with its spread.
Random weights are drawn wide enough that greedy tokens do not sit on ties; how many tokens agree is reported, since
number formats of the two differ in where they round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from bench.peers.shapes import tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from armillary.core.request import Request
from armillary.core.step import Event
from armillary.deployment.engine import EngineSettings
from armillary.measure.report import write_text
from armillary.measure.statistics import Spread, interleaved, ratios
from armillary.models.checkpoint import DTYPES
from armillary.runtime.load import build_engine
from armillary.runtime.sampling import SamplingParams

Prompts = list[list[int]]
BLOCK = 16


@dataclass(frozen=True)
class Timing:
    """One run: seconds by the wall and of processor time (all threads), and the generated tokens of each sequence."""

    seconds: float
    cpu: float
    outputs: list[list[int]]


def shape(layers: int, vocab: int) -> Qwen3Config:
    """Qwen3-0.6B, by default."""
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


def random_model(config: Qwen3Config, dtype: torch.dtype) -> Qwen3ForCausalLM:
    """Random weights; the final norm is random too, so that tied embeddings do not just repeat the last token."""
    torch.manual_seed(0)
    config._attn_implementation = "sdpa"
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(previous)
    model.train(False)
    with torch.no_grad():
        model.model.norm.weight.normal_(0.0, 1.0)
    return model


def ours(
    folder: Path, dtype: str, sequences: int, length: int, threads: int
) -> tuple[Callable[[Prompts, int], Timing], str]:
    """Armillary's engine over the checkpoint in `folder`, and what computes in it."""
    settings = EngineSettings.model_validate(
        {
            "dtype": dtype,
            "threads": threads,
            "kv_blocks": sequences * -(-length // BLOCK),
            "block_size": BLOCK,
            "max_context": length,
            "max_running": sequences,
            "prefix_cache": False,
            "packed_cache": False,
        }
    )
    events: list[Event] = []
    loaded = build_engine(folder, settings, events.extend)
    engine = loaded.engine
    runs = iter(range(10**9))

    def run(prompts: Prompts, output: int) -> Timing:
        number = next(runs)
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        started, cpu = time.perf_counter(), time.process_time()
        for i, prompt in enumerate(prompts):
            engine.submit(Request(f"{number}-{i}", tuple(prompt), output, sampling=params))
        engine.run_until_idle()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        outputs: list[list[int]] = [[] for _ in prompts]
        for event in events:
            if event.error is not None:
                raise RuntimeError(event.error)
            if event.token is not None:
                outputs[int(event.request_id.split("-")[1])].append(event.token)
        events.clear()
        return Timing(seconds, cpu, outputs)

    return run, loaded.plan.kernels


def theirs(model: Qwen3ForCausalLM, sequences: int, length: int, page: int) -> Callable[[Prompts, int], Timing]:
    """The continuous batching of transformers over `model`, its manager started once."""
    batching = ContinuousBatchingConfig(
        # Its attention on CPU reads the whole cache in every step, so a larger cache than needed would slow it down.
        page_size=page,
        num_blocks=sequences * -(-length // page) + 1,
        max_batch_tokens=512,
        allow_block_sharing=False,
    )

    def run(prompts: Prompts, output: int) -> Timing:
        generation = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        started, cpu = time.perf_counter(), time.process_time()
        results = model.generate_batch(
            prompts,
            generation_config=generation,
            continuous_batching_config=batching,
            persistent_manager=True,
            warmup=False,
        )
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return Timing(seconds, cpu, [list(r.generated_tokens) for r in results.values()])

    return run


def agreement(a: list[list[int]], b: list[list[int]]) -> float:
    """Share of tokens before the first difference of each sequence."""
    same = total = 0
    for left, right in zip(a, b, strict=True):
        total += len(left)
        same += next((i for i, (x, y) in enumerate(zip(left, right, strict=True)) if x != y), len(left))
    return same / total


def check(timing: Timing, sequences: int, output: int) -> None:
    if [len(tokens) for tokens in timing.outputs] != [output] * sequences:
        raise SystemExit(f"an engine did not generate {output} tokens for each sequence; nothing is comparable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=16, help="prompt tokens of each sequence")
    parser.add_argument("--output", type=int, default=16, help="tokens generated by each sequence")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    parser.add_argument("--page", type=int, default=32, help="page size of transformers' cache")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    length = options.prompt + options.output
    model = random_model(shape(options.layers, options.vocab), DTYPES[options.dtype])
    prompts = torch.randint(0, options.vocab, (options.sequences, options.prompt)).tolist()
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        (Path(name) / "tokenizer.json").write_text(json.dumps(tokenizer(options.vocab)), encoding="utf-8")
        run_ours, kernels = ours(Path(name), options.dtype, options.sequences, length, options.threads)
        print(f"armillary computes with: {kernels}", flush=True)
        engines = {
            "armillary": run_ours,
            "transformers": theirs(model, options.sequences, length, options.page),
        }
        for label, run in engines.items():
            print(f"warm-up: {label}", flush=True)
            run(prompts[:2], 2)

        def timed(run: Callable[[Prompts, int], Timing]) -> Callable[[], Timing]:
            def once() -> Timing:
                timing = run(prompts, options.output)
                check(timing, options.sequences, options.output)
                return timing

            return once

        timings = interleaved(
            {label: timed(run) for label, run in engines.items()},
            options.repeats,
            lambda label, turn: print(f"round {turn + 1} of {options.repeats}: {label}", flush=True),
        )
    tokens = options.sequences * options.output
    rates = {label: Spread(tuple(tokens / t.seconds for t in each)) for label, each in timings.items()}
    ratio = ratios(rates["armillary"].values, rates["transformers"].values)
    # On a machine that is busy with something else, processor time is the fairer measure.
    cpu = ratios([t.cpu for t in timings["transformers"]], [t.cpu for t in timings["armillary"]])
    result: dict[str, Any] = {
        "shape": {"layers": options.layers, "vocab": options.vocab, "hidden": 1024, "dtype": options.dtype},
        "workload": {"sequences": options.sequences, "prompt": options.prompt, "output": options.output},
        "output_tokens_per_s": {label: spread.as_json() for label, spread in rates.items()},
        "ratio": ratio.as_json(),
        "ratio_by_processor_time": cpu.as_json(),
        "load_average": os.getloadavg(),
        "same_tokens": agreement(timings["armillary"][0].outputs, timings["transformers"][0].outputs),
        "threads": options.threads,
        "kernels": kernels,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__
        },
        "processor": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
    for label, spread in rates.items():
        print(f"{label:>14}  {spread:.2f} output tokens/s")
    print(f"{'ratio':>14}  {ratio:.2f}, tokens that agree {result['same_tokens']:.1%}")
    print(f"{'by CPU time':>14}  {cpu:.2f}")
    if options.json:
        write_text(options.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
