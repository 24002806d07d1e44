"""What is simulated of workloads that are not alike all the time, so that a plan is one for their busiest.

A simulation holds some hundred requests. Of arrivals whose rate changes within that, it holds several cycles. Where a
cycle takes longer, the highest rate lasts longer than a simulation too, and what is planned for is that rate, as if it
lasted for ever: whoever keeps a service level then keeps it at every other time. Of a recorded file, windows are
simulated: three around the busiest that it has, and others spread over all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import numpy as np

from armillary.measure.arrivals import parse_arrivals
from armillary.measure.presets import PRESETS, workload_of
from armillary.measure.scaling import at_rate
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.workload import Workload
from armillary.plan.steady_load import Load, Pace, without_long

CYCLES = 8
"""Cycles of arrivals that a simulation holds."""
MOST_OF_CYCLES = 10_000
"""Requests that come in so many cycles at most, for them to be simulated."""
WINDOW = 600
"""Requests of the windows among which the busiest is looked for."""
NEAR = 3
"""Simulations of windows around the busiest; all further ones are of windows from anywhere."""
_APART = (0.0, -1 / 3, 1 / 3)
"""How far these begin from it, as a share of a window."""
_GOLDEN = 0.6180339887498949
"""Multiples of it, without their whole part, lie spread over everything, however many there are."""


def is_file(spec: WorkloadSpec) -> bool:
    """Whether requests are read, and not drawn."""
    return spec.workload is not None and spec.workload not in PRESETS


def cycles_s(spec: WorkloadSpec) -> float:
    """Seconds of the cycles that a simulation must hold; 0 where all times are alike."""
    return 0.0 if is_file(spec) else CYCLES * parse_arrivals(spec.arrivals).cycle_s


def at_its_highest(spec: WorkloadSpec, rate: float) -> tuple[WorkloadSpec, float]:
    """What is simulated in place of arrivals whose rate changes too slowly, and how many times the mean rate that is.

    Args:
        rate: about what one replica serves.
    """
    arrivals = None if is_file(spec) else parse_arrivals(spec.arrivals)
    if arrivals is None or rate * CYCLES * arrivals.cycle_s <= MOST_OF_CYCLES:
        return spec, 1.0
    return spec.model_copy(update={"arrivals": "poisson"}), arrivals.peak


@dataclass(frozen=True)
class Recording:
    """A recorded file, of which windows are simulated.

    Attributes:
        workload: all of it that any deployment can serve.
        busiest: the first row of the window with the most work for its time.
        peak: the rate of requests there, as a factor of the file's mean rate.
    """

    workload: Workload
    busiest: int
    peak: float

    @staticmethod
    def of(spec: WorkloadSpec, pace: Pace, longest: float = inf) -> Recording:
        """The file that a specification names.

        Raises ArmillaryError: INVALID_REQUEST where its requests do not come one after the other.
        """
        workload = at_rate(without_long(whole(spec), longest), 1.0)
        columns = workload.columns
        arrival = np.zeros(len(columns)) if columns.arrival is None else columns.arrival
        count = min(WINDOW, len(columns) - 1)
        if not count:
            return Recording(workload, 0, 1.0)
        own = columns.prompt_tokens - (0 if columns.history is None else columns.history)
        work = own * pace.prompt_s + columns.output_tokens * pace.output_s
        if not work.any():
            work = np.ones(len(columns))
        done = np.concatenate([[0.0], np.cumsum(work)])
        seconds = np.maximum(arrival[count:] - arrival[: len(arrival) - count], 1e-9 * len(columns))
        busiest = int(np.argmax((done[count:-1] - done[: len(done) - 1 - count]) / seconds))
        return Recording(workload, busiest, float(count / seconds[busiest]))

    def start(self, number: int, count: int) -> int:
        """The first row of the window of a simulation.

        Args:
            number: of the simulation.
            count: rows of the window.
        """
        room = max(0, len(self.workload) - count)
        if number < NEAR:
            return min(room, max(0, self.busiest + round(_APART[number] * min(count, WINDOW))))
        return int(number * _GOLDEN % 1.0 * (room + 1))

    def load(self, rate: float, number: int, count: int, ramp_s: float) -> Load:
        """A window, after what comes while an answer takes.

        A conversation of which the window holds the rest begins with its whole prompt: what was said before is not in
        the cache, which errs on the side of caution.

        Args:
            rate: requests a second at the busiest.
        """
        columns, scale = self.workload.columns, self.peak / rate
        arrival = np.zeros(len(columns)) if columns.arrival is None else columns.arrival * scale
        start = self.start(number, count)
        first = int(np.searchsorted(arrival, arrival[start] - ramp_s))
        taken = columns.take(np.arange(first, min(len(columns), start + count)))
        said = None if taken.history is None else np.where(taken.turn_before() < 0, 0, taken.history)
        shifted = arrival[first : first + len(taken)] - arrival[first]
        taken = replace(taken, arrival=shifted, history=said)
        workload = Workload(taken, None, self.workload.origin, self.workload.slo_classes)
        return Load(workload, float(arrival[start] - arrival[first]), start - first)

    def share(self, simulations: int, count: int) -> float:
        """The share of its requests that so many simulations hold, together."""
        held = np.zeros(len(self.workload), dtype=np.bool_)
        for number in range(simulations):
            start = self.start(number, count)
            held[start : start + count] = True
        return float(held.mean())


def whole(spec: WorkloadSpec) -> Workload:
    """All of a recorded file."""
    given = {name: getattr(spec, name) for name in spec.model_fields_set - {"requests", "rate"}}
    return workload_of(WorkloadSpec.model_validate(given))
