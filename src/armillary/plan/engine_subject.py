"""The real engine as the subject of an experiment: one run is one load test of `armillary serve`."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import yaml

from armillary.deployment import Deployment, FleetSettings
from armillary.errors import ArmillaryError, Code
from armillary.measure.bench import BenchOptions, run_bench
from armillary.measure.outcomes import Outcomes
from armillary.plan.experiment import Experiment, settle
from armillary.plan.factors import Point, laid_over
from armillary.plan.figures import figures

_START_S = 600.0
_STOP_S = 60.0


class ServedEngine:
    """A `Response` that starts a server in a process of its own, and another wherever the deployment differs.

    Enter it before the first run; leaving it stops the server.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._slo = experiment.service_level()
        self._process: subprocess.Popen[bytes] | None = None
        self._served: dict[str, Any] | None = None
        self._url = ""
        self._starts = 0

    def __enter__(self) -> ServedEngine:
        self._folder = TemporaryDirectory(prefix="armillary-experiment-")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
        self._folder.cleanup()

    def __call__(self, point: Point, seed: int) -> dict[str, float]:
        deployment, spec = settle(self.experiment, point)
        if deployment.fleet is not None:
            _check_measured(deployment.fleet)
        told = laid_over(
            self.experiment.deployment, {path: v for path, v in point.items() if not path.startswith("workload.")}
        )
        if told != self._served or self._process is None or self._process.poll() is not None:
            self._start(told, deployment)
        options = BenchOptions(
            **spec.model_dump(exclude={"seed"}, exclude_unset=True),
            seed=seed,
            url=self._url,
            model=deployment.model.served_name,
            api_key=deployment.server.api_keys[0] if deployment.server.api_keys else None,
        )
        report = run_bench(options)
        users = report.workload["users"]
        return figures(Outcomes.of(report.records), report.summary.duration, self._slo, users)

    def _start(self, told: dict[str, Any], deployment: Deployment) -> None:
        self._stop()
        self._starts += 1
        folder = Path(self._folder.name)
        file, log = folder / "deployment.yaml", folder / f"server-{self._starts}.log"
        server = {**(told.get("server") or {}), "host": "127.0.0.1", "port": 0}
        file.write_text(yaml.safe_dump({**told, "server": server}), encoding="utf-8")
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 (our own command, no shell)
                [sys.executable, "-m", "armillary", "serve", str(file)], stdout=output, stderr=subprocess.STDOUT
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            if found := re.search(r"curl (http://\S+?)/v1/", log.read_text(encoding="utf-8", errors="replace")):
                self._url, self._served = found[1], told
                return
            time.sleep(0.05)
        self._stop()
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise ArmillaryError(
            Code.UNAVAILABLE,
            f"the server must start within {_START_S:.0f} s, given {deployment.model.path!r}, so: {' '.join(last)}",
        )

    def _stop(self) -> None:
        process, self._process, self._served = self._process, None, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _check_measured(fleet: FleetSettings) -> None:
    """Refuse what the engine on this machine would be measured without.

    Raises ArmillaryError: INVALID_DEPLOYMENT.
    """
    fleet.check_served()
    most = max(group.devices for group in fleet.replicas)
    if most > 1:
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT,
            f"fleet.replicas must have one device to be measured on the engine of this machine, given {most}; ask the "
            "twin instead (`target: twin`)",
            "fleet",
        )
