"""Load for minutes or hours: nothing is lost, nothing grows, nothing is left over, nothing slows down."""

from __future__ import annotations

import signal
import statistics
from pathlib import Path

import pytest

from survival.process import Server
from survival.soak import slope, soak

BUILD = Path(__file__).parents[2] / "build"
DEPLOYMENT = {
    "models": [{"name": "isles"}],
    "engine": {"max_waiting": 64, "max_running": 16, "kv_blocks": 160, "max_step_tokens": 128},
}
"""Small enough that three times its capacity fills the queue and that sequences are preempted."""


@pytest.mark.soak
@pytest.mark.timeout(0)  # it takes as long as it was told to
def test_soak(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    minutes = float(request.config.getoption("--soak-minutes"))
    with Server(tmp_path, DEPLOYMENT) as server:
        result = soak(server, minutes)
        result.save(BUILD / "soak.json")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert sum(round.outcomes.get("ok", 0) for round in result.rounds) > 0
    assert sum(round.outcomes.get("shed", 0) for round in result.rounds if round.load > 1) > 0, "overload never came"
    for round in result.rounds:
        assert set(round.outcomes) <= {"ok", "shed"}, round
        assert round.lost == 0
    # The first rounds fill caches and pools; what grows after them, leaks.
    settled = result.rests[2:]
    minutes_of = [(rest.at_s / 60, rest.resident_mb) for rest in settled]
    growth = settled[-1].resident_mb - settled[0].resident_mb
    assert slope(minutes_of) < 1.0 or growth < 0.03 * settled[0].resident_mb, minutes_of
    assert settled[-1].handles <= settled[0].handles + 4, [rest.handles for rest in result.rests]
    assert settled[-1].threads <= settled[0].threads + 1, [rest.threads for rest in result.rests]
    # Speed beside that of a fixed sum on the same cores: drift of the server, not of the machine.
    speeds = [rest.single_ms / rest.reference_ms for rest in result.rests]
    half = len(speeds) // 2
    assert statistics.median(speeds[half:]) < 2 * statistics.median(speeds[:half]), speeds
