"""`GET /v1/requests` and `GET /v1/requests/{id}/timeline`: who is here, and where a request's time went.

The engine's part of a timeline is made of the very records that its journal is written from; the server adds
what came before and what came after. Boundaries are rounded to nanoseconds once, and phases are differences of
boundaries, so that they add up exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Literal

from fastapi import FastAPI, Query
from starlette.responses import Response
from typing_extensions import TypedDict

from armillary.core.recent import Life, StepRecord
from armillary.core.timeline import Span, TimePhase, spans_of
from armillary.errors import ArmillaryError, Code
from armillary.server.endpoint import json_response
from armillary.server.openapi import GUARDED, described
from armillary.server.requests import ENDED_KEPT, RequestCard, card
from armillary.server.service import Service
from armillary.server.tally import Ask, RequestState, Tally

COLUMNS = ("phase", "start_ns", "end_ns", "step", "tokens")
BUSIEST_FIRST = (
    TimePhase.DECODE, TimePhase.RECOMPUTE, TimePhase.PREFILL, TimePhase.BETWEEN, TimePhase.WAITING,
    TimePhase.PREEMPTED, TimePhase.QUEUED, TimePhase.RECEIVED, TimePhase.UNRECORDED, TimePhase.DELIVERY,
)  # fmt: skip
"""What a request with several choices is doing is what the busiest of them is doing."""

Row = tuple[TimePhase, int, int, int | None, int | None]


class RequestList(TypedDict):
    object: Literal["list"]
    time: float
    ended: int
    data: list[RequestCard]


class ChoiceTimeline(TypedDict):
    """One choice; its spans lie end to end over the whole time."""

    index: int
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    phases_ns: dict[TimePhase, int]
    columns: list[str]
    spans: list[Row]


class Timeline(TypedDict):
    """Where one request's time went, in whole nanoseconds that add up."""

    object: Literal["request.timeline"]
    id: str | None
    request_id: str
    model: str | None
    endpoint: str
    state: RequestState
    finish_reason: str | None
    created: float
    complete: bool
    wall_ns: int
    phases_ns: dict[TimePhase, int]
    detokenise_ns: int
    choices: list[ChoiceTimeline]


def add_timeline(app: FastAPI, service: Service) -> None:
    """Add the two endpoints."""

    @app.get("/v1/requests")
    @described(
        answer=RequestList,
        query={"state": Literal["live", "ended"], "model": str, "limit": Annotated[int, Query(ge=1, le=ENDED_KEPT)]},
    )
    async def requests(
        state: Annotated[Literal["live", "ended"] | None, Query()] = None,
        model: Annotated[str | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=ENDED_KEPT)] = 100,
    ) -> Response:
        """The requests in flight and the latest that ended, newest first."""
        wanted = (
            card(tally)
            for tally in service.requests
            if service.may_watch(tally.owner)
            and (state is None or (tally.state is RequestState.ENDED) == (state == "ended"))
            and (model is None or tally.model == model)
        )
        log = service.requests
        return json_response(
            {"object": "list", "time": time.time(), "ended": log.ended, "data": list(islice(wanted, limit))}
        )

    @app.get("/v1/requests/{name}/timeline")
    @described(answer=Timeline, errors=(*GUARDED, Code.NOT_FOUND))
    async def timeline(name: str) -> Response:
        """Where a request's time went, by the id of its response, its x-request-id or its id in `/v1/engine`."""
        tally = service.requests.find(name, service.may_watch)
        if tally is None:
            raise ArmillaryError(
                Code.NOT_FOUND,
                f"the id must be of a request in flight or of the latest {ENDED_KEPT} that ended, given {name[:200]!r}",
                "id",
            )
        return json_response(timeline_of(tally))


