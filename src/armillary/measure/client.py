"""The load client: sends a workload to an OpenAI-compatible server and records what comes back.

An open loop never waits: each request is sent when it is due, however many are outstanding, and its latency counts
from then. How late the client itself was, in sending and in waking up, is recorded, so that a saturated
client cannot pass for a slow server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from armillary.errors import ArmillaryError, Code
from armillary.measure import prompts
from armillary.measure.exchange import Exchange
from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.scripts import Scripts
from armillary.measure.target import Target, api_base
from armillary.measure.transport import Transport
from armillary.measure.workload import WorkItem, Workload

_TICK_S = 0.005
_AHEAD_S = 0.01
_CALIBRATION_WORDS = (8, 72)
_LOADING_S = 120.0
_LOADING_PAUSE_S = 0.5


@dataclass
class Drive:
    """What a run recorded.

    Attributes:
        records: one for each request of the workload, in its order.
        lag: seconds by which the client's event loop woke up late, one figure a tick.
        duration: seconds from the start to the last answer's end.
        started: wall-clock time of the start, seconds since 1970.
    """

    records: list[RequestRecord]
    lag: list[float]
    duration: float
    started: float


def connect(api_key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client without limits on connections and without time-outs of its own besides connecting.

    It knows no proxies: one between client and server would be measured along with it.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(None, connect=10.0)
    return httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False, transport=transport or Transport())


async def first_model(url: str, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> str:
    """The first model that the server lists. A server that answers 503 is still loading, and is waited for a while."""
    clock = asyncio.get_running_loop().time
    patience = clock() + _LOADING_S
    async with connect(api_key, transport) as client:
        try:
            answer = await client.get(f"{api_base(url)}/models", timeout=10.0)
            while answer.status_code == 503 and clock() < patience:
                await asyncio.sleep(_LOADING_PAUSE_S)
                answer = await client.get(f"{api_base(url)}/models", timeout=10.0)
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ArmillaryError(
                Code.UNREACHABLE,
                f"url must be an OpenAI-compatible server that lists a model, given {url!r}, so: "
                f"{type(error).__name__}: {error}",
                param="url",
            ) from error


async def calibrate(
    target: Target, transport: httpx.AsyncBaseTransport | None = None
) -> tuple[prompts.Calibration, bool]:
    """Learn how many tokens the server counts per word, from two short requests.

    Returns the calibration, and whether the server told (False: one token a word is assumed).
    """
    if target.vocab_size is not None:
        return prompts.Calibration(), True
    counts = []
    async with connect(target.api_key, transport) as client:
        exchange = _exchange(client, target)
        for words in _CALIBRATION_WORDS:
            item = WorkItem(id=f"calibration-{words}", prompt_tokens=words, output_tokens=1)
            text = prompts.words(words, target.seed, item.id)
            record = await exchange.send(target.body(item, text), RequestRecord(item.id, due=0.0))
            if record.outcome is not Outcome.OK:
                raise ArmillaryError(
                    Code.UNREACHABLE,
                    f"the server must answer a first request, given {target.url!r}, so: {record.outcome} "
                    f"{record.status or ''} {record.error}",
                    param="url",
                )
            if record.prompt_tokens is None:
                return prompts.Calibration(), False
            counts.append(record.prompt_tokens)
    few, many = _CALIBRATION_WORDS
    return prompts.Calibration.fit(few, counts[0], many, counts[1]), True


async def drive(
    workload: Workload,
    target: Target,
    calibration: prompts.Calibration | None = None,
    on_done: Callable[[RequestRecord], None] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Drive:
    """Send the whole workload and wait for every answer.

    Args:
        calibration: tokens per word, from `calibrate`; None assumes one.
        on_done: called with each record when it is complete.
        transport: stands in for the network, in tests.
    """
    _allow_many_connections()
    scripts = Scripts(workload, target, calibration or prompts.Calibration())
    async with connect(target.api_key, transport) as client:
        started = time.time()
        exchange = _exchange(client, target)
        lag: list[float] = []
        ticker = asyncio.create_task(_watch_lag(lag))

        async def one(index: int, due: float) -> RequestRecord:
            item = workload.items[index]
            record = RequestRecord(
                id=item.id, due=due, wanted_tokens=item.output_tokens, deadline=item.deadline,
                slo_class=item.slo_class, session=item.session,
            )  # fmt: skip
            body, heard = scripts.body(index), scripts.listener(index)
            await asyncio.sleep(max(0.0, due - exchange.clock()))
            await exchange.send(body, record, heard)
            scripts.ended(index, heard)
            if on_done is not None:
                on_done(record)
            return record

        try:
            conversations = _conversations(workload)
            if workload.users is None:
                records = await _open_loop(workload, conversations, one, exchange.clock)
            else:
                records = await _closed_loop(workload, conversations, one, exchange.clock)
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker
        return Drive([records[row] for row in range(len(workload))], lag, exchange.clock(), started)


def _exchange(client: httpx.AsyncClient, target: Target) -> Exchange:
    # The event loop's own clock: sleeping and stamping then agree, and a test can turn it by hand.
    clock = asyncio.get_running_loop().time
    origin = clock()
    path = "chat/completions" if target.endpoint == "chat" else "completions"
    return Exchange(client, f"{target.base}/{path}", target.timeout, lambda: clock() - origin)


def _conversations(workload: Workload) -> list[list[int]]:
    """The rows of each session, and of each request without one, in order of their first."""
    found: dict[int, list[int]] = {}
    first: list[int] = []
    for row, before in enumerate(workload.columns.turn_before().tolist()):
        first.append(row if before < 0 else first[before])
        found.setdefault(first[row], []).append(row)
    return list(found.values())


async def _open_loop(
    workload: Workload,
    conversations: list[list[int]],
    one: Callable[[int, float], Awaitable[RequestRecord]],
    clock: Callable[[], float],
) -> dict[int, RequestRecord]:
    """Send each request when it is due; only turns of one session wait, each for the turn before it."""
    records: dict[int, RequestRecord] = {}

    async def converse(turns: list[int]) -> None:
        ended = 0.0
        for place, row in enumerate(turns):
            item = workload.items[row]
            due = item.arrival or 0.0
            if place:
                due = max(due, ended + item.think)
            records[row] = record = await one(row, due)
            ended = record.end or clock()

    tasks = []
    for turns in conversations:
        # A task for each request from the beginning would make the event loop slow. What it sends takes time to make.
        await asyncio.sleep(max(0.0, (workload.items[turns[0]].arrival or 0.0) - _AHEAD_S - clock()))
        tasks.append(asyncio.create_task(converse(turns)))
    await asyncio.gather(*tasks)
    return records


async def _closed_loop(
    workload: Workload,
    conversations: list[list[int]],
    one: Callable[[int, float], Awaitable[RequestRecord]],
    clock: Callable[[], float],
) -> dict[int, RequestRecord]:
    """Each user takes the next conversation when its last one ended, and thinks before each of its requests."""
    waiting = iter(conversations)
    records: dict[int, RequestRecord] = {}

    async def user() -> None:
        ended = 0.0
        for turns in waiting:
            for row in turns:
                records[row] = await one(row, ended + workload.items[row].think)
                ended = clock()

    await asyncio.gather(*(user() for _ in range(min(workload.users or 1, len(conversations)))))
    return records


async def _watch_lag(lag: list[float]) -> None:
    """Record by how much the event loop oversleeps, for as long as it runs."""
    clock = asyncio.get_running_loop().time
    while True:
        before = clock()
        await asyncio.sleep(_TICK_S)
        lag.append(max(0.0, clock() - before - _TICK_S))


def _allow_many_connections() -> None:
    """Raise the soft limit on open files to the hard one: an open loop needs a connection per outstanding request."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
