"""What a model will do on this machine, from its config.json and two measured rates.

Decoding reads every weight that a token passes through once per step, so memory bandwidth bounds the steps per
second; a prompt multiplies every such weight once per token, so the matrix peak bounds prompt tokens per second.
Both are ceilings (the roofline model: Williams, Waterman, Patterson, CACM 2009): real speed lies below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from armillary.deployment.engine import EngineSettings
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.quantized import FLOAT_BYTES
from armillary.models.spec import ModelSpec
from armillary.runtime.machine import Machine
from armillary.runtime.native_plan import Kernels, formats_line, native_block_bytes, native_layout
from armillary.runtime.speed import Rate, matrix_peak, read_bandwidth


@dataclass(frozen=True)
class Diagnosis:
    """The machine and its measured rates.

    Attributes:
        machine: what it has.
        threads: threads that computed during the measurements.
        bandwidth: bytes read per second.
        peaks: dtype -> floating point operations per second in large products.
        kernels: what computes models here: torch, or a path of the native kernels.
        reason: why.
    """

    machine: Machine
    threads: int
    bandwidth: Rate
    peaks: dict[str, Rate]
    kernels: str = "torch"
    reason: str = ""


@dataclass(frozen=True)
class Ceiling:
    """The most that a model can do on a machine in one number format.

    Attributes:
        dtype: the format.
        weights: bytes of all weights.
        fits: whether weights and one full context fit into the memory that is available now.
        decode: tokens per second of one sequence, at most.
        batch: tokens per second of `batch_size` sequences together, at most.
        batch_size: sequences assumed for `batch`.
        prompt: prompt tokens per second, at most.
        context: tokens already in each sequence's cache, read again at every step.
        formats: of the matrices, for people, where they are not all of `dtype`.
    """

    dtype: str
    weights: int
    fits: bool
    decode: float
    batch: float
    batch_size: int
    prompt: float
    context: int
    formats: str = ""


NATIVE_DTYPES = ("float32", "bfloat16", "int8", "int4")
"""Formats that the report on a model lists where the native kernels compute."""


def active_parameters(spec: ModelSpec) -> int:
    """Weights that one token is multiplied with: of a mixture of experts only those it is sent to, of the
    embedding only the output side."""
    total = spec.num_parameters() - _embedding(spec)
    idle = 0
    for layer in spec.layers:
        if layer.mlp.experts:
            idle += 3 * spec.hidden_size * layer.mlp.intermediate * (layer.mlp.experts - layer.mlp.experts_per_token)
    return total - idle


def ceilings(spec: ModelSpec, diagnosis: Diagnosis, batch_size: int = 16, context: int = 512) -> list[Ceiling]:
    """What each format allows this model, fastest decoding first: those measured, or those of the native kernels."""
    context = min(context, spec.max_context)
    if diagnosis.kernels != "torch":
        found = [_native_ceiling(spec, diagnosis, dtype, batch_size, context) for dtype in NATIVE_DTYPES]
        return sorted(found, key=lambda ceiling: -ceiling.decode)
    active = active_parameters(spec)
    found = []
    for dtype, peak in diagnosis.peaks.items():
        width = FLOAT_BYTES[dtype]
        weights = spec.num_parameters() * width
        kv = spec.kv_bytes_per_token(width) * context
        # A batch sends its tokens to different experts: at most all of the weights are read, at most once.
        read_by_batch = min(weights, active * width * batch_size) + kv * batch_size
        compute = peak.best / (2 * active)
        bandwidth = diagnosis.bandwidth.best
        found.append(
            Ceiling(
                dtype=dtype,
                weights=weights,
                fits=weights + spec.kv_bytes_per_token(width) * spec.max_context < diagnosis.machine.available,
                decode=min(bandwidth / (active * width + kv), compute),
                batch=min(batch_size * bandwidth / read_by_batch, compute),
                batch_size=batch_size,
                prompt=compute,
                context=context,
            )
        )
    return sorted(found, key=lambda ceiling: -ceiling.decode)


def _native_ceiling(spec: ModelSpec, diagnosis: Diagnosis, dtype: str, batch_size: int, context: int) -> Ceiling:
    """Weights as they are packed, keys and values in the checkpoint's format where weights are quantised. Products
    are made in the faster of the measured formats, but for float32."""
    # The numbers of a model that was quantised already do not matter for a ceiling.
    spec = replace(spec, quantized=None)
    layout = native_layout(spec, dtype, EngineSettings(), Kernels(diagnosis.kernels))
    plain = dtype if dtype in FLOAT_BYTES else spec.dtype
    kv_token = native_block_bytes(spec, diagnosis.kernels, plain, 16) / 16
    table = sum(entry.size for entry in layout.entries if entry.parameter.name == "embed" and not spec.tied)
    read = (layout.size - table) * active_parameters(spec) / (spec.num_parameters() - _embedding(spec))
    peak = diagnosis.peaks[dtype].best if dtype == "float32" else max(rate.best for rate in diagnosis.peaks.values())
    compute, bandwidth = peak / (2 * active_parameters(spec)), diagnosis.bandwidth.best
    kv = kv_token * context
    return Ceiling(
        dtype=dtype,
        weights=layout.size,
        fits=layout.size + kv_token * spec.max_context < diagnosis.machine.available,
        decode=min(bandwidth / (read + kv), compute),
        batch=min(batch_size * bandwidth / (min(layout.size, read * batch_size) + kv * batch_size), compute),
        batch_size=batch_size,
        prompt=compute,
        context=context,
        formats=formats_line(layout),
    )


def _embedding(spec: ModelSpec) -> int:
    """Weights of which a token reads one row, and that are not multiplied with."""
    return 0 if spec.tied else spec.vocab_size * spec.hidden_size


@dataclass(frozen=True)
class EncoderCeiling:
    """The most that an encoder can do on a machine in one number format.

    Attributes:
        dtype: the format.
        weights: bytes of all weights.
        fits: whether they fit into the memory that is available now.
        tokens: input tokens per second of many texts together, at most.
        alone: texts per second, one after another, at most.
        text_tokens: tokens assumed for each text.
    """

    dtype: str
    weights: int
    fits: bool
    tokens: float
    alone: float
    text_tokens: int


def encoder_ceilings(spec: EncoderSpec, diagnosis: Diagnosis, text_tokens: int = 128) -> list[EncoderCeiling]:
    """What each measured format allows this encoder, fastest first.

    A token is multiplied with the weights of the layers; of the tables it reads a few rows.
    """
    text_tokens = min(text_tokens, spec.max_context)
    active = spec.num_layers * spec.layer_parameters()
    found = []
    for dtype, peak in diagnosis.peaks.items():
        width = FLOAT_BYTES[dtype]
        weights = spec.num_parameters() * width
        tokens = peak.best / (2 * active)
        alone = min(diagnosis.bandwidth.best / (active * width), tokens / text_tokens)
        fits = weights < diagnosis.machine.available
        found.append(EncoderCeiling(dtype, weights, fits, tokens, alone, text_tokens))
    return sorted(found, key=lambda ceiling: -ceiling.tokens)


def measure_bandwidth(machine: Machine) -> Rate:
    """Memory bandwidth, taking no more than an eighth of the memory that is free."""
    return read_bandwidth(max(machine.available // 8, 1 << 20), machine.threads)


def measure_peaks(dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> dict[str, Rate]:
    """Matrix peak of each format."""
    return {dtype: matrix_peak(dtype) for dtype in dtypes}
