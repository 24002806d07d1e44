"""Requests as they come once a service has been up for long: conversations are then at every stage, not just the first.

A workload that begins with nothing needs as long as an answer takes until as many are under way as there will be, and
one of conversations as long as those last to reach its rate: a chat with 20 s of thought between turns, many minutes.
So what is due in a short window is simulated and measured, and before it, unmeasured, what is due while an answer
takes. Conversations are drawn for a period that is several times as long, and time goes round in it: what is due after
its end is due at its beginning, as if the same conversation had begun a period earlier, too. So every turn that is
drawn has its moment, however long before the window a conversation began, and they come at the rate that was asked.
What was said before in those that go on in the window is computed once before it begins, so that it is in the prefix
cache, unless that was so long ago that others will have taken its room (`reuse`). Turns come when they were drawn to
come, taking each answer to last about as long as it does, or when the answer before has ended, whichever is later.

One seed gives the same requests at every rate, only closer together, so that two rates or two designs are compared by
nothing else: what is drawn is cut from a sample that is as large for all rates that are near each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from armillary.measure.columns import Columns
from armillary.measure.outcomes import Outcomes
from armillary.measure.presets import PRESETS, workload_of
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.workload import Workload
from armillary.plan.reuse import Reuse
from armillary.twin.census import Since
from armillary.twin.fleet_result import FleetResult
from armillary.twin.outcome import SimulatedOutcomes

_PERIOD = 4.0
"""Times as many requests as come in the window are drawn of conversations, at least."""
_SAMPLE, _LARGER = 4096, 4
"""Requests of the smallest sample that is drawn, and times as many in each larger one."""
_PATIENCE = 2.0
"""Times as long as it should take, for what was said before to be computed."""


@dataclass(frozen=True)
class Pace:
    """How fast a machine is, roughly.

    Attributes:
        token_s: for each token of an answer, under about as much load as it can take.
        prompt_s: for each token of a prompt, by itself.
        answer_s: for a whole answer: until then a machine that began with nothing is not as busy as it will be.
        output_s: of the machine's time, for each token of an answer among as many others as it can take.
    """

    token_s: float
    prompt_s: float
    answer_s: float
    output_s: float = 0.0


@dataclass(frozen=True)
class Load:
    """Requests to simulate.

    Attributes:
        workload: those that are not measured first.
        begins: seconds; what is due from then on is measured.
        before: how many are not measured.
    """

    workload: Workload
    begins: float = 0.0
    before: int = 0

    @property
    def requests(self) -> int:
        """That are measured."""
        return len(self.workload) - self.before

    @property
    def since(self) -> Since:
        """From when on a simulation is measured, and with which request."""
        return Since(self.begins, self.before) if self.before else Since()

    def measured(self, result: FleetResult) -> FleetResult:
        """A simulation without what came before."""
        if not self.before:
            return result
        run, shift = result.requests, self.begins
        kept = np.arange(len(run)) >= self.before
        rest: Outcomes = run.select(kept)
        requests = SimulatedOutcomes(
            due=rest.due - shift,
            first=rest.first - shift,
            end=rest.end - shift,
            prompt_tokens=rest.prompt_tokens,
            output_tokens=rest.output_tokens,
            cached_tokens=rest.cached_tokens,
            ok=rest.ok,
            deadline=rest.deadline,
            slo_class=rest.slo_class,
            slo_classes=rest.slo_classes,
            finish=run.finish[kept],
            replica=run.replica[kept],
        )
        return replace(result, requests=requests, duration_s=max(0.0, result.duration_s - shift))


def conversing(spec: WorkloadSpec) -> bool:
    """Whether requests are turns of conversations that are drawn, and not read from a file."""
    preset = PRESETS.get(spec.workload, {}) if spec.workload is not None else {}
    if spec.workload is not None and not preset:
        return False
    turns = spec.turns if "turns" in spec.model_fields_set else preset.get("turns", spec.turns)
    return bool(turns != "1")


def lengths(columns: Columns) -> NDArray[np.int64]:
    """Tokens of each request with its answer."""
    found: NDArray[np.int64] = columns.prompt_tokens + columns.output_tokens
    return found


def without_long(workload: Workload, longest: float) -> Workload:
    """A workload without the requests that are too long."""
    long = lengths(workload.columns) > longest
    return replace(workload, items=workload.columns.take(np.flatnonzero(~long))) if long.any() else workload


def steady_load(spec: WorkloadSpec, pace: Pace, longest: float = inf, memory: float = inf) -> Load:
    """What comes while `spec.requests` are due at `spec.rate`, on average so many, and what comes before that.

    Args:
        longest: tokens of a request and its answer. Longer ones would be refused by every deployment alike, and are
            left out: how many of them a window happens to hold says nothing about one.
        memory: tokens that the prefix caches of those who serve this rate hold together.
    """
    if spec.users is not None or not np.isfinite(spec.rate):
        return Load(without_long(workload_of(spec), longest))
    span, ramp = spec.requests / spec.rate, pace.answer_s
    more = round(ramp * spec.rate)
    if not conversing(spec):
        drawn = without_long(_first(spec, spec.requests + more), longest)
        arrival = drawn.columns.arrival
        before = 0 if arrival is None else int(np.searchsorted(arrival, ramp))
        # A recorded file may hold less than is asked for.
        return Load(drawn, ramp, before) if len(drawn) - before >= spec.requests // 2 else Load(drawn)
    drawn = _sample(spec, round(_PERIOD * (ramp + span) * spec.rate))
    columns = drawn.columns
    if columns.history is None or columns.session is None or columns.arrival is None:  # none has a second turn
        return Load(without_long(workload_of(spec), longest))
    period = len(drawn) / spec.rate
    starts = columns.arrival * (period / columns.arrival[-1])
    due = starts + _since_start(columns, columns.session, pace) - (period - ramp - span)
    kept_s = Reuse.of(columns, due).kept_s(spec.rate, memory)
    turn = np.floor(due / period)
    arrival = np.maximum(0.0, due - turn * period)
    inside = np.flatnonzero((arrival < ramp + span) & (lengths(columns) <= longest))
    if not len(inside):
        return Load(without_long(workload_of(spec), longest))
    # A conversation that goes round is another one in each turn of time.
    session = columns.session + (turn - turn.min()).astype(np.int64) * (int(columns.session[-1]) + 1)
    kept = inside[np.argsort(arrival[inside], kind="stable")]
    return _warmed(_Drawn(drawn, columns.history, session, arrival, due), kept, kept_s, ramp, pace)


def _sample(spec: WorkloadSpec, requests: int) -> Workload:
    """At least so many, and as many as at any rate near this one."""
    many = _SAMPLE
    while many < requests:
        many *= _LARGER
    return workload_of(spec.model_copy(update={"requests": many}))


def _first(spec: WorkloadSpec, requests: int) -> Workload:
    """So many, of a sample where they are drawn."""
    if spec.workload is not None and spec.workload not in PRESETS:
        return workload_of(spec.model_copy(update={"requests": requests}))
    drawn = _sample(spec, requests)
    return replace(drawn, items=drawn.columns.take(np.arange(requests)))


@dataclass(frozen=True)
class _Drawn:
    """Turns of conversations, and of each row of them what was said before, which conversation it is of, when it comes
    after the ramp's start, and when it would if time did not go round."""

    workload: Workload
    history: NDArray[np.int64]
    session: NDArray[np.int64]
    arrival: NDArray[np.float64]
    due: NDArray[np.float64]


