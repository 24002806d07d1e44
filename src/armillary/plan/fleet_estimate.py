"""What queueing theory says of a whole fleet: kinds of replicas side by side, and prompts computed before the rest.

A stage is a set of kinds of replicas among which requests are divided. Where prompts are handed on, there are two of
them, and what carries keys and values is a queue with one server for each sender in between. Each kind of a stage is
one batch server with its share of the requests. Flows between stages are taken to be as random as arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from armillary.errors import ArmillaryError
from armillary.measure.workload import Workload
from armillary.plan.estimate import Estimate, Mix, Theory
from armillary.plan.question import rate_text
from armillary.plan.queueing import MG1
from armillary.plan.service import Gamma
from armillary.twin.cost import Scaled
from armillary.twin.deployed import Deployed, Kind

BLIND = ("round_robin", "session_sticky")
"""Routes that give every replica the same, however fast it is. Others give each what it gets through."""
_HALVINGS = 60


class Stage:
    """Kinds of replicas among which requests are divided.

    Args:
        theories: of each kind.
        counts: replicas of each.
        evenly: whether every replica gets the same; else each as much as it can answer.
    """

    def __init__(self, theories: Sequence[Theory], counts: Sequence[int], evenly: bool) -> None:
        weights = [float(n) for n in counts] if evenly else [theory.capacity for theory in theories]
        self._shares = [weight / sum(weights) for weight in weights]
        self._theories = theories
        self.capacity = min(theory.capacity / share for theory, share in zip(theories, self._shares, strict=True))

    def at(self, rate: float) -> Estimate:
        """Mean values over all requests while so many come a second."""
        parts = [theory.at(rate * share) for theory, share in zip(self._theories, self._shares, strict=True)]

        def mean(of: Callable[[Estimate], float]) -> float:
            return sum(share * of(part) for share, part in zip(self._shares, parts, strict=True))

        return Estimate(
            capacity=self.capacity,
            throughput=sum(part.throughput for part in parts),
            running=sum(part.running for part in parts),
            ttft_s=mean(lambda part: part.ttft_s),
            tpot_s=mean(lambda part: part.tpot_s),
            e2e_s=mean(lambda part: part.e2e_s),
        )


class FleetTheory:
    """Requests of a mix on all replicas of a deployment; where they scale, on the most that there may be."""

    def __init__(self, deployed: Deployed, mix: Mix) -> None:
        fleet, self._mix = deployed.fleet, mix
        evenly = fleet.route in BLIND
        before = [kind for kind in deployed.kinds if kind.settings.role != "decode"]
        after = [kind for kind in deployed.kinds if kind.settings.role == "decode"]
        counts = [kind.settings.count if fleet.scaling is None else fleet.scaling.most for kind in before]
        first = replace(mix, output=1.0) if after else mix
        self._alone = Theory(before[0].config, before[0].cost, mix, counts[0]) if len(deployed.kinds) == 1 else None
        theories = [Theory(k.config, k.cost, first, n) for k, n in zip(before, counts, strict=True)]
        self._stages = [Stage(theories, counts, evenly)]
        self._senders, self._sending, self._latency = sum(counts), 0.0, 0.0
        if after:
            # What was computed elsewhere is there, but for the first token; and requests have been read.
            rest = Mix(mix.prompt + 1, max(1.0, mix.output - 1), 1.0)
            theories = [Theory(k.config, Scaled(k.cost, 1.0, beside=0.0), rest, k.settings.count) for k in after]
            self._stages.append(Stage(theories, [kind.settings.count for kind in after], evenly))
            self._sending = mix.prompt * _most_kv_bytes(before) / fleet.link.bandwidth
            self._latency = fleet.link.latency_s
        sent = self._senders / self._sending if self._sending else math.inf
        self.capacity = min(sent, *(stage.capacity for stage in self._stages))
        """The most requests a second that could be answered for ever."""

    def at(self, rate: float) -> Estimate:
        """Mean values while so many requests come a second; inf: all at once."""
        parts = [stage.at(rate) for stage in self._stages]
        if len(parts) == 1:
            return parts[0]
        running = sum(part.running for part in parts)
        if rate >= self.capacity:
            return Estimate(self.capacity, self.capacity, running, math.inf, math.inf, math.inf)
        first, rest = parts
        wait = MG1(rate / self._senders, Gamma(self._sending, 0.0)).wait_s
        after = wait + self._sending + self._latency + rest.e2e_s
        per_token = after / max(1.0, self._mix.output - 1)
        return Estimate(self.capacity, rate, running, first.ttft_s, per_token, first.ttft_s + after)

    def of_users(self, users: int, thinking: float) -> Estimate:
        """Mean values of so many users who think for so many seconds before each request.

        Of several kinds or stages: at the rate of arrivals by chance at which so many are under way or think.
        """
        if self._alone is not None:
            return self._alone.of_users(users, thinking)
        low, high = 0.0, self.capacity
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if middle * (self.at(middle).e2e_s + thinking) < users:
                low = middle
            else:
                high = middle
        return self.at(low)


def fleet_estimate(deployed: Deployed, workload: Workload) -> Estimate:
    """Mean values of a deployment under a workload, nothing of it cached."""
    theory, columns = FleetTheory(deployed, Mix.of(workload)), workload.columns
    if workload.users is not None:
        return theory.of_users(workload.users, 0.0 if columns.think is None else float(np.mean(columns.think)))
    rate = workload.offered_rate
    return theory.at(math.inf if rate is None else rate)


def beside(deployed: Deployed, workload: Workload) -> list[str]:
    """The estimate in sentences, for the end of a simulation's answer."""
    try:
        found = fleet_estimate(deployed, workload)
    except ArmillaryError as error:
        return [f"No queueing estimate: {error.message}."]
    scaling = deployed.fleet.scaling
    where = "" if scaling is None else f" of the most replicas that there may be, {scaling.most}"
    told = (
        f"Queueing theory alone (mean lengths, no prefix cache) says{where}: capacity "
        f"{rate_text(found.capacity)} requests/s"
    )
    if not found.stable:
        return [f"{told}, and more comes than that."]
    return [
        f"{told}, {found.running:.3g} running, mean TTFT {found.ttft_s * 1e3:.3g} ms, TPOT {found.tpot_s * 1e3:.3g} "
        f"ms, end to end {found.e2e_s * 1e3:.4g} ms."
    ]


def _most_kv_bytes(kinds: Sequence[Kind]) -> int:
    """Of one position, as replicas send them."""
    return max(kind.kv_bytes for kind in kinds)
