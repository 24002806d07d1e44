"""What the native kernels change in a memory plan: formats of weights, keys and values, and their true sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.kernels import native
from armillary.models.packed_weights import PackedLayout, make_layout
from armillary.models.parameters import Parameter
from armillary.models.quantized import ELEMENTS, GROUPS, INTEGERS, Format, Quantization
from armillary.models.spec import ModelSpec

THREAD_BYTES = 4 << 20
"""What a thread takes for itself, at most: widened weights, scores of a tile, pieces of attention that it shares."""
ROW_BYTES = 128
"""What a token of a step takes in each layer's plan of attention, at most."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What computes.

    Attributes:
        path: of the native kernels; None where torch computes.
        reason: why, for people.
        kept: what the checkpoint has quantised already (`armillary.models.weights.Weights.kept`).
        notes: what is to be said about that, for people.
    """

    path: str | None = None
    reason: str = "asked for"
    kept: Callable[[Parameter], Format | None] | None = None
    notes: str = ""


TORCH = Kernels()


def read_kernels() -> Kernels:
    """What this machine and the environment choose.

    Raises ArmillaryError: INVALID_DEPLOYMENT where the environment asks for what is not there.
    """
    return Kernels(native.chosen(), native.why())


def refuse_without_native(settings: EngineSettings, why: str) -> None:
    """Refuse, by name, what only the native kernels do."""
    given = settings.model_fields_set
    asked: list[tuple[str, object, str]] = []
    if settings.dtype in INTEGERS:
        asked.append(("dtype", settings.dtype, "float32, bfloat16 or float16"))
    if settings.int8_activations:
        asked.append(("int8_activations", True, "false"))
    if settings.kv_dtype == "int8":
        asked.append(("kv_dtype", "int8", "float32, bfloat16 or float16"))
    if "packed_cache" in given and settings.packed_cache:
        asked.append(("packed_cache", True, "left unset"))
    for name, value, known in asked:
        _refuse(name, known, value, f"torch computes here ({why})")


def native_dtype(spec: ModelSpec, settings: EngineSettings, kernels: Kernels) -> tuple[str, str]:
    """The element type of the weights, and why."""
    quantized = spec.quantized
    if quantized is None:
        if settings.int8_activations and settings.dtype not in INTEGERS:
            _refuse("int8_activations", "false", True, "the weights are not quantised; set dtype to int8 or int4")
        return (spec.dtype, "as in the checkpoint") if settings.dtype == "auto" else (settings.dtype, "set")
    own = "int4" if quantized.bits == 4 else "int8"
    if settings.dtype in (*INTEGERS, "auto"):
        if settings.dtype not in ("auto", own):
            _refuse("dtype", f"auto, {own} or a float format", settings.dtype,
                    f"{quantized.method} quantised this checkpoint to {quantized.bits} bits already")  # fmt: skip
        if settings.quantization_group is not None:
            _refuse("quantization_group", "left unset", settings.quantization_group,
                    f"{quantized.method} chose the groups of this checkpoint")  # fmt: skip
        return own, f"as {quantized.method} quantised the checkpoint{kernels.notes}"
    if settings.int8_activations:
        _refuse("int8_activations", "false", True, f"the weights are dequantised to {settings.dtype}")
    return settings.dtype, f"set: dequantised from {quantized.method}"


def quantization(spec: ModelSpec, dtype: str, settings: EngineSettings) -> Quantization:
    """What is asked of the matrices, given the plan's element type."""
    if spec.quantized is not None and dtype in INTEGERS:
        return Quantization(spec.dtype, int8_activations=settings.int8_activations)
    return Quantization(dtype, settings.quantization_group or GROUPS[0], settings.int8_activations)


def native_layout(spec: ModelSpec, dtype: str, settings: EngineSettings, kernels: Kernels) -> PackedLayout:
    """How the weights will lie in memory."""
    if kernels.path is None:
        raise TypeError("torch has no packed layout")
    kept = kernels.kept if dtype in INTEGERS else None
    with _refusing_by_name():
        return make_layout(spec, kernels.path, quantization(spec, dtype, settings), kept or (lambda matrix: None))


def formats_line(layout: PackedLayout) -> str:
    """Which formats hold how much of the matrices."""
    found = layout.formats
    total = sum(found.values())
    if len(found) == 1:
        return str(next(iter(found)))
    return ", ".join(f"{count / total:.0%} {form}" for form, count in found.items())


def undivided(layout: PackedLayout, group: int) -> int:
    """How many matrices stay in 8 bits because groups do not divide their width."""
    return sum(
        e.form is not None and e.form.element == "int8" and e.parameter.kind not in ("embed", "head")
        and e.parameter.width % group != 0
        for e in layout.entries
    )  # fmt: skip


def native_block_bytes(spec: ModelSpec, path: str, kv_dtype: str, block_size: int) -> int:
    """Bytes of one block of keys and values over all layers, as the kernels lay it out."""
    extension = native.extension()
    shapes = [(layer.attention.kv_heads, layer.attention.head_dim) for layer in spec.layers]
    with _refusing_by_name():
        sizes = {
            shape: extension.KvStore.block_bytes(path, ELEMENTS[kv_dtype], *shape, block_size) for shape in set(shapes)
        }
    return 2 * sum(int(sizes[shape]) for shape in shapes)


def native_workspace_bytes(
    spec: ModelSpec, layout: PackedLayout, max_step_tokens: int, running: int, threads: int
) -> int:
    """What computing one step takes beside weights and KV, at most; see `Program::hidden` in `src/native`."""
    qkv = mixed = inner = terms = experts = 0
    for layer in spec.layers:
        attention, mlp = layer.attention, layer.mlp
        mixed = max(mixed, attention.heads * attention.head_dim)
        qkv = max(qkv, (attention.heads + 2 * attention.kv_heads) * attention.head_dim)
        inner = max(inner, mlp.intermediate * max(1, mlp.experts_per_token))
        terms = max(terms, mlp.experts_per_token)
        experts = max(experts, mlp.experts)
    # The residual stream, its norm and a half layer; what steps hand over to their caller.
    floats = 4 * spec.hidden_size + qkv + mixed + inner + 2 * sum(rope.dim for rope in spec.ropes)
    floats += terms * (2 * spec.hidden_size + 8) + experts
    widest = max(
        entry.parameter.width * max(1, terms if "expert" in entry.parameter.kind else 1) for entry in layout.entries
    )
    prepared = 4 * widest + 64 * max(1, terms)
    step = max_step_tokens * (4 * floats + prepared + ROW_BYTES * spec.num_layers)
    # The logits, the copy that penalties and temperature change, and what drawing derives from it.
    logits = running * (3 * 4 * spec.vocab_size + 4 * spec.hidden_size)
    return step + logits + threads * THREAD_BYTES


@contextmanager
def _refusing_by_name() -> Iterator[None]:
    """What the kernels say that they do not take, as an error of the deployment."""
    try:
        yield
    except ValueError as error:
        message = f"{error}; {native.VARIABLE}=torch in the environment computes without the native kernels"
        raise ArmillaryError(Code.INVALID_DEPLOYMENT, message) from error


def _refuse(name: str, known: str, given: object, why: str) -> NoReturn:
    shown = str(given).lower() if isinstance(given, bool) else given
    raise ArmillaryError(Code.INVALID_DEPLOYMENT, f"{name} must be {known}, given {shown}: {why}", name)
