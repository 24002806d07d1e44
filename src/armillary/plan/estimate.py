"""What queueing theory says of a deployment under a workload, to stand beside a simulation of it.

Engines behind one queue are one batch server (`batch_server`): with n requests present, each replica's step holds its
share of them and the part of a prompt that so many bring a step. It knows mean lengths only, no prefix cache and no
routing. Where a simulation is far from it, one of the two is wrong, or one of these matters; either is worth knowing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.core.config import SchedulerConfig
from armillary.errors import ArmillaryError
from armillary.measure.workload import Workload
from armillary.plan.batch_server import BatchServer
from armillary.plan.checks import at_least
from armillary.plan.networks import normalising_constants
from armillary.twin.cost import CostModel
from armillary.twin.deployed import Deployed
from armillary.twin.work import StepWork

_MOST_SLOTS = 4096
"""Slots that are worked out one by one; more of them are taken together."""


@dataclass(frozen=True)
class Estimate:
    """Mean values. Seconds, and requests per second.

    Attributes:
        capacity: the most that could be answered for ever.
        throughput: what is answered: the offered rate, or the capacity where that is less.
        running: requests in slots, over all replicas.
        ttft_s, tpot_s, e2e_s: infinite where more comes than can be answered.
    """

    capacity: float
    throughput: float
    running: float
    ttft_s: float
    tpot_s: float
    e2e_s: float

    @property
    def stable(self) -> bool:
        return math.isfinite(self.e2e_s)


def estimate(config: SchedulerConfig, cost: CostModel, workload: Workload, replicas: int = 1) -> Estimate:
    """Mean values of replicas that share a workload evenly."""
    at_least("replicas", replicas, 1)
    columns = workload.columns
    prompt, output = float(columns.prompt_tokens.mean()), float(columns.output_tokens.mean())
    held = config.num_blocks * config.block_size / (prompt + output)
    slots = max(1, min(config.max_running, int(held), _MOST_SLOTS))
    one = np.array([_leaving(config, cost, prompt, output, n) for n in range(1, slots + 1)])
    rates = _together(one, replicas)
    capacity = float(rates.max())
    if workload.users is not None:
        thinking = 0.0 if columns.think is None else float(np.mean(columns.think))
        throughput, (present,) = normalising_constants(
            [1 / rates[0]], workload.users, thinking, [(rates / rates[0]).tolist()]
        )
        running = min(float(present), float(slots * replicas))
        wait = max(0.0, float(present) - running) / throughput
        inside = running / throughput
    else:
        rate = workload.offered_rate
        server = BatchServer(math.inf if rate is None else rate, rates) if rate is not None else None
        if server is None or not server.stable:
            return Estimate(capacity, capacity, float(slots * replicas), math.inf, math.inf, math.inf)
        throughput, running = server.throughput, server.running
        wait, inside = server.wait_s, server.residence_s
    beside = max(0.0, running / replicas - 1)
    busy = min(1.0, running / replicas)
    rest = _step(config, cost, prompt, output, max(1.0, beside)) / 2 * busy  # of the step in which it arrived
    first = min(inside, _prefill(config, cost, prompt, output, beside))
    return Estimate(
        capacity=capacity,
        throughput=throughput,
        running=running,
        ttft_s=wait + rest + first,
        tpot_s=(inside - first) / max(1.0, output - 1),
        e2e_s=wait + rest + inside,
    )


def beside(deployed: Deployed, workload: Workload) -> list[str]:
    """The estimate in sentences, for the end of a simulation's answer."""
    if len(deployed.kinds) != 1 or deployed.fleet.scaling is not None:
        return ["No queueing estimate: it knows one kind of replica, and no scaling."]
    kind = deployed.kinds[0]
    try:
        found = estimate(kind.config, kind.cost, workload, kind.settings.count)
    except ArmillaryError as error:
        return [f"No queueing estimate: {error.message}."]
    told = f"Queueing theory alone (mean lengths, no prefix cache) says: capacity {found.capacity:.3g} requests/s"
    if not found.stable:
        return [f"{told}, and more comes than that."]
    return [
        f"{told}, {found.running:.3g} running, mean TTFT {found.ttft_s * 1e3:.3g} ms, TPOT {found.tpot_s * 1e3:.3g} "
        f"ms, end to end {found.e2e_s * 1e3:.4g} ms."
    ]


def _leaving(config: SchedulerConfig, cost: CostModel, prompt: float, output: float, n: float) -> float:
    """Requests that leave per second with n in the batch: each needs `output` steps, more where prompts fill them."""
    asked = n * (1 + prompt / output)
    return n / output / _step(config, cost, prompt, output, n) * min(1.0, config.max_step_tokens / asked)


def _step(config: SchedulerConfig, cost: CostModel, prompt: float, output: float, n: float) -> float:
    """Seconds of a step with n requests, n / output of whose prompts it computes, and of what follows it."""
    started = min(n * prompt / output, max(0.0, config.max_step_tokens - n))
    context = n * (prompt + output / 2)
    work = StepWork(
        sequences=max(1, round(n)),
        tokens=max(1, round(n + started)),
        rows=max(1, round(n)),
        context=round(context + started / 2),
        pairs=round(context + started * prompt / 2),
    )
    return cost.step_s(work) + cost.between_s(work)


def _prefill(config: SchedulerConfig, cost: CostModel, prompt: float, output: float, beside: float) -> float:
    """Seconds until a request's whole prompt is computed and its first token known, with others beside it."""
    room = max(1.0, config.max_step_tokens - beside)
    chunk = min(prompt, room if config.max_chunk_tokens is None else min(room, float(config.max_chunk_tokens)))
    steps = math.ceil(prompt / chunk)
    context = beside * (prompt + output / 2)
    work = StepWork(
        sequences=1 + round(beside),
        tokens=round(chunk + beside),
        rows=1 + round(beside),
        context=round(context + prompt / 2 + chunk / 2),
        pairs=round(context + chunk * (prompt + 1) / 2),
    )
    return steps * cost.step_s(work) + (steps - 1) * cost.between_s(work)


def _together(one: NDArray[np.float64], replicas: int) -> NDArray[np.float64]:
    """mu(n) of replicas among which n requests are spread evenly."""
    if replicas == 1:
        return one
    slots = min(len(one) * replicas, max(_MOST_SLOTS, replicas))
    share = np.arange(1, slots + 1) / replicas
    whole = np.interp(share, np.arange(1, len(one) + 1), one) * replicas
    return np.asarray(np.where(share < 1, np.arange(1, slots + 1) * one[0], whole))
