"""Rotary frequencies are those of transformers, up to how torch rounds powers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from armillary.models.rope import frequencies
from armillary.models.spec import RopeSpec

DIM, TRAINED = 16, 512
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 3.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "longrope": {"short_factor": [1.1] * 8, "long_factor": [1.7, 2.3] * 4, "factor": 4.0},
}


@pytest.mark.parametrize("context", [TRAINED, 4 * TRAINED])
@pytest.mark.parametrize("theta", [500.0, 10_000.0, 150_000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_scaling_agrees_to_two_places_of_the_last(kind: str, theta: float, context: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = {"rope_type": kind, "rope_theta": theta, "original_max_position_embeddings": TRAINED, **KINDS[kind]}
    length = TRAINED if kind == "dynamic" else context
    config = LlamaConfig(
        hidden_size=4 * DIM, num_attention_heads=4, max_position_embeddings=length, rope_parameters=given
    )
    wanted, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", context)
    got, ours = frequencies(RopeSpec(kind, theta, DIM, TRAINED, KINDS[kind]), context)
    assert got.dtype == np.float32 and ours == pytest.approx(factor)
    np.testing.assert_array_max_ulp(got, wanted.numpy(), 2)


@pytest.mark.parametrize(("theta", "dim"), [(10_000.0, 64), (10_000.0, 128), (500_000.0, 64), (500_000.0, 128)])
def test_powers_are_the_nearest_numbers(theta: float, dim: int) -> None:
    got, factor = frequencies(RopeSpec("default", theta, dim, TRAINED), TRAINED)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    exact = np.exp(exponents.astype(np.longdouble) * np.log(np.longdouble(theta)))
    assert factor == 1.0 and np.array_equal(got, 1 / exact.astype(np.float32))
