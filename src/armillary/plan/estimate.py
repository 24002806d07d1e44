"""What queueing theory says of a deployment under a workload, to stand beside a simulation of it.

Engines behind one queue are one batch server (`batch_server`): with n requests present, each replica's step holds its
share of them and the part of a prompt that so many bring a step. Where requests are read one after another before that,
the desk at which they are is a station of its own. It knows mean lengths only, no prefix cache and no routing. Where a
simulation is far from it, one of the two is wrong, or one of these matters; either is worth knowing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.core.config import SchedulerConfig
from armillary.measure.slo import Slo
from armillary.measure.workload import Workload
from armillary.plan.batch_server import BatchServer
from armillary.plan.checks import at_least
from armillary.plan.networks import normalising_constants
from armillary.plan.queueing import MMc
from armillary.twin.cost import CostModel
from armillary.twin.work import StepWork

_MOST_SLOTS = 4096
"""Slots that are worked out one by one; more of them are taken together."""
_HALVINGS = 12


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


@dataclass(frozen=True, slots=True)
class Mix:
    """All that theory knows of requests: mean tokens.

    Attributes:
        fresh: of the prompt, what must be computed; the rest is found in the prefix cache.
    """

    prompt: float
    output: float
    fresh: float

    @staticmethod
    def of(workload: Workload, cached: bool = False) -> Mix:
        """Of a workload.

        Args:
            cached: whether what a prompt shares with others, and what was said before it, is found in the cache. The
                first of those that share it does compute it, so this is a little too good.
        """
        columns = workload.columns
        prompt, output = float(columns.prompt_tokens.mean()), float(columns.output_tokens.mean())
        known = 0.0
        if cached and columns.history is not None:
            known += float(columns.history.sum())
        if cached and columns.run_tokens is not None:
            known += float(columns.run_tokens.sum())
        return Mix(prompt, output, max(1.0, prompt - known / len(columns)))


class Theory:
    """Replicas that share requests of a mix evenly, as one batch server."""

    def __init__(self, config: SchedulerConfig, cost: CostModel, mix: Mix, replicas: int = 1) -> None:
        at_least("replicas", replicas, 1)
        self._config, self._cost, self._mix, self._replicas = config, cost, mix, replicas
        held = config.num_blocks * config.block_size / (mix.prompt + mix.output)
        self._held = cost.held_s(round(mix.prompt))
        """Of the seconds in which a request is read the last, for which a step waits: they are counted in that step."""
        self._slots = max(1, min(config.max_running, int(held), _MOST_SLOTS))
        one = np.array([self._leaving(n) for n in range(1, self._slots + 1)])
        self._rates = _together(one, replicas)
        self._reading = cost.request_s(round(mix.prompt))
        """Seconds in which a request is read; where they take turns, at one desk of each engine."""
        desks = replicas / self._reading if cost.turns and self._reading > 0 else math.inf
        self.capacity = min(float(self._rates.max()), desks)
        """The most requests a second that could be answered for ever."""

    def at(self, rate: float) -> Estimate:
        """Mean values while so many requests come a second; inf: all at once."""
        if rate >= self.capacity:
            slots = float(self._slots * self._replicas)
            return Estimate(self.capacity, self.capacity, slots, math.inf, math.inf, math.inf)
        read = self._reading
        if read and self._cost.turns:
            read = MMc(rate, read, self._replicas).response_s
        server = BatchServer(rate, self._rates)
        return self._seen(server.throughput, server.running, read, server.wait_s, server.residence_s)

    def of_users(self, users: int, thinking: float) -> Estimate:
        """Mean values of so many users who think for so many seconds before each request."""
        rates, read = self._rates, self._reading
        demands, speeds = [1 / rates[0]], [(rates / rates[0]).tolist()]
        if read and self._cost.turns:
            demands, speeds = [*demands, read], [*speeds, list(range(1, self._replicas + 1))]
        else:
            thinking += read
        throughput, present = normalising_constants(demands, users, thinking, speeds)
        if len(present) > 1:
            read = float(present[1]) / throughput
        running = min(float(present[0]), float(self._slots * self._replicas))
        wait = max(0.0, float(present[0]) - running) / throughput
        return self._seen(throughput, running, read, wait, running / throughput)

    def knee(self, slo: Slo) -> float:
        """The highest rate at which the mean values keep a service level's limits; a hundredth of the capacity where
        there is none. Percentiles are higher than means: this is for comparing, and to know where to look."""
        limits = {"ttft": math.inf, "tpot": math.inf, "e2e": math.inf}
        for objective in slo.objectives:
            metric = "tpot" if objective.metric == "itl" else objective.metric  # their means are the same
            limits[metric] = min(limits[metric], objective.limit_s)
        low, high = 0.01, 0.999
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            found = self.at(middle * self.capacity)
            keeps = found.ttft_s <= limits["ttft"] and found.tpot_s <= limits["tpot"] and found.e2e_s <= limits["e2e"]
            low, high = (middle, high) if keeps else (low, middle)
        return low * self.capacity

    def _seen(self, throughput: float, running: float, read: float, wait: float, inside: float) -> Estimate:
        """What requests see that are read, wait and stay inside for so many seconds."""
        beside = max(0.0, running / self._replicas - 1)
        busy = min(1.0, running / self._replicas)
        rest = self._step(max(1.0, beside)) / 2 * busy  # of the step in which it arrived
        first = min(inside, self._prefill(beside) + self._held)
        before = read - self._held
        return Estimate(
            capacity=self.capacity,
            throughput=throughput,
            running=running,
            ttft_s=before + wait + rest + first + self._cost.first_s,
            tpot_s=max(0.0, inside - first - self._cost.first_s) / max(1.0, self._mix.output - 1),
            e2e_s=before + wait + rest + max(inside, first + self._cost.first_s),
        )

    def _leaving(self, n: float) -> float:
        """Requests that leave per second with n in the batch: each needs `output` steps, more where prompts fill
        them."""
        mix = self._mix
        asked = n * (1 + mix.fresh / mix.output)
        return n / mix.output / self._step(n) * min(1.0, self._config.max_step_tokens / asked)

    def _step(self, n: float) -> float:
        """Seconds of a step with n requests, n / output of whose prompts it computes, and of what follows it."""
        mix = self._mix
        started = min(n * mix.fresh / mix.output, max(0.0, self._config.max_step_tokens - n))
        context = n * (mix.prompt + mix.output / 2)
        work = StepWork(
            sequences=max(1, round(n)),
            tokens=max(1, round(n + started)),
            rows=max(1, round(n)),
            context=round(context + started / 2),
            pairs=round(context + started * mix.prompt / 2),
        )
        work = self._beside_a_server(work, n / mix.output)
        return self._cost.step_s(work) + self._cost.between_s(work)

    def _beside_a_server(self, work: StepWork, begun: float) -> StepWork:
        """The step with what a server and its clients take of it, where so many requests begin and end in each."""
        if not self._cost.near_s:
            return work
        alone = self._cost.alone_s(work)
        share = alone / (alone + self._cost.near_s)  # of the time near a request that a step takes (`twin.entering`)
        any_ended, any_near = -math.expm1(-begun), -math.expm1(-3 * begun)  # each admitted, answered, ended
        return work._replace(
            near=share * any_near / (1 - (1 - any_near) * (1 - share)),
            read=begun,
            read_tokens=begun * self._mix.prompt,
            ended=any_ended,
        )

    def _prefill(self, beside: float) -> float:
        """Seconds until a request's whole prompt is computed and its first token known, with others beside it."""
        config, mix = self._config, self._mix
        room = max(1.0, config.max_step_tokens - beside)
        chunk = min(mix.fresh, room if config.max_chunk_tokens is None else min(room, float(config.max_chunk_tokens)))
        steps = math.ceil(mix.fresh / chunk)
        context = beside * (mix.prompt + mix.output / 2)
        work = StepWork(
            sequences=1 + round(beside),
            tokens=round(chunk + beside),
            rows=1 + round(beside),
            context=round(context + mix.prompt / 2 + chunk / 2),
            pairs=round(context + chunk * (mix.prompt - mix.fresh / 2 + 0.5)),
        )
        return steps * self._cost.step_s(work) + (steps - 1) * self._cost.between_s(work)


def estimate(config: SchedulerConfig, cost: CostModel, workload: Workload, replicas: int = 1) -> Estimate:
    """Mean values of replicas that share a workload evenly, nothing of it cached."""
    theory = Theory(config, cost, Mix.of(workload), replicas)
    if workload.users is not None:
        columns = workload.columns
        return theory.of_users(workload.users, 0.0 if columns.think is None else float(np.mean(columns.think)))
    rate = workload.offered_rate
    return theory.at(math.inf if rate is None else rate)


def _together(one: NDArray[np.float64], replicas: int) -> NDArray[np.float64]:
    """mu(n) of replicas among which n requests are spread evenly."""
    if replicas == 1:
        return one
    slots = min(len(one) * replicas, max(_MOST_SLOTS, replicas))
    share = np.arange(1, slots + 1) / replicas
    whole = np.interp(share, np.arange(1, len(one) + 1), one) * replicas
    return np.asarray(np.where(share < 1, np.arange(1, slots + 1) * one[0], whole))
