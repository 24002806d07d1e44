"""What other people measured on machines that are not here, against what data sheets and assumptions predict.

Nothing is run: these claims test `armillary.twin.analytic`. The assumptions of `hardware.yaml` were written down before
the first comparison and have not been changed since, though by people who had seen most of the figures. Published
figures are facts taken from the sources that each claim names; models are described by their config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from armillary.measure.claims import Finding
from armillary.measure.statistics import Spread
from armillary.twin.analytic import AnalyticCost, Parallel
from armillary.twin.hardware import find_hardware
from armillary.twin.shapes import read_shape
from armillary.twin.work import StepWork

MEDIAN = 0.25
"""Most that the median deviation may be."""
COVERED = 2 / 3
"""Least share of the published figures that must lie in their intervals."""
RULE = (
    f"The median deviation of predicted from published times is at most {MEDIAN:.0%}, and at least "
    f"{COVERED:.0%} of the published figures lie in the predicted intervals."
)

_LLAMA_7B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "LLaMA 7B": _LLAMA_7B,
    "Llama 2 70B": _LLAMA_7B | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "Falcon 180B": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 14848, "num_hidden_layers": 80,
        "num_attention_heads": 232, "num_kv_heads": 8, "new_decoder_architecture": True,
    },
    "Mistral 7B": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None,
        "max_position_embeddings": 32768,
    },
    "Yi 34B": _LLAMA_7B | {
        "vocab_size": 64000, "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60,
        "num_attention_heads": 56, "num_key_value_heads": 8, "max_position_embeddings": 200000,
    },
    "OPT-6.7B": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "OPT-13B": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 5120, "ffn_dim": 20480, "num_hidden_layers": 40,
        "num_attention_heads": 40, "max_position_embeddings": 2048,
    },
    "OPT-66B": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 9216, "ffn_dim": 36864, "num_hidden_layers": 64,
        "num_attention_heads": 72, "max_position_embeddings": 2048,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One published time.

    Attributes:
        what: for people.
        seconds: as published.
        cost: of the model on the hardware.
        steps: (step, how many of it) that it is made of.
    """

    what: str
    seconds: float
    cost: AnalyticCost
    steps: tuple[tuple[StepWork, int], ...]

    @property
    def predicted(self) -> tuple[float, float, float]:
        """Seconds: expected, fast, slow. What passes between steps counts, for clients and authors wait for it."""
        cost = self.cost
        fast_gap, slow_gap = cost.between_interval
        expected = sum(n * (cost.step_s(step) + cost.between_s(step)) for step, n in self.steps)
        bounds = [(cost.interval(step), n) for step, n in self.steps]
        fast = sum(n * (low + fast_gap) for (low, _), n in bounds)
        slow = sum(n * (high + slow_gap) for (_, high), n in bounds)
        return expected, fast, slow


def cost_of(model: str, hardware: str, tensor: int = 1, dtype: str = "float16", *, pipeline: int = 1) -> AnalyticCost:
    """What a model costs on so many devices; keys and values in the format of the weights."""
    return AnalyticCost(read_shape(MODELS[model]), find_hardware(hardware), Parallel(tensor, pipeline), dtype, dtype)


def prompt(tokens: int, batch: int = 1) -> StepWork:
    """A step that computes so many whole prompts."""
    return StepWork(batch, batch * tokens, batch, batch * tokens, batch * tokens * (tokens + 1) // 2)


def decode(batch: int, context: int) -> StepWork:
    """A step that gives each of so many sequences its next token."""
    return StepWork(batch, batch, batch, batch * context, batch * context)


def generation(batch: int, prompt_tokens: int, output_tokens: int, every: int = 16) -> tuple[tuple[StepWork, int], ...]:
    """Prompts of a batch together, then all their tokens; contexts in runs of `every` tokens."""
    runs = [(begin, min(every, output_tokens - begin)) for begin in range(1, output_tokens, every)]
    return ((prompt(prompt_tokens, batch), 1), *((decode(batch, prompt_tokens + at + n // 2), n) for at, n in runs))


def calibration(published: Sequence[Published], group: Callable[[Published], str]) -> str:
    """How far predictions are off, in words, for claims that rest on them."""
    off = {name: f"{median:.0%}" for name, median in _medians(published, group).items()}
    median = float(np.median([abs(each.predicted[0] / each.seconds - 1.0) for each in published]))
    by_group = ", ".join(f"{name} {value}" for name, value in off.items())
    return f"median deviation {median:.0%} over {len(published)} published times ({by_group})"


def _medians(published: Sequence[Published], group: Callable[[Published], str]) -> dict[str, float]:
    """The median deviation of each group."""
    groups: dict[str, list[float]] = {}
    for each in published:
        groups.setdefault(group(each), []).append(abs(each.predicted[0] / each.seconds - 1.0))
    return {name: float(np.median(values)) for name, values in groups.items()}


def compare(published: Sequence[Published], group: Callable[[Published], str], notes: Sequence[str]) -> Finding:
    """Every figure: predicted over published, with the interval as lowest and highest."""
    figures: dict[str, Spread] = {}
    deviations: list[float] = []
    covered = 0
    for each in published:
        expected, fast, slow = (seconds / each.seconds for seconds in each.predicted)
        figures[f"{each.what} ({1e3 * each.seconds:.4g} ms published)"] = Spread((fast, expected, slow))
        deviations.append(expected - 1.0)
        covered += fast <= 1.0 <= slow
    median = float(np.median(np.abs(deviations)))
    by_group = ", ".join(f"{name} {value:.0%}" for name, value in _medians(published, group).items())
    share = covered / len(deviations)
    return Finding(
        holds=median <= MEDIAN and share >= COVERED,
        result=(
            f"median deviation {median:.0%} ({by_group}), at most {max(map(abs, deviations)):.0%}; {covered} of "
            f"{len(deviations)} published figures lie in their intervals"
        ),
        figures=figures,
        notes=[
            "Each figure is predicted over published time: 1 is exact; lowest and highest are the interval from the "
            "assumptions, not a spread over repeats.",
            "From data sheets and assumptions alone (hardware.yaml), which were written down before the first "
            "comparison and not changed after it, by people who had seen most of the published figures. The limits of "
            "the rule, and that the time between steps counts, were set after it.",
            *notes,
        ],
    )