def _warmed(drawn: _Drawn, kept: NDArray[np.int64], kept_s: float, ramp: float, pace: Pace) -> Load:
    """Turns that are kept, after what was said before in conversations that had begun.

    Args:
        kept: rows, in the order of their `arrival`.
        kept_s: seconds for which what was said stays in the cache.
    """
    columns, history, session, arrival, due = (
        drawn.workload.columns, drawn.history, drawn.session, drawn.arrival, drawn.due,
    )  # fmt: skip
    rows = np.sort(kept)
    firsts = rows[np.concatenate([[True], session[rows][1:] != session[rows][:-1]])]
    going_on = firsts[history[firsts] > 1]
    ago = due[going_on] - due[going_on - 1]
    forgotten, going_on, ago = going_on[ago > kept_s], going_on[ago <= kept_s], ago[ago <= kept_s]
    going_on = going_on[np.argsort(arrival[going_on] - ago, kind="stable")]  # what was said last is in it longest
    start = np.flatnonzero(history == 0)
    opening = start[np.searchsorted(start, np.arange(len(columns)), side="right") - 1]  # which brings a shared prefix
    said, before = history[going_on], len(going_on)
    filled = _PATIENCE * pace.prompt_s * float(said.sum())
    together = np.concatenate([going_on, kept])
    anew = np.isin(together, forgotten)
    anew[:before] = True
    taken = columns.take(np.where(anew, opening[together], together))
    own = np.arange(len(taken)) < before
    when = np.concatenate([np.arange(before) * (filled / _PATIENCE / max(1, before)), filled + arrival[kept]])
    prompt, output = columns.prompt_tokens[together], columns.output_tokens[together]
    prompt[:before], output[:before] = said - 1, 1
    found = replace(
        taken,
        prompt_tokens=prompt,
        output_tokens=output,
        session=session[together],
        history=np.where(anew, 0, history[together]),
        arrival=when,
        think=None,
        deadline=None if taken.deadline is None else np.where(own, np.nan, taken.deadline),
        sessions=None,
        ids=None,
    )
    workload = Workload(found, None, drawn.workload.origin, drawn.workload.slo_classes)
    return Load(workload, filled + ramp, before + int((arrival[kept] < ramp).sum()))


def _since_start(columns: Columns, session: NDArray[np.int64], pace: Pace) -> NDArray[np.float64]:
    """Of each turn, seconds since its conversation's first was due; turns stand conversation after conversation."""
    think = np.zeros(len(columns)) if columns.think is None else columns.think
    own = columns.prompt_tokens - (0 if columns.history is None else columns.history)
    stay = columns.output_tokens * pace.token_s + own * pace.prompt_s
    passed = np.cumsum(think + np.concatenate([[0.0], stay[:-1]]))
    first = np.concatenate([[True], session[1:] != session[:-1]])
    place = np.maximum.accumulate(np.where(first, np.arange(len(columns)), 0))
    return np.asarray(passed - passed[place], dtype=np.float64)
