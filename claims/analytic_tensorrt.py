"""TensorRT-LLM's published tables, against the roofline of the data sheets."""

from __future__ import annotations

from armillary.measure.claims import Claim, Finding, Trial
from claims.published import RULE, Published, compare, cost_of, generation, prompt

TITLES = {"a100-80": ("A100, FP16", "float16"), "h100": ("H100, FP8", "float8")}
FIRST_TOKEN = (
    ("a100-80", "LLaMA 7B", 1, 128, 16), ("a100-80", "LLaMA 7B", 1, 2048, 133),
    ("a100-80", "Llama 2 70B", 4, 128, 47), ("a100-80", "Llama 2 70B", 4, 2048, 377),
    ("a100-80", "Falcon 180B", 8, 128, 61), ("a100-80", "Falcon 180B", 8, 2048, 509),
    ("h100", "LLaMA 7B", 1, 128, 7), ("h100", "LLaMA 7B", 1, 2048, 36),
    ("h100", "Llama 2 70B", 4, 128, 26), ("h100", "Llama 2 70B", 4, 2048, 109),
    ("h100", "Falcon 180B", 8, 128, 27), ("h100", "Falcon 180B", 8, 2048, 205),
)  # fmt: skip
"""Hardware, model, devices, prompt tokens, milliseconds to the first token at batch 1."""
THROUGHPUT = (
    ("a100-80", "LLaMA 7B", 1, 384, 128, 128, 5586), ("a100-80", "LLaMA 7B", 1, 60, 128, 2048, 1928),
    ("a100-80", "LLaMA 7B", 1, 52, 2048, 128, 591),
    ("h100", "LLaMA 7B", 1, 768, 128, 128, 19694), ("h100", "LLaMA 7B", 1, 112, 128, 2048, 6818),
    ("h100", "LLaMA 7B", 1, 80, 2048, 128, 2244), ("h100", "LLaMA 7B", 1, 48, 2048, 2048, 2740),
    ("h100", "Llama 2 70B", 2, 1024, 128, 128, 2657), ("h100", "Llama 2 70B", 4, 480, 128, 2048, 1486),
    ("h100", "Llama 2 70B", 2, 96, 2048, 128, 306), ("h100", "Llama 2 70B", 2, 64, 2048, 2048, 547),
    ("h100", "Falcon 180B", 4, 64, 2048, 128, 112), ("h100", "Falcon 180B", 4, 64, 2048, 2048, 264),
)  # fmt: skip
"""Hardware, model, devices, batch, prompt and output tokens, output tokens per second and device. All from
docs/source/performance.md of NVIDIA/TensorRT-LLM at 138f96d (figures of versions 0.5 and 0.6.1)."""


def measure(trial: Trial) -> Finding:
    """Compare; nothing is run."""
    published = []
    for hardware, model, tensor, tokens, ms in FIRST_TOKEN:
        title, dtype = TITLES[hardware]
        cost = cost_of(model, hardware, tensor, dtype)
        what = f"{model}, {tensor} x {title}, first token after {tokens}"
        published.append(Published(what, ms / 1e3, cost, ((prompt(tokens), 1),)))
    for hardware, model, tensor, batch, prompts, outputs, rate in THROUGHPUT:
        title, dtype = TITLES[hardware]
        cost = cost_of(model, hardware, tensor, dtype)
        what = f"{model}, {tensor} x {title}, {batch} x {prompts} in, {outputs} out"
        seconds = batch * outputs / (rate * tensor)
        published.append(Published(what, seconds, cost, generation(batch, prompts, outputs)))
    return compare(
        published,
        lambda each: "first token" if "first token" in each.what else "whole batches",
        [
            "Throughput is turned into the time of the whole batch, prompts in one step and every output token in one "
            "step of all; the A100 rows of Llama 2 70B and Falcon, whose unit the page leaves open, are left out.",
            "The outliers are decoding with grouped queries (Llama 2 70B, Falcon): the kernels of 2023 did not reach "
            "the bandwidth there that they reached for LLaMA 7B.",
        ],
    )


CLAIM = Claim(
    name="analytic_tensorrt",
    title="Performance of TensorRT-LLM",
    venue="NVIDIA, documentation of version 0.6.1, 2023",
    published=(
        "Milliseconds to the first token at batch 1, and output tokens per second of large batches, for LLaMA 7B, "
        "Llama 2 70B and Falcon 180B on 1 to 8 A100 (FP16) and H100 (FP8)."
    ),
    compared=(
        "The same runs put together from steps that the twin's roofline predicts for the data sheets. From a model of "
        "hardware, not from running it."
    ),
    rule=RULE,
    measure=measure,
)
