"""`armillary profile`: measure, keep what was measured after every phase, and go on where an earlier run stopped."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError
from armillary.models.config import read_json
from armillary.twin.analytic import AnalyticCost
from armillary.twin.fitted import FittedCost
from armillary.twin.here import measured_hardware
from armillary.twin.points import Point, candidates, corners, ordered
from armillary.twin.probe import EngineProbe
from armillary.twin.profile import Phase, Profile, Timed, json_digest, stored_path
from armillary.twin.profile_settings import FEWEST, ProfileSettings
from armillary.twin.shapes import BYTES, shape_of
from armillary.version import __version__

Progress = Callable[[Phase, float], None]
"""Is told the phase and which share of it is done."""
PASSES = 3
"""How often the design is gone through, so that a disturbance does not fall on neighbours only."""
KEPT_STEPS = 800
"""Steps under load, or means of like ones, that a profile keeps of each kind, and requests."""
_SHARES: dict[Phase, float] = {"steps": 0.3, "engine": 0.2, "server": 0.5}
"""Of the time; what designed steps leave of theirs is the server's."""


def measure_profile(
    name: str,
    folder: Path,
    engine: EngineSettings,
    settings: ProfileSettings,
    out: Path | None,
    progress: Progress,
    again: bool = False,
) -> tuple[Profile, Path]:
    """Measure what is not measured yet.

    Args:
        name: of the model, for people.
        folder: where it lies.
        out: the file to keep it in; None for one in the user's cache folder.
        again: measure everything anew.

    Returns:
        The complete profile and the file it is in.

    Raises: as `EngineProbe`; ArmillaryError where the server does not start.
    """
    probe = EngineProbe(folder, engine)
    try:
        fresh = _fresh(name, folder, probe)
        path = out or stored_path(fresh)
        profile = fresh if again else _resumed(path, fresh)
        _machine(probe, profile, path, progress)
        began = time.monotonic()
        _steps(probe, profile, path, settings, progress)
        saved = max(0.0, settings.seconds * _SHARES["steps"] - (time.monotonic() - began))
        if "engine" not in profile.done:
            seconds = settings.seconds * _SHARES["engine"]
            lived = probe.live(FittedCost(profile), seconds, lambda share: progress("engine", share))
            profile.lived = lived.averaged(KEPT_STEPS)
            _complete(profile, "engine", path)
    finally:
        probe.release()
    if settings.http and "server" not in profile.done:
        from armillary.twin.served import load_server

        cost, context = FittedCost(profile, "engine"), int(profile.engine["max_context"])
        served, requests = load_server(
            str(folder.resolve()),
            engine,
            cost,
            context,
            settings.seconds * _SHARES["server"] + saved,
            lambda share: progress("server", share),
        )
        profile.served, profile.requests = served.averaged(KEPT_STEPS), requests[:: -(-len(requests) // KEPT_STEPS)]
        _complete(profile, "server", path)
    profile.finished = profile.finished or _now()
    profile.save(path)
    return profile, path


def _fresh(name: str, folder: Path, probe: EngineProbe) -> Profile:
    import torch

    from armillary.runtime.machine import read_machine

    machine, spec = read_machine(), probe.spec
    return Profile(
        begun=_now(),
        model={
            "name": name,
            "digest": json_digest(read_json(folder / "config.json") or {}),
            "family": spec.family,
            "parameters": spec.num_parameters(),
            "weight_bytes": probe.loaded.plan.weights,
        },
        machine={
            "cpu": machine.cpu,
            "features": list(machine.features),
            "system": machine.system,
            "physical_cores": machine.physical_cores,
            "usable_cores": machine.usable_cores,
            "memory": machine.memory,
        },
        software={
            "armillary": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        engine=probe.describe(),
    )


def _resumed(path: Path, fresh: Profile) -> Profile:
    """What an earlier run left of the same profile, or a new one."""
    if not path.is_file():
        return fresh
    try:
        before = Profile.load(path)
    except ArmillaryError:
        return fresh  # damaged, or of another version
    return before if before.key == fresh.key else fresh


def _complete(profile: Profile, phase: Phase, path: Path) -> None:
    profile.done.append(phase)
    profile.save(path)


def _machine(probe: EngineProbe, profile: Profile, path: Path, progress: Progress) -> None:
    """Bandwidth and matrix peaks."""
    if "machine" in profile.done:
        return
    from armillary.runtime.machine import read_machine
    from armillary.runtime.speed import matrix_peak, read_bandwidth
    from armillary.runtime.threads import use_threads

    threads = int(profile.engine["threads"])
    use_threads(threads)
    rate = read_bandwidth(max(read_machine().available // 8, 1 << 20), threads)
    profile.bandwidth = (rate.best, rate.median)
    progress("machine", 0.5)
    for dtype in ("float32", "bfloat16"):
        profile.peaks[dtype] = matrix_peak(dtype).best
    progress("machine", 1.0)
    _complete(profile, "machine", path)


def _steps(probe: EngineProbe, profile: Profile, path: Path, settings: ProfileSettings, progress: Progress) -> None:
    """Designed steps, in passes over the design."""
    if "steps" in profile.done:
        return
    probe.fill()
    points = _design(probe, profile, settings)
    end = time.monotonic() + settings.seconds * _SHARES["steps"]
    profile.steps = []
    for turn in range(PASSES):
        for place, point in enumerate(points):
            if time.monotonic() > end and (turn > 0 or place >= FEWEST):
                if turn == 0:
                    points = points[:place]
                break
            timed = probe.measure(point)
            if turn == 0:
                profile.steps.append(timed)
            else:
                before = profile.steps[place]
                profile.steps[place] = Timed(work=before.work, seconds=before.seconds + timed.seconds)
            progress("steps", (turn * len(points) + place + 1) / (PASSES * len(points)))
    _complete(profile, "steps", path)


def _design(probe: EngineProbe, profile: Profile, settings: ProfileSettings) -> list[Point]:
    """The steps to measure, in order: none that is thought to take an eighth of the time."""
    hardware = measured_hardware(profile)
    dtype = str(profile.engine["dtype"])
    guess = AnalyticCost(shape_of(probe.spec), hardware, dtype=dtype if dtype in BYTES else None)
    found = candidates(probe.limits)
    longest = settings.seconds * _SHARES["steps"] / 8
    seconds = np.array([guess.step_s(point.work) for point in found])
    kept = [i for i in range(len(found)) if seconds[i] <= longest] or [int(np.argmin(seconds))]
    points = [found[i] for i in kept]
    work = np.array([point.work[:5] for point in points], dtype=np.float64)
    features = np.column_stack([np.ones(len(work)), work]) / seconds[kept][:, None]
    edges = set(corners(probe.limits))
    return [points[i] for i in ordered(points, features, sum(p in edges for p in points))[: settings.points]]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
