"""The machine at hand: its hardware as it was measured, and the cost model that fits what is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from armillary.errors import ArmillaryError, Code
from armillary.models.quantized import GROUPS
from armillary.twin.analytic import AnalyticCost, Parallel
from armillary.twin.fitted import FittedCost, Through
from armillary.twin.hardware import Assumptions, Hardware, find_hardware, known_hardware
from armillary.twin.profile import Profile, json_digest, shipped_profile, stored_profiles
from armillary.twin.shapes import read_shape

HERE = "here"
THIS_MACHINE = "this machine"
_REACHED = {"matrix": (0.4, 0.65, 0.9), "bandwidth": (0.6, 0.8, 1.0)}
"""Shares of rates that were measured and not promised: steps reach more of them than of a data sheet's."""


def measured_hardware(profile: Profile) -> Hardware:
    """A machine whose rates were measured; which shares of them steps reach is still assumed.

    Raises ArmillaryError: INVALID_REQUEST where the profile has no rates.
    """
    if profile.bandwidth is None or not profile.peaks:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "a profile must hold the machine's rates, given one without; run `armillary profile` again",
            "profile",
        )
    like: Assumptions = known_hardware()["sapphire-rapids"].assumptions
    machine, peaks = profile.machine, dict(profile.peaks)
    if profile.engine.get("kernels") != "torch":  # the native kernels widen narrow weights as they read them
        peaks["bfloat16"] = max(peaks.values())
    return Hardware.model_validate(
        {
            "name": HERE,
            "title": f"{machine['cpu']}, {profile.engine['threads']} threads",
            "kind": "cpu",
            "peak_tflops": {dtype: rate / 1e12 for dtype, rate in peaks.items()},
            "bandwidth_gbs": profile.bandwidth[0] / 1e9,
            "memory_gb": machine["memory"] / 1e9,
            "sources": {"figures": f"measured by armillary profile, {profile.begun} UTC"},
            "assumptions": like.model_copy(update=_REACHED),
            "measured": True,
        }
    )


class Served(NamedTuple):
    """What steps of a model on a machine depend on besides: how an engine computes them."""

    dtype: str
    kv_dtype: str
    int8_activations: bool
    quantization_group: int | None
    kernels: str
    threads: int


def profile_for(config: dict[str, Any], served: Callable[[], Served] | None = None) -> Profile:
    """A profile of a model: one that this user measured, or the shipped one of the bundled model.

    Args:
        served: says how steps are computed that are to be predicted; asked where there are several profiles. Those in
            the same number formats go first, then those of this machine, of as many threads, and the latest. None: the
            latest.

    Raises ArmillaryError: INVALID_REQUEST with the command that makes one.
    """
    digest = json_digest(config)
    found = stored_profiles(digest)
    shipped = shipped_profile()
    if shipped.model["digest"] == digest:
        found.append(shipped)
    if len(found) > 1 and served is not None:
        wanted = served()
        found.sort(key=lambda profile: _unlike(profile, wanted))
    if found:
        return found[0]
    raise ArmillaryError(
        Code.INVALID_REQUEST,
        "hardware must be measured before it can be `here`, and there is no profile of this model; run `armillary "
        "profile MODEL` (under three minutes for a small model), or name one of "
        f"{', '.join(known_hardware())}",
        "hardware",
    )


def _unlike(profile: Profile, wanted: Served) -> tuple[int, bool, int]:
    """How far what was measured is from what is wanted, what matters most first."""
    engine = profile.engine
    formats = (
        engine["dtype"] != wanted.dtype,
        engine["kv_dtype"] != wanted.kv_dtype,
        bool(engine.get("int8_activations")) != wanted.int8_activations,
        (engine.get("quantization_group") or GROUPS[0]) != (wanted.quantization_group or GROUPS[0]),
    )
    computed = (engine["kernels"] != wanted.kernels, engine["threads"] != wanted.threads)
    return sum(formats), measured_on(profile) != THIS_MACHINE, sum(computed)


def measured_on(profile: Profile) -> str:
    """Which machine a profile is of, in words: this one, where processor and cores are as here."""
    from armillary.runtime.machine import read_machine

    there, here = profile.machine, read_machine()
    same = (here.cpu, list(here.features), here.physical_cores)
    if (there.get("cpu"), there.get("features"), there.get("physical_cores")) == same:
        return THIS_MACHINE
    return (
        f"another machine ({there.get('cpu')}, {there.get('physical_cores')} cores), since there is no profile of this "
        "one; `armillary profile` makes it"
    )


def cost_for(
    config: dict[str, Any],
    hardware: str = HERE,
    parallel: Parallel = Parallel(),
    dtype: str | None = None,
    kv_dtype: str | None = None,
    through: Through | None = None,
    profile: Profile | None = None,
) -> FittedCost | AnalyticCost:
    """The cost model of a model on hardware by its name: fitted for `here`, from the data sheet elsewhere.

    Args:
        config: the contents of config.json.
        through: of `FittedCost`.
        profile: of `here`; None: the latest.

    Raises ArmillaryError: as `profile_for`, `find_hardware`, `read_shape` and `AnalyticCost`; INVALID_REQUEST for
        several devices or a number format other than the measured one on `here`.
    """
    if hardware.lower() != HERE:
        return AnalyticCost(read_shape(config), find_hardware(hardware), parallel, dtype, kv_dtype)
    if parallel.devices > 1:
        raise ArmillaryError(Code.INVALID_REQUEST, f"devices must be 1 on `here`, given {parallel.devices}", "hardware")
    profile = profile or profile_for(config)
    for name, wanted in (("dtype", dtype), ("kv_dtype", kv_dtype)):
        if wanted is not None and wanted != profile.engine[name]:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"{name} must be {profile.engine[name]}, which was measured, given {wanted}; run `armillary profile` "
                f"with --{name.replace('_', '-')} {wanted}",
                name,
            )
    return FittedCost(profile, through)
