"""The load client: sends a workload to an OpenAI-compatible server and records what comes back.

An open loop never waits: each request is sent when it is due, however many are outstanding, and its latency counts
from then. How late the client itself was, in sending and in waking up, is recorded, so that a saturated
client cannot pass for a slow server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from armillary.errors import ArmillaryError, Code
from armillary.measure import prompts
from armillary.measure.exchange import Exchange
from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.workload import WorkItem, Workload

Endpoint = Literal["completions", "chat"]

_TICK_S = 0.005
_CALIBRATION_WORDS = (8, 72)
_LOADING_S = 120.0
_LOADING_PAUSE_S = 0.5


@dataclass(frozen=True)
class Target:
    """The server under load.

    Attributes:
        url: of the server, with or without `/v1`.
        model: name sent with each request.
        endpoint: `completions` or `chat`.
        api_key: sent as a bearer token.
        timeout: seconds for a whole request.
        temperature: of sampling.
        ignore_eos: ask for exactly the wanted number of tokens (an extension that vLLM, SGLang, llama.cpp and
            Armillary know; a server that refuses unknown fields wants it off).
        vocab_size: send prompts as random token ids below this (completions only); None: as words.
        send_policy: send the workload's `priority` and `deadline` fields along (extensions).
        extra: merged into each request's body last.
        seed: of the prompts made up.
    """

    url: str
    model: str
    endpoint: Endpoint = "completions"
    api_key: str | None = None
    timeout: float = 600.0
    temperature: float = 0.0
    ignore_eos: bool = True
    vocab_size: int | None = None
    send_policy: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size is not None and self.endpoint == "chat":
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                "endpoint must be completions where prompts are sent as token ids, given chat",
                param="vocab_size",
            )

    @property
    def base(self) -> str:
        """The address up to and including `/v1`."""
        return api_base(self.url)

    def body(self, item: WorkItem, calibration: prompts.Calibration) -> dict[str, Any]:
        """The JSON body for `item`."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": item.output_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.vocab_size is not None:
            body["prompt"] = prompts.id_prompt(item, self.vocab_size, self.seed)
        elif item.token_ids is not None and item.prompt is None and self.endpoint == "completions":
            body["prompt"] = list(item.token_ids)
        elif self.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompts.text_prompt(item, calibration, self.seed)}]
        else:
            body["prompt"] = prompts.text_prompt(item, calibration, self.seed)
        if self.send_policy:
            body["priority"] = item.priority
            if item.deadline is not None:
                body["deadline_s"] = item.deadline
        return body | self.extra


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


def api_base(url: str) -> str:
    """`url` with exactly one `/v1` at its end."""
    trimmed = url.rstrip("/")
    if not trimmed.startswith(("http://", "https://")):
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"url must begin with http:// or https://, given {url!r}", param="url"
        )
    return trimmed if trimmed.endswith("/v1") else f"{trimmed}/v1"


def connect(api_key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client without limits on connections and without time-outs of its own besides connecting."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.AsyncClient(
        headers=headers,
        timeout=httpx.Timeout(None, connect=10.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        # A proxy between client and server would be measured along with it.
        trust_env=False,
        transport=transport,
    )


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
            item = WorkItem(id=f"calibration-{words}", arrival=0.0, prompt_tokens=words, output_tokens=1)
            record = await exchange.send(target.body(item, prompts.Calibration()), RequestRecord(item.id, due=0.0))
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
    scale = calibration or prompts.Calibration()
    # Bodies are built beforehand: building one takes longer than sending it.
    bodies = [target.body(item, scale) for item in workload.items]
    async with connect(target.api_key, transport) as client:
        started = time.time()
        exchange = _exchange(client, target)
        lag: list[float] = []
        ticker = asyncio.create_task(_watch_lag(lag))

        async def one(index: int, due: float) -> RequestRecord:
            item = workload.items[index]
            record = RequestRecord(
                id=item.id, due=due, wanted_tokens=item.output_tokens, deadline=item.deadline,
                prefix=item.prefix, session=item.session,
            )  # fmt: skip
            await exchange.send(bodies[index], record)
            if on_done is not None:
                on_done(record)
            return record

        try:
            if workload.users is None:
                records = await _open_loop(workload, one, exchange.clock)
            else:
                records = await _closed_loop(workload, workload.users, one, exchange.clock)
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker
        return Drive(records, lag, exchange.clock(), started)


def _exchange(client: httpx.AsyncClient, target: Target) -> Exchange:
    # The event loop's own clock: sleeping and stamping then agree, and a test can turn it by hand.
    clock = asyncio.get_running_loop().time
    origin = clock()
    path = "chat/completions" if target.endpoint == "chat" else "completions"
    return Exchange(client, f"{target.base}/{path}", target.timeout, lambda: clock() - origin)


async def _open_loop(
    workload: Workload, one: Callable[[int, float], Any], clock: Callable[[], float]
) -> list[RequestRecord]:
    """Send each request when it is due; only turns of one session wait, each for the turn before it."""
    tasks: list[asyncio.Task[RequestRecord]] = []
    turns: dict[str, asyncio.Task[RequestRecord]] = {}

    async def turn(index: int, due: float, previous: asyncio.Task[RequestRecord] | None) -> RequestRecord:
        if previous is not None:
            before = await previous
            due = max(due, (before.end or clock()) + workload.items[index].think)
            await asyncio.sleep(max(0.0, due - clock()))
        record: RequestRecord = await one(index, due)
        return record

    for index, item in enumerate(workload.items):
        due = item.arrival or 0.0
        await asyncio.sleep(max(0.0, due - clock()))
        previous = None if item.session is None else turns.get(item.session)
        task = asyncio.create_task(turn(index, due, previous))
        tasks.append(task)
        if item.session is not None:
            turns[item.session] = task
    return list(await asyncio.gather(*tasks))


async def _closed_loop(
    workload: Workload, users: int, one: Callable[[int, float], Any], clock: Callable[[], float]
) -> list[RequestRecord]:
    """Each of `users` takes the next request `think` seconds after its last one ended."""
    waiting: Iterator[int] = iter(range(len(workload.items)))
    records: dict[int, RequestRecord] = {}

    async def user() -> None:
        ended = 0.0
        for index in waiting:
            due = ended + workload.items[index].think
            await asyncio.sleep(max(0.0, due - clock()))
            record: RequestRecord = await one(index, due)
            records[index] = record
            ended = clock()

    await asyncio.gather(*(user() for _ in range(min(users, len(workload.items)))))
    return [records[index] for index in range(len(workload.items))]


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
