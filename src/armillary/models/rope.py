"""Rotary position embedding: frequencies of every scaling that is read.

Sources: Su et al. 2021 (RoPE); kaiokendev 2023 (linear); bloc97 2023 (dynamic NTK); Peng et al. 2023 (YaRN);
Dubey et al. 2024 (llama3); Ding et al. 2024 (LongRoPE). Formulas agree with `transformers` to the bit in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from armillary.models.spec import RopeSpec

Frequencies = tuple[Tensor, float]
"""Inverse frequencies, float32 [dim / 2], and the factor on cosine and sine."""


def frequencies(rope: RopeSpec, max_context: int) -> Frequencies:
    """Frequencies of `rope` when sequences of at most `max_context` tokens are served."""
    return _KINDS[rope.kind](rope, max_context)


def rotation(positions: Tensor, inverse: Tensor, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `positions` (int64 [T]), [T, 1, dim] each, as `kernels.reference.rotary` takes them."""
    angles = positions[:, None, None].float() * inverse
    cos, sin = angles.cos(), angles.sin()
    if scaling != 1.0:
        cos, sin = cos * scaling, sin * scaling
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64).float() / dim


def _plain(theta: float, dim: int) -> Tensor:
    return torch.as_tensor(1.0 / (theta ** _exponents(dim)))


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
    wavelength = 2 * math.pi / inverse
    scaled = torch.where(wavelength > trained / low, inverse / factor, inverse)
    smooth = (trained / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * scaled / factor + smooth * scaled
    medium = ~(wavelength < trained / high) & ~(wavelength > trained / low)
    return torch.where(medium, smoothed, scaled), 1.0


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
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    powers = theta ** _exponents(dim)
    keep = 1 - ramp
    return (1.0 / (factor * powers)) * (1 - keep) + (1.0 / powers) * keep, float(scaling)


def _longrope(rope: RopeSpec, max_context: int) -> Frequencies:
    p, trained = rope.parameters, rope.trained_context
    scaling = p.get("attention_factor")
    if scaling is None:
        factor = float(p["factor"])
        scaling = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(trained))
    factors = torch.tensor(p["long_factor" if max_context > trained else "short_factor"], dtype=torch.float32)
    return 1.0 / (factors * rope.theta ** _exponents(rope.dim)), float(scaling)


_KINDS: dict[str, Callable[[RopeSpec, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
