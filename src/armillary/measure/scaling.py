"""A recorded workload, faster or slower, thinner or thicker."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code
from armillary.measure.columns import Columns
from armillary.measure.workload import Workload

MOST_REQUESTS = 100_000_000
"""Of a workload that grows by copies of itself: some ten gigabytes."""


def at_rate(workload: Workload, rate: float) -> Workload:
    """The same requests in the same order, closer together or further apart, so that they come at `rate` per second."""
    offered = workload.offered_rate
    if offered is None or workload.columns.arrival is None:
        raise _wrong(
            "rate must be changed of an open loop whose requests do not all come at once, given another workload"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # at rates near 0, which the workload refuses
        columns = replace(workload.columns, arrival=workload.columns.arrival * (offered / rate))
    return Workload(columns, None, workload.origin | {"rate": rate}, workload.slo_classes)


def at_speed(workload: Workload, speed: float) -> Workload:
    """The same requests in the same order, `speed` times as fast."""
    arrival = workload.columns.arrival
    if workload.users is not None or arrival is None:
        raise _wrong("speed must be changed of an open loop, given a closed one")
    columns = replace(workload.columns, arrival=arrival / speed)
    return Workload(columns, None, workload.origin | {"speed": speed}, workload.slo_classes)


def of_volume(workload: Workload, volume: float, seed: int) -> Workload:
    """`volume` times as many requests in the same time: conversations left out at random below 1, copies above.

    A copy is shifted in time by a random part of the whole, so that it is not due at the same moments, begins anew
    at the end, and shares nothing with the others. A fractional number of copies is one copy thinned.
    """
    columns, rng = workload.columns, np.random.default_rng([seed, 11])
    if volume * len(columns) > MOST_REQUESTS:
        raise _wrong(
            f"volume must make at most {MOST_REQUESTS:,} requests, given {volume:g} times {len(columns):,} of them"
        )
    if workload.users is not None or columns.arrival is None:
        raise _wrong("volume must be changed of an open loop, given a closed one")
    conversation = _conversation(columns)
    copies = []
    for copy in range(math.ceil(volume)):
        share = min(1.0, volume - copy)
        kept = rng.random(len(columns)) < share  # drawn always, so that volumes share their choices
        part = columns.take(np.flatnonzero(kept[conversation]))
        shift = float(rng.random()) * workload.duration
        copies.append(part if copy == 0 else _copy(part, copy, shift, workload.duration))
    copies = [part for part in copies if len(part)]
    if not copies:
        raise _wrong(f"volume must leave at least one request, given {volume:g} of {len(columns)} requests")
    joined = copies[0] if len(copies) == 1 else Columns.of(item for part in copies for item in part)
    arrival = joined.arrival
    order = np.arange(len(joined)) if arrival is None else np.argsort(arrival, kind="stable")
    return Workload(joined.take(order), None, workload.origin | {"volume": volume, "seed": seed}, workload.slo_classes)


def first_requests(workload: Workload, count: int) -> Workload:
    """The first `count` requests."""
    return Workload(
        workload.columns[:count], workload.users, workload.origin | {"requests": count}, workload.slo_classes
    )


def _conversation(columns: Columns) -> NDArray[np.int64]:
    """Of each row, the first row of its conversation."""
    if columns.session is None:
        return np.arange(len(columns))
    _, first, place = np.unique(columns.session, return_index=True, return_inverse=True)
    return np.where(columns.session < 0, np.arange(len(columns)), first[place])


def _copy(part: Columns, copy: int, shift: float, duration: float) -> Columns:
    """`part` under other names, shifted in time."""

    def renamed(names: list[str]) -> tuple[str, ...]:
        return tuple(f"{name}+{copy}" for name in names)

    arrival = part.arrival
    if arrival is not None and duration > 0:
        # Whole conversations move, so that no turn comes before the one before it.
        start = arrival[_conversation(part)]
        arrival = (start + shift) % duration + (arrival - start)
    codes = 0 if part.run is None or not len(part.run) else int(part.run.max()) + 1
    sessions = 0 if part.session is None else int(part.session.max()) + 1
    return replace(
        part,
        arrival=arrival,
        ids=renamed([part.id(row) for row in range(len(part))]),
        runs=renamed([f"p{code}" if part.runs is None else part.runs[code] for code in range(codes)]),
        sessions=renamed([part.session_name(code) for code in range(sessions)]),
    )


def _wrong(message: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, message, param="workload")