def timeline_of(tally: Tally) -> Timeline:
    """The timeline of a request, up to now if it is in flight."""
    end = tally.ended_at if tally.ended_at is not None else time.monotonic()
    wall_ns = _ns(tally, end)
    choices: list[ChoiceTimeline] = []
    for ask in tally.asks:
        known = None if tally.recent is None else tally.recent.recall(ask.id)
        for choice in range(ask.choices):
            choices.append(_choice(tally, ask, known, choice, len(choices), wall_ns, end))
    if choices:
        phases = _busiest([choice["spans"] for choice in choices])
    else:
        phases = _sums([(TimePhase.RECEIVED, 0, wall_ns, None, None)])
    return {
        "object": "request.timeline",
        "id": tally.id,
        "request_id": tally.request_id,
        "model": tally.model or None,
        "endpoint": tally.endpoint,
        "state": tally.state,
        "finish_reason": tally.ended if tally.ended_at is not None else None,
        "created": tally.created,
        "complete": not phases[TimePhase.UNRECORDED],
        "wall_ns": wall_ns,
        "phases_ns": phases,
        "detokenise_ns": round(tally.detokenise_s * 1e9),
        "choices": choices,
    }


def _choice(
    tally: Tally,
    ask: Ask,
    known: tuple[Life, list[StepRecord]] | None,
    choice: int,
    index: int,
    wall_ns: int,
    end: float,
) -> ChoiceTimeline:
    """One choice of one of the engine's requests.

    Args:
        known: what the engine remembers of the request; None where it remembers nothing, or never had it.
        index: of the choice in the response.
    """
    rows: list[Row] = []
    life = None
    if known is not None:
        life, steps = known
        spans = spans_of(life, ask.prompt_tokens, choice, steps, end)
        rows = _rows(tally, spans, _ns(tally, life.arrival), wall_ns)
    else:
        never = tally.ended == "refused" or (tally.recent is not None and tally.ended_at is None)
        rows = [(TimePhase.RECEIVED if never else TimePhase.UNRECORDED, 0, wall_ns, None, None)]
    finish = None if life is None or choice not in life.ended else life.ended[choice][1].value
    return {
        "index": index,
        "finish_reason": finish,
        "prompt_tokens": ask.prompt_tokens,
        "cached_tokens": 0 if life is None else life.cached,
        "generated_tokens": tally.tokens[index],
        "phases_ns": _sums(rows),
        "columns": list(COLUMNS),
        "spans": rows,
    }


def _rows(tally: Tally, spans: Iterable[Span], submitted_ns: int, wall_ns: int) -> list[Row]:
    """Spans in nanoseconds since arrival, with what lies before and after them; cut where the response was over."""
    rows: list[Row] = []
    cursor = 0

    def add(phase: TimePhase, until: int, step: int | None = None, tokens: int | None = None) -> None:
        nonlocal cursor
        until = min(until, wall_ns)
        if until > cursor:
            rows.append((phase, cursor, until, step, tokens))
            cursor = until

    add(TimePhase.RECEIVED, submitted_ns)
    for span in spans:
        add(span.phase, _ns(tally, span.end), span.step, span.tokens)
    add(TimePhase.DELIVERY, wall_ns)
    return rows


def _ns(tally: Tally, at: float) -> int:
    """Nanoseconds from a request's arrival to a moment."""
    return max(0, round((at - tally.arrived) * 1e9))


def _sums(rows: Iterable[Row]) -> dict[TimePhase, int]:
    sums = dict.fromkeys(TimePhase, 0)
    for phase, start, end, _, _ in rows:
        sums[phase] += end - start
    return sums


def _busiest(choices: list[list[Row]]) -> dict[TimePhase, int]:
    """Phases of a request as a whole: at each moment, what the busiest of its choices is doing."""
    if len(choices) == 1:
        return _sums(choices[0])
    rank = {phase: place for place, phase in enumerate(BUSIEST_FIRST)}
    changes: list[tuple[int, int, int]] = []
    for rows in choices:
        for phase, start, end, _, _ in rows:
            changes += [(start, 1, rank[phase]), (end, -1, rank[phase])]
    changes.sort()
    sums = dict.fromkeys(TimePhase, 0)
    present = [0] * len(rank)
    cursor = 0
    for at, change, place in changes:
        if at > cursor:
            sums[BUSIEST_FIRST[next(i for i, count in enumerate(present) if count)]] += at - cursor
            cursor = at
        present[place] += change
    return sums
