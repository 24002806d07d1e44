"""Hardware as numbers: public peaks with their sources, and what is assumed of the share that a step reaches."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from armillary.errors import ArmillaryError, Code

Dtype = Literal["float32", "float16", "bfloat16", "float8", "int8"]
Kind = Literal["gpu", "apple", "cpu"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class Range(NamedTuple):
    """An assumption: what would be slowest, what is expected, what would be fastest."""

    slow: float
    expected: float
    fast: float


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Link(_Strict):
    """What joins devices.

    Attributes:
        gbs: 10^9 bytes per second that one device sends in one direction.
        latency_us: microseconds from the start of a message to its first byte, launch included.
        devices: how many are joined.
    """

    name: str
    gbs: Positive
    latency_us: Positive
    devices: Annotated[int, Field(ge=2)]


class Assumptions(_Strict):
    """Shares of the peaks that steps reach, and times beside them; each as (slow, expected, fast).

    Attributes:
        matrix: of the peak of the element type, in matrix products and attention.
        bandwidth: of the memory's.
        link: of the link's.
        layer_us: microseconds that a layer costs in each step, whatever it computes.
        between_us: microseconds between two steps.
        request_us: microseconds from a client's sending to submission.
    """

    matrix: tuple[Share, Share, Share]
    bandwidth: tuple[Share, Share, Share]
    link: tuple[Share, Share, Share]
    layer_us: tuple[float, float, float]
    between_us: tuple[float, float, float]
    request_us: tuple[float, float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("matrix", "bandwidth", "link", "layer_us", "between_us", "request_us"):
            slow, expected, fast = getattr(self, name)
            shares = name in ("matrix", "bandwidth", "link")
            if not (slow <= expected <= fast if shares else slow >= expected >= fast >= 0):
                raise ValueError(f"{name} must go from slow to fast, given {[slow, expected, fast]}")
        return self


class Hardware(_Strict):
    """One device.

    Attributes:
        peak_tflops: element type -> 10^12 operations per second in dense matrix products.
        bandwidth_gbs: 10^9 bytes per second from memory.
        memory_gb: 10^9 bytes.
        power_w: watts at full load, of the device.
        price_per_h: US dollars an hour of one device, lowest and highest offer; None where unknown.
        sources: where the figures are from.
        assumptions: those of its kind unless it has its own.
        measured: whether peaks and bandwidth were measured here and not read from a data sheet.
    """

    name: str
    title: str
    kind: Kind
    peak_tflops: dict[Dtype, Positive]
    bandwidth_gbs: Positive
    memory_gb: Positive
    link: Link | None = None
    power_w: Positive | None = None
    price_per_h: tuple[float, float] | None = None
    sources: dict[str, str]
    assumptions: Assumptions
    measured: bool = False

    def peak(self, dtype: str) -> float:
        """Operations per second for weights of an element type.

        An element type that the device cannot multiply is widened: float8 and int4 to 16 bits, 16 bits to float32.
        """
        for name in (dtype, "bfloat16", "float16", "float32"):
            if name in self.peak_tflops and not (dtype == "float32" and name != "float32"):
                return self.peak_tflops[name] * 1e12
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"the hardware must have a peak for {dtype} or a wider format, given {self.name} with "
            f"{', '.join(self.peak_tflops)}",
            "hardware",
        )


class _File(_Strict):
    """hardware.yaml."""

    assumptions: dict[Kind, Assumptions]
    hardware: dict[str, dict[str, object]]


def parse_hardware(text: str, source: str = "hardware.yaml") -> dict[str, Hardware]:
    """The devices that a file describes; unknown keys are refused.

    Raises ArmillaryError: INVALID_REQUEST, naming the field.
    """
    try:
        file = _File.model_validate(yaml.safe_load(text))
        found = {}
        for name, fields in file.hardware.items():
            kind = fields.get("kind")
            given = file.assumptions.get(kind) if kind in ("gpu", "apple", "cpu") else None
            found[name] = Hardware.model_validate({"name": name, "assumptions": given, **fields})
        return found
    except yaml.YAMLError as error:
        raise ArmillaryError(Code.INVALID_REQUEST, f"{source} must be YAML, given {error}", "hardware") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{source}: `{place}`: {first['msg']}, given {first['input']!r}", "hardware"
        ) from error


@cache
def known_hardware() -> dict[str, Hardware]:
    """The devices that come with the package."""
    return parse_hardware(resources.files("armillary.twin").joinpath("hardware.yaml").read_text(encoding="utf-8"))


def find_hardware(name: str) -> Hardware:
    """The device of that name.

    Raises ArmillaryError: INVALID_REQUEST with the names that are known.
    """
    found = known_hardware().get(name.lower())
    if found is None:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"hardware must be here or one of {', '.join(known_hardware())}, given {name!r}",
            "hardware",
        )
    return found
