"""Rotary position embedding: frequencies of every scaling that is read.

Sources: Su et al. 2021 (RoPE); kaiokendev 2023 (linear); bloc97 2023 (dynamic NTK); Peng et al. 2023 (YaRN);
Dubey et al. 2024 (llama3); Ding et al. 2024 (LongRoPE). Formulas are those of `transformers`, operation by operation in
float32, but for the powers: they are computed in float64 and rounded once. torch's own miss the nearest float32 by one
place in one of a hundred, and not the same ones on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from armillary.models.spec import RopeSpec

Floats = npt.NDArray[np.float32]
Frequencies = tuple[Floats, float]
"""Inverse frequencies, float32 [dim / 2], and the factor on cosine and sine."""


def frequencies(rope: RopeSpec, max_context: int) -> Frequencies:
    """Frequencies of `rope` when sequences of at most `max_context` tokens are served."""
    return _KINDS[rope.kind](rope, max_context)


def _powers(theta: float, dim: int) -> Floats:
    """theta to the power of 0, 2 / dim, 4 / dim, ..."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(float(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)


def _plain(theta: float, dim: int) -> Floats:
    return np.float32(1) / _powers(theta, dim)


def _default(rope: RopeSpec, max_context: int) -> Frequencies:
    return _plain(rope.theta, rope.dim), 1.0


def _linear(rope: RopeSpec, max_context: int) -> Frequencies:
    return _plain(rope.theta, rope.dim) / float(rope.parameters["factor"]), 1.0


def _dynamic(rope: RopeSpec, max_context: int) -> Frequencies:
    factor, trained, dim = float(rope.parameters["factor"]), rope.trained_context, rope.dim
    length = max(max_context, trained)
    theta = rope.theta * ((factor * length / trained) - (factor - 1)) ** (dim / (dim - 2))
    return _plain(theta, dim), 1.0


def _llama3(rope: RopeSpec, max_context: int) -> Frequencies:
    p = rope.parameters
    factor, low, high = float(p["factor"]), float(p["low_freq_factor"]), float(p["high_freq_factor"])
    inverse, trained = _plain(rope.theta, rope.dim), rope.trained_context
    # Here and below, torch divides a number by a tensor as it multiplies with one over it.
    wavelength = 1 / inverse * (2 * math.pi)
    scaled = np.where(wavelength > trained / low, inverse / factor, inverse)
    smooth = (1 / wavelength * trained - low) / (high - low)
    smoothed = (1 - smooth) * scaled / factor + smooth * scaled
    medium = ~(wavelength < trained / high) & ~(wavelength > trained / low)
    return np.where(medium, smoothed, scaled), 1.0


def _yarn(rope: RopeSpec, max_context: int) -> Frequencies:
    p, dim, theta, trained = rope.parameters, rope.dim, rope.theta, rope.trained_context
    factor = float(p["factor"])

    def magnitude(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    scaling = p.get("attention_factor")
    if scaling is None:
        mscale, mscale_all = p.get("mscale") or 0.0, p.get("mscale_all_dim") or 0.0
        both = mscale and mscale_all
        scaling = magnitude(factor, mscale) / magnitude(factor, mscale_all) if both else magnitude(factor)

    def correction(rotations: float) -> float:
        return (dim * math.log(trained / (rotations * 2 * math.pi))) / (2 * math.log(theta))

    low, high = correction(p.get("beta_fast") or 32), correction(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    powers = _powers(theta, dim)
    keep = 1 - ramp
    return 1 / (factor * powers) * (1 - keep) + 1 / powers * keep, float(scaling)


def _longrope(rope: RopeSpec, max_context: int) -> Frequencies:
    p, trained = rope.parameters, rope.trained_context
    scaling = p.get("attention_factor")
    if scaling is None:
        factor = float(p["factor"])
        scaling = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(trained))
    factors = np.array(p["long_factor" if max_context > trained else "short_factor"], dtype=np.float32)
    return np.float32(1) / (factors * _powers(rope.theta, rope.dim)), float(scaling)


_KINDS: dict[str, Callable[[RopeSpec, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
