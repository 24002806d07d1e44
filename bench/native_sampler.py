"""What choosing tokens costs, by torch and by the native kernels.

    python -m bench.native_sampler [--rows 8] [--repeats 7] [--json PATH]

First the sampler alone, on random logits of a small and of a large vocabulary, one thread, in processor microseconds a
row and against the product with a bfloat16 head 1,024 wide, which is the smaller part of such a model's step; then its
share of a step of the bundled model, measured around the sampler while it generates. Ratios are medians over rounds in
which torch and native alternate, with their spread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench.recorded import add_json, save

from armillary.core.request import Request, Sequence
from armillary.kernels import native
from armillary.runtime.native_sampler import NativeSampler
from armillary.runtime.sampler import Sampled, Sampler
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.wishes import Row

VOCABULARIES = (1_024, 151_936)
WIDTH = 1_024
KINDS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0),
    "greedy with a bias": SamplingParams(temperature=0, logit_bias={1: -1.0}),
    "temperature": SamplingParams(seed=1),
    "top-k 40": SamplingParams(seed=1, top_k=40),
    "top-p 0.9": SamplingParams(seed=1, top_p=0.9),
    "top-k 40, top-p 0.9": SamplingParams(seed=1, top_k=40, top_p=0.9),
    "min-p 0.05": SamplingParams(seed=1, min_p=0.05),
    "greedy, 20 logprobs": SamplingParams(temperature=0, logprobs=20),
}


def spent(work: Callable[..., object], *arguments: object, least: float = 0.02) -> float:
    """Processor seconds of one call, over as many calls as take `least` seconds."""
    calls = 0
    started = time.thread_time()
    while calls == 0 or time.thread_time() - started < least:
        work(*arguments)
        calls += 1
    return (time.thread_time() - started) / calls


def logits_like_a_model(rows: int, vocab: int) -> torch.Tensor:
    """A broad floor and some likely tokens, as a language model has them."""
    numbers = torch.Generator().manual_seed(vocab)
    logits = torch.randn(rows, vocab, generator=numbers) * 2
    likely = torch.randint(0, vocab, (rows, 50), generator=numbers)
    return logits.scatter_(1, likely, torch.randn(rows, 50, generator=numbers) * 3 + 10)


def alone(path: str, rows: int, repeats: int) -> dict[str, Any]:
    """Microseconds a row and the ratio, by vocabulary and kind."""
    found: dict[str, Any] = {}
    for vocab in VOCABULARIES:
        logits = logits_like_a_model(rows, vocab)
        head, hidden = torch.randn(vocab, WIDTH).bfloat16(), torch.randn(rows, WIDTH).bfloat16()
        for kind, params in KINDS.items():
            batch = [Row(Sequence(Request(str(i), (1, 2), 9, sampling=params), 0, i, 0.0), 0) for i in range(rows)]
            samplers = (Sampler(), Sampler(NativeSampler(path)))
            rounds = []
            for number in range(repeats + 1):
                times = [spent(sampler.sample, logits.numpy(), batch) for sampler in samplers]
                if number:  # the first round warms up
                    rounds.append((*times, spent(torch.matmul, hidden, head.t())))
            tokens = [sampler.sample(logits.numpy(), batch).tokens for sampler in samplers]
            found[f"{vocab:,}: {kind}"] = {
                "torch_us": 1e6 * statistics.median(a for a, _, _ in rounds) / rows,
                "native_us": 1e6 * statistics.median(b for _, b, _ in rounds) / rows,
                "torch_over_native": spread([a / b for a, b, _ in rounds]),
                "torch_over_head": spread([a / c for a, _, c in rounds]),
                "native_over_head": spread([b / c for _, b, c in rounds]),
                "same_tokens": tokens[0] == tokens[1],
            }
    return found


def share_of_a_step(rows: int, repeats: int) -> dict[str, Any]:
    """The sampler's part of the processor time of the bundled model, greedy and with top-p."""
    from armillary import LLM

    inside = [0.0]
    sample = Sampler.sample

    def timed(self: Sampler, *arguments: Any) -> Sampled:
        started = time.thread_time()
        try:
            return sample(self, *arguments)
        finally:
            inside[0] += time.thread_time() - started

    found: dict[str, Any] = {}
    Sampler.sample = timed  # type: ignore[method-assign, assignment]
    before = os.environ.get(native.VARIABLE)
    try:
        for kernels in ("torch", "native"):
            os.environ[native.VARIABLE] = kernels
            with LLM("isles", threads=1, prefix_cache=False) as llm:
                for kind in ("greedy", "top-p 0.9"):
                    wanted = replace(KINDS[kind], max_tokens=64, ignore_eos=True)
                    shares = []
                    for number in range(repeats + 1):
                        inside[0], started = 0.0, time.process_time()
                        llm.generate(["The ferry"] * rows, wanted)
                        if number:
                            shares.append(inside[0] / (time.process_time() - started))
                    found[f"{kernels}: {kind}"] = spread(shares)
    finally:
        Sampler.sample = sample  # type: ignore[method-assign]
        os.environ.pop(native.VARIABLE) if before is None else os.environ.update({native.VARIABLE: before})
    return found


def spread(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    add_json(parser)
    options = parser.parse_args()
    path = native.choose()
    if path is None:
        raise SystemExit("the native kernels are not built; `make native` builds them")
    torch.set_num_threads(1)
    found: dict[str, Any] = {"rows": options.rows}
    with torch.inference_mode():
        found["alone"] = alone(path, options.rows, options.repeats)
    found["share_of_a_step"] = share_of_a_step(options.rows, max(2, options.repeats // 2))
    print(json.dumps(found, indent=2))
    save(options.json, path, 1, found)


if __name__ == "__main__":
    main()
