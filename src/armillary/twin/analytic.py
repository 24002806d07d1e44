"""A machine that is not at hand, from its data sheet: the roofline of each step, with an interval.

A step reads the weights once and the keys and values of its sequences once, and multiplies; matrix products and
attention each take the longer of reading and multiplying (roofline: Williams, Waterman, Patterson, CACM 2009).
Devices that share a layer add up their halves twice a layer (Megatron-LM, arXiv 1909.08053), stages of layers hand
positions on, experts on several devices get theirs by an all-to-all and give them back by another (GShard, arXiv
2006.16668). Peaks come from data sheets, the shares of them that are reached are assumptions: slow, expected and fast
ones give the interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from armillary.errors import ArmillaryError, Code
from armillary.twin.collectives import Wire
from armillary.twin.hardware import Hardware
from armillary.twin.shapes import BYTES, ModelShape
from armillary.twin.work import StepWork

ACTIVATION_BYTES = 2
"""Bytes of an element that devices hand each other."""
USABLE_MEMORY = 0.9
"""Part of a device's memory for weights and keys and values; the rest is workspace."""
SLOW, EXPECTED, FAST = range(3)


@dataclass(frozen=True, slots=True)
class Parallel:
    """How a model is spread over devices.

    Attributes:
        tensor: devices that share every layer.
        pipeline: stages of layers, one after another. A step is cut into as many micro-batches as is quickest.
        expert: devices over which the experts of a layer are spread; 1 where the devices of `tensor` share every
            expert, else a multiple of `tensor`. Attention then runs expert/tensor times side by side, each with
            its share of the sequences.
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "expert"):
            if getattr(self, name) < 1:
                raise ArmillaryError(
                    Code.INVALID_REQUEST, f"{name} must be at least 1, given {getattr(self, name)}", name
                )
        if self.expert > 1 and self.expert % self.tensor:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"expert must be 1 or a multiple of tensor ({self.tensor}), given {self.expert}",
                "expert",
            )

    @property
    def stage(self) -> int:
        """Devices of one pipeline stage."""
        return max(self.tensor, self.expert)

    @property
    def devices(self) -> int:
        """Devices altogether."""
        return self.stage * self.pipeline

    @property
    def copies(self) -> int:
        """Attention groups that run side by side."""
        return self.stage // self.tensor


class AnalyticCost:
    """A `CostModel` from a model's shape and a data sheet.

    Args:
        dtype: element type of the weights; None for that of the checkpoint.
        kv_dtype: element type of keys and values; None for the weights', 16 bits where those are narrower.

    Raises ArmillaryError: INVALID_REQUEST where the hardware has no link for so many devices or does not know the
        element type, and where the model cannot be divided among them; MEMORY where the weights do not fit, with the
        number of devices that would hold them.
    """

    provenance: Literal["measured", "fitted", "assumed"] = "assumed"
    error: tuple[float, float] | None = None
    steady = True
    turns = False
    near_s = 0.0
    first_s = 0.0  # what is assumed of requests is all in `request_s`

    def __init__(
        self,
        shape: ModelShape,
        hardware: Hardware,
        parallel: Parallel = Parallel(),
        dtype: str | None = None,
        kv_dtype: str | None = None,
    ) -> None:
        self.shape, self.hardware, self.parallel = shape, hardware, parallel
        self.dtype = dtype or shape.dtype
        self.kv_dtype = kv_dtype or (self.dtype if BYTES.get(self.dtype, 0) >= 2 else "bfloat16")
        for name in (self.dtype, self.kv_dtype):
            if name not in BYTES:
                raise ArmillaryError(
                    Code.INVALID_REQUEST, f"dtype must be one of {', '.join(BYTES)}, given {name!r}", "dtype"
                )
        if parallel.devices > 1 and (hardware.link is None or parallel.devices > hardware.link.devices):
            most = 1 if hardware.link is None else hardware.link.devices
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"devices must be at most {most} for {hardware.name}, whose link joins no more, given "
                f"{parallel.devices}",
                "parallel",
            )
        _check_divided(shape, parallel)
        self.name = f"{shape.family} on {parallel.devices} x {hardware.title}, {self.dtype}"
        self._check_memory()
        assumed = hardware.assumptions
        self._rates = [
            _Rates(
                flops=hardware.peak(self.dtype) * assumed.matrix[case],
                bytes=hardware.bandwidth_gbs * 1e9 * assumed.bandwidth[case],
                wire=None
                if hardware.link is None
                else Wire(hardware.link.latency_us * 1e-6, hardware.link.gbs * 1e9 * assumed.link[case]),
                layer=assumed.layer_us[case] * 1e-6,
            )
            for case in (SLOW, EXPECTED, FAST)
        ]
        # What does not depend on the step, worked out once: simulations ask a million times.
        self._width = BYTES[self.dtype]
        self._head_bytes = shape.head_parameters * self._width
        self._dense = sum(m.parameters for m in shape.matrices if not m.experts and m.name not in ("head", "embedding"))
        self._sparse = sum(m.parameters for m in shape.matrices if m.experts)
        self._missed = 1.0 - max((m.chosen / m.experts for m in shape.matrices if m.experts), default=0.0)
        self._flops_per_token, self._flops_per_row = shape.flops_per_token, shape.flops_per_row
        self._chosen = max((m.chosen for m in shape.matrices), default=0)
        self._kv_width = BYTES[self.kv_dtype]
        self._stage_devices, self._copies = parallel.stage, parallel.copies
        self._between, self._request = assumed.between_us[EXPECTED] * 1e-6, assumed.request_us[EXPECTED] * 1e-6

    def step_s(self, work: StepWork) -> float:
        """Seconds of the step, as expected."""
        return self._seconds(work, self._rates[EXPECTED])

    def interval(self, work: StepWork) -> tuple[float, float]:
        """Seconds of the step if every assumption is fast, and if every one is slow."""
        return self._seconds(work, self._rates[FAST]), self._seconds(work, self._rates[SLOW])

    def alone_s(self, work: StepWork) -> float:
        """The same: servers and clients have other processors."""
        return self.step_s(work)

    def between_s(self, work: StepWork) -> float:
        """Seconds between two steps, as assumed."""
        return self._between

    @property
    def between_interval(self) -> tuple[float, float]:
        """Seconds between two steps if the assumption is fast, and if it is slow."""
        assumed = self.hardware.assumptions.between_us
        return assumed[FAST] * 1e-6, assumed[SLOW] * 1e-6

    def request_s(self, prompt_tokens: int) -> float:
        """Seconds from sending to submission, as assumed."""
        return self._request

    def held_s(self, prompt_tokens: int) -> float:
        """Nothing: other processors read requests than lead the steps."""
        return 0.0

    def inside(self, work: StepWork) -> bool:
        """Nothing was measured, so nothing lies inside."""
        return False

    @property
    def kv_tokens(self) -> int:
        """Positions whose keys and values fit beside the weights, over all devices."""
        room = USABLE_MEMORY * self.hardware.memory_gb * 1e9 - self._weights_per_device()
        return int(max(0.0, room) / self._kv_per_device())

    def _weights_per_device(self) -> float:
        shape, parallel = self.shape, self.parallel
        sparse = sum(m.parameters for m in shape.matrices if m.experts)
        dense = shape.parameters - sparse
        return BYTES[self.dtype] * (dense / parallel.tensor + sparse / parallel.stage) / parallel.pipeline

    def _kv_per_device(self) -> float:
        """Bytes of one position on the fullest device, spread over the copies of attention."""
        parallel = self.parallel
        stored = sum(
            group.layers * group.stored / min(parallel.tensor, group.kv_heads) for group in self.shape.attention
        )
        return stored * BYTES[self.kv_dtype] / parallel.pipeline / parallel.copies

    def _check_memory(self) -> None:
        if self.kv_tokens > 0:
            return
        needed = self._weights_per_device() * self.parallel.devices
        usable = USABLE_MEMORY * self.hardware.memory_gb * 1e9
        raise ArmillaryError(
            Code.MEMORY,
            f"the weights must fit into {self.parallel.devices} x {self.hardware.memory_gb:g} GB, given "
            f"{needed / 1e9:.0f} GB of {self.dtype}; {int(needed / usable) + 1} devices or a narrower dtype would hold "
            "them",
            "hardware",
        )

    def _seconds(self, work: StepWork, rates: _Rates) -> float:
        pipeline = self.parallel.pipeline
        whole = self._stage(work, rates, 1)
        if pipeline == 1:
            return whole
        # As many micro-batches as is quickest: each stage reads its weights anew for each of them (GPipe,
        # arXiv 1811.06965: m micro-batches pass p stages in m + p - 1 turns).
        best = whole
        for parts in range(2, min(pipeline, max(1, work.sequences)) + 1):
            best = min(best, (parts + pipeline - 1) / pipeline * self._stage(work, rates, parts))
        return best

    def _stage(self, work: StepWork, rates: _Rates, parts: int) -> float:
        """Seconds that a part of the step takes in all stages, one after another."""
        shape, parallel = self.shape, self.parallel
        tensor, stage, copies = parallel.tensor, self._stage_devices, self._copies
        tokens, rows = work.tokens / parts, work.rows / parts
        met = 1.0 - self._missed**tokens if self._sparse else 0.0
        weights = self._width * (self._dense / tensor + self._sparse * met / stage)
        seconds = max(weights / rates.bytes, self._flops_per_token * tokens / stage / rates.flops)
        if rows:
            head = self._head_bytes / tensor
            seconds += max(head / rates.bytes, self._flops_per_row * rows / stage / rates.flops)
        seconds += self._attention(work, rates, parts)
        seconds += rates.layer * shape.layers
        wire = rates.wire
        if wire is not None and stage > 1:
            half = tokens / copies * shape.hidden * ACTIVATION_BYTES
            if tensor > 1:
                seconds += 2 * shape.layers * wire.all_reduce(half, tensor)
            if parallel.expert > 1 and self._sparse:
                sent = half * self._chosen / tensor
                seconds += 2 * shape.moe_layers * wire.all_to_all(sent, stage)
        if wire is not None and parallel.pipeline > 1:
            handed = tokens / copies * shape.hidden * ACTIVATION_BYTES / tensor
            seconds += (parallel.pipeline - 1) * wire.send(handed)
        return seconds

    def _attention(self, work: StepWork, rates: _Rates, parts: int) -> float:
        """Keys and values read once, pairs multiplied.

        A window is taken to cut every sequence alike, at the mean context. From a latent, keys and values are
        either made for the context or left out by bringing queries into it, whichever is less work.
        """
        tensor, spread = self.parallel.tensor, parts * self._copies
        seconds = 0.0
        for group in self.shape.attention:
            context, pairs = float(work.context), float(work.pairs)
            if group.window is not None:
                context = min(context, work.sequences * group.window + work.tokens)
                pairs = min(pairs, float(work.tokens) * group.window)
            flops = pairs * group.flops_per_pair
            if group.latent:
                flops = min(flops + context * group.expansion_flops, pairs * group.absorbed_flops_per_pair)
            read = context * group.layers * group.stored * self._kv_width / min(tensor, group.kv_heads)
            seconds += max(read / rates.bytes, flops / tensor / rates.flops) / spread
        return seconds


def _check_divided(shape: ModelShape, parallel: Parallel) -> None:
    """Refuse devices among which there is nothing to divide: heads are not cut, nor are layers and experts.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    heads = next((group.heads for group in shape.attention if group.heads % parallel.tensor), None)
    told = None
    if heads is not None:
        told = ("tensor_parallel", f"divide the {heads} heads of attention", parallel.tensor)
    elif parallel.pipeline > shape.layers:
        told = ("pipeline_parallel", f"be at most the {shape.layers} layers", parallel.pipeline)
    elif parallel.expert > max(1, shape.experts):
        most = f"at most the {shape.experts} experts of a layer" if shape.experts else "1, since it has no experts"
        told = ("expert_parallel", f"be {most}", parallel.expert)
    if told is not None:
        name, must, given = told
        raise ArmillaryError(Code.INVALID_REQUEST, f"{name} of {shape.family} must {must}, given {given}", name)


@dataclass(frozen=True, slots=True)
class _Rates:
    """What one case of the assumptions gives a device per second, and what a layer costs beside it."""

    flops: float
    bytes: float
    wire: Wire | None
    layer: float
