"""The twin against the real server on this machine, with a model that is as large as what people run on one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.peers.shapes import SHAPES, checkpoint

from armillary.deployment import EngineSettings
from armillary.measure.claims import Claim, Finding, Trial
from armillary.twin.profile_settings import ProfileSettings
from claims.fidelity import PUBLISHED, RULE, TITLE, VENUE, fidelity
from claims.real_server import LOADS

NAMES = ("chat", "short")
SECONDS = 30.0
ENGINE = EngineSettings(dtype="int8", max_step_tokens=128, max_running=8)
PROFILING = ProfileSettings(seconds=170.0)


def measure(trial: Trial) -> Finding:
    """As `fidelity`, for random weights in the shape of Qwen3-0.6B."""
    with tempfile.TemporaryDirectory() as kept:
        trial.step("random weights", 0)
        folder = checkpoint(SHAPES["qwen3-0.6b"], Path(kept) / "checkpoint")
        return fidelity(trial, str(folder), folder, ENGINE, PROFILING, NAMES, SECONDS)


CLAIM = Claim(
    name="twin_fidelity_large",
    title=TITLE,
    venue=VENUE,
    published=PUBLISHED,
    compared=(
        "`armillary serve` with random weights in the shape of Qwen3-0.6B in int8, running at most "
        f"{ENGINE.max_running} requests at once, and a load client on the same cores, "
        f"and the twin with profiles measured in turn with it: {' and '.join(NAMES)} requests, which no profile has "
        f"seen, at {len(LOADS)} shares of the capacity from 0.3 to 1.25 and in a closed loop."
    ),
    rule=RULE,
    measure=measure,
)
