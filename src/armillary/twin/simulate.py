"""A workload against one simulated engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from armillary.core.config import SchedulerConfig
from armillary.core.journal import Journal
from armillary.core.request import FinishReason
from armillary.core.stats import SchedulerStats
from armillary.core.step import Event
from armillary.errors import ArmillaryError
from armillary.measure.workload import WorkItem, Workload
from armillary.twin.cost import CostModel
from armillary.twin.demand import Demand, Due, Prompts
from armillary.twin.executor import StepTotals
from armillary.twin.garbage import uncollected
from armillary.twin.outcome import Recorder, SimulatedOutcomes
from armillary.twin.replica import Replica
from armillary.twin.spread import Draws, Spread
from armillary.twin.watch import Watch


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a simulation found. Equal inputs give equal results, byte for byte.

    Attributes:
        requests: what became of each.
        duration_s: from the workload's start to the end of the last step or, where that is later, of the last answer.
        steps: totals over all steps; `steps.outside / steps.steps` is the share outside the cost model's hull.
        stats: as the real engine counts them.
    """

    requests: SimulatedOutcomes
    duration_s: float
    steps: StepTotals
    stats: SchedulerStats


class Audience:
    """Hears the news of engines and notes what becomes of each request.

    Args:
        ended: is told of each request that has ended, and when.
        watch: is told how long first tokens and answers took.
    """

    def __init__(self, ended: Callable[[WorkItem, float], None], watch: Watch | None = None) -> None:
        self.recorder = Recorder()
        self._ended = ended
        self._watch = watch
        self._open: dict[str, Due] = {}
        self._silent: set[str] = set()
        """Open requests without a token."""

    def submitted(self, due: Due, replica: int = 0) -> None:
        """Expect news of a request. -1: no replica has it yet."""
        self.recorder.submitted(due.row, due.due, due.item, replica)
        self._open[due.item.id] = due
        self._silent.add(due.item.id)

    def moved(self, request_id: str, replica: int) -> None:
        """A replica has taken an open request, which begins there, or begins anew."""
        self.recorder.moved(self._open[request_id].row, replica)
        self._silent.add(request_id)

    def refused(self, request_id: str, at: float) -> None:
        """An open request was not let in."""
        due = self._open.pop(request_id)
        self._silent.discard(request_id)
        self.recorder.moved(due.row, -1)
        self.recorder.ended(due.row, at, 0, "refused")
        self._ended(due.item, at)

    def row(self, request_id: str) -> int:
        """The number in the workload of an open request."""
        return self._open[request_id].row

    def hear(self, cost: CostModel, at: float, events: list[Event]) -> dict[str, float]:
        """Take the news of one step of an engine whose times that model predicts.

        Returns the requests that have ended with it, and when their clients know.
        """
        ends: dict[str, float] = {}
        silent = self._silent
        for event in events:
            if event.request_id in silent and event.token is not None:
                silent.remove(event.request_id)
                due = self._open[event.request_id]
                first = at + cost.first_s
                self.recorder.began(due.row, first, event.cached)
                if self._watch is not None:
                    self._watch.began(due.row, first - due.due)
            if event.finish is not None:
                due = self._open.pop(event.request_id)
                silent.discard(event.request_id)
                whole = event.finish is FinishReason.LENGTH
                end = self.recorder.ended(due.row, at, due.item.output_tokens if whole else 0, event.finish)
                if self._watch is not None and whole:
                    self._watch.ended(due.row, self.recorder.times(due.row)[1], end - due.due)
                ends[event.request_id] = end
                self._ended(due.item, end)
        return ends


def simulate(
    config: SchedulerConfig,
    workload: Workload | Iterable[WorkItem],
    cost: CostModel,
    *,
    journal: Journal | None = None,
    until: float = inf,
    spread: Spread | None = None,
    seed: int = 0,
    leap: bool = True,
) -> SimulationResult:
    """Serve a workload with one engine, to its end.

    Args:
        config: what the real engine's scheduler is told.
        workload: as of `Demand`.
        until: the last moment at which a request may be submitted and a step begin.
        spread: lets steps vary around what `cost` predicts; None: they take as long as predicted.
        seed: of that.
        leap: take steps that are provably alike in one. Results do not change; off is slower.
    """
    demand, prompts = Demand(workload, cost), Prompts(workload, config.block_size if leap else 0)
    audience = Audience(demand.ended)
    vary = None if spread is None else Draws(spread, seed)

    def hear(at: float, events: list[Event]) -> None:
        audience.hear(cost, at, events)

    replica = Replica(config, cost, hear, journal=journal, vary=vary, leap=leap)
    with uncollected(leap):
        while True:
            moment = min(demand.next_time, until)  # read anew after each step: what ended may bring a request sooner
            if replica.step(moment):
                continue
            if moment == until:
                break
            due = demand.take()
            audience.submitted(due)
            try:
                replica.submit(prompts.request(due))
            except ArmillaryError:
                audience.refused(due.item.id, replica.clock.now())
        stats = replica.engine.scheduler.stats
        replica.end()
    end = max(replica.clock.now(), audience.recorder.last)
    return SimulationResult(audience.recorder.columns(), end, replica.executor.totals, stats)
