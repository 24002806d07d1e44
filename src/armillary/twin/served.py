"""Steps as they come in a real server, loaded by clients on the same machine, from the journal that it writes."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from armillary.core.journal import Journal
from armillary.core.request import Request, Sequence
from armillary.core.step import Entry, Event, Step
from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.measure.client import calibrate, drive, first_model
from armillary.measure.punctual import run_punctually
from armillary.measure.record import RequestRecord
from armillary.measure.target import Target
from armillary.measure.workload import Workload
from armillary.twin.cost import CostModel
from armillary.twin.crowd import KINDS, Crowd
from armillary.twin.entering import NEAR_S, Entering
from armillary.twin.profile import Lived
from armillary.twin.work import StepWork

START_S = 300.0
"""Most seconds that a server may take to start."""
LOADS = (0.1, 0.25, 0.5, 0.75, 0.95, 1.15)
"""Shares of what users without a pause get through, at which requests come by chance."""
SELDOM = 0.5
"""Up to this load most requests find an idle engine, whose server has nothing else to do either."""
WARM_S = 3.0
"""Seconds of requests before anything counts: a server that has just started takes longer over everything."""
AFTER_S = 1.3
"""Seconds for which a run goes on after its last request has come, about."""
REQUEST_S = 3e-3
"""What a request is thought to take of server and client, to tell how many of them fill a time."""
WARM_SEED = 10_000
"""Of their lengths."""
AT_WORK_S = 1e-3
"""An engine that takes a request in so soon after a step had more to do."""
LEAST_CONTEXT = 1024
"""Positions that a sequence may have at least where each kind of request is sent on its own, after the others: a
machine that is slow for a while is then not taken for one that some number of clients makes slow."""


Waited = tuple[int, float, float]
"""Of a request, as of `Profile.requests`."""


@dataclass(frozen=True, slots=True)
class JournalStep:
    """A step as a journal has it."""

    number: int
    started: float
    ended: float
    work: StepWork
    first: tuple[str, ...]
    """Requests whose first token it brought."""
    last: tuple[str, ...]
    """Requests of which something ended with it: with the last such step, the request."""


def journal_steps(lines: Iterable[str]) -> tuple[list[JournalStep], dict[str, tuple[float, int]]]:
    """The steps of a journal, and of each request when it was submitted and its prompt's length.

    Requests count as read during the step after which the engine took them in. A step that was recorded as failed is
    left out; so is a last line that was cut off.
    """
    steps: list[JournalStep] = []
    ended = answered = 0
    submitted: dict[str, tuple[float, int]] = {}
    silent: set[str] = set()
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "submit" in record:
            submitted[record["submit"]] = (record["at"], len(record["prompt"]))
            silent.add(record["submit"])
            if steps and record["at"] - steps[-1].ended < AT_WORK_S:
                last = steps[-1].work
                last = last._replace(read=last.read + 1, read_tokens=last.read_tokens + len(record["prompt"]))
                steps[-1] = replace(steps[-1], work=last)
        elif "step" in record and not record["failed"]:
            shares = [(start, count) for _, _, start, count in record["run"]]
            told = [request for request, _, _ in record["tokens"]]
            first = tuple(dict.fromkeys(request for request in told if request in silent))
            silent.difference_update(first)
            work = StepWork(
                len(shares),
                sum(count for _, count in shares),
                len(told),
                sum(start + count for start, count in shares),
                sum(count * start + count * (count + 1) // 2 for start, count in shares),
                ended=ended,
                answered=answered,
                admitted=len(record["admitted"]),
                copies=len(record["copies"]),
            )
            ended, answered = int(bool(record["ended"])), int(bool(first))
            over = tuple(request for request, _, _ in record["ended"])
            steps.append(JournalStep(record["step"], record["at"], record["until"], work, first, over))
    return steps, submitted


def journal_cost(sequences: int) -> float:
    """Seconds that writing a line of a journal takes for a step with so many sequences, each with a new token."""
    with tempfile.TemporaryFile("w", encoding="utf-8", buffering=1) as file:

        def write(line: str) -> None:
            file.write(line + "\n")

        journal = Journal(write)
        request = Request("request-0123456789abcdef", (0,), 1)
        entries = [Entry(Sequence(request, 0, uid, 0.0), 100, 1, 1) for uid in range(sequences)]
        step = Step(0, entries, tokens=sequences)
        events = [Event(request.id, 0, 1) for _ in entries]
        times = []
        for _ in range(9):
            began = time.perf_counter()
            journal.stepped(step, 0.0, 1.0, 100, events, None)
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def load_server(
    model: str,
    settings: EngineSettings,
    cost: CostModel,
    context: int,
    seconds: float,
    progress: Callable[[float], None],
) -> tuple[Lived, list[Waited]]:
    """Serve the model in a process of its own, load it, and read what it did.

    Args:
        cost: of the engine alone; says how many requests take about as long as wanted.
        context: most positions of a sequence.

    Returns:
        Its steps, what writing the journal costs taken off what lies between them; and what `waited` finds.
    """
    with (
        tempfile.TemporaryDirectory(prefix="armillary-profile-") as folder,
        serving(model, settings, Path(folder)) as url,
    ):
        most = settings.max_running
        share = seconds / (len(LOADS) + 1)
        apart = Crowd(most, cost, context, share / len(KINDS)).context >= min(context, LEAST_CONTEXT)
        kinds = KINDS if apart else KINDS[:1]
        each = share / len(kinds)
        each = max(each - AFTER_S, each / 2)
        crowds = [Crowd(most, cost, context, each, kind, REQUEST_S) for kind in kinds]
        warm = Crowd(most, cost, context, min(WARM_S, each)).workload(WARM_SEED)
        began, runs = run_punctually(_drive(url, warm, crowds, progress))
        lines = (Path(folder) / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    steps, submitted = journal_steps(lines)
    one, many = journal_cost(1), journal_cost(64)
    found = Lived()
    for step, after, work in zip(steps, [*steps[1:], None], shared(steps, cost), strict=True):
        if step.started < began:
            continue
        # What waited for work says nothing of the time between steps: with work at hand, none takes this long.
        gap = after.started - step.ended if after is not None else None
        if gap is not None:
            gap -= one + (many - one) / 63 * (step.work.sequences - 1)
            gap = None if gap > 10 * (step.ended - step.started) else max(gap, 1e-6)
        found.add(work, step.ended - step.started, gap)
    return found, waited(runs, steps, submitted)


def shared(steps: Iterable[JournalStep], cost: CostModel) -> list[StepWork]:
    """The work of each step with its share of the requests that come or go about then (`Entering`).

    Args:
        cost: says how long steps take alone; as in a simulation, so that both hand out the same.
    """
    entering = Entering(NEAR_S)
    return [entering.share(step.work, cost.alone_s(step.work)) for step in steps]


@dataclass(frozen=True, slots=True)
class Run:
    """From when to when requests were sent and answered, in the server's time, and what their clients saw."""

    began: float
    ended: float
    records: list[RequestRecord]


def waited(runs: list[Run], steps: list[JournalStep], submitted: dict[str, tuple[float, int]]) -> list[Waited]:
    """For each request that met an idle engine its prompt tokens, the seconds that it waited for the first token beside
    the engine's steps, and by how many more that token was on its way to the client than the last one. Others would
    also have waited for the end of the step that they came in.

    Requests are paired in the order of sending; where numbers or lengths differ, nothing is said.

    Args:
        steps, submitted: as of `journal_steps`.

    Raises ArmillaryError: UNAVAILABLE where none of them can be told.
    """
    ends = [step.ended for step in steps]
    heard = {request: step.ended for step in steps for request in step.first}
    told = {request: step.ended for step in steps for request in step.last}
    found = []
    for run in runs:
        own = sorted((at, tokens, r) for r, (at, tokens) in submitted.items() if run.began <= at <= run.ended)
        if len(own) != len(run.records):
            continue
        for record, (at, tokens, request) in zip(sorted(run.records, key=lambda r: r.sent), own, strict=True):
            if not record.ok or record.prompt_tokens != tokens or request not in heard or request not in told:
                continue
            if record.ttft is None or record.first is None or record.end is None:
                continue
            step = steps[bisect_right(ends, at)]
            seconds = record.ttft - (heard[request] - step.started)
            if step.work.admitted == step.work.sequences and seconds > 0:  # else it found others running
                late = (told[request] - heard[request]) - (record.end - record.first)
                found.append((tokens, seconds, late))
    if not found:
        raise ArmillaryError(
            Code.UNAVAILABLE,
            f"the server must answer requests that come while it has nothing to do, which it did in none of "
            f"{len(runs)} runs; run `armillary profile` again",
            "server",
        )
    return found


async def _drive(
    url: str, warm: Workload, crowds: list[Crowd], progress: Callable[[float], None]
) -> tuple[float, list[Run]]:
    """Send what warms the server up, then, of each kind, what many want and what comes by chance. Kinds and loads take
    turns, so that a machine that is slow for a while is not taken for one of them.

    Returns:
        When it was warm, in the server's time; the runs in which requests came seldom.
    """
    target = Target(url=url, model=await first_model(url))
    calibration, _ = await calibrate(target)
    await drive(warm, target, calibration)
    warmed = time.monotonic()
    sent = count(1)

    async def send(workload: Workload) -> list[RequestRecord]:
        records = (await drive(workload, target, calibration)).records
        progress(next(sent) / (len(crowds) * (len(LOADS) + 1)))
        return records

    rates = []
    for place, many in enumerate(crowds):
        records = await send(many.workload(100 * place))
        ends = [record.end for record in records if record.ok and record.end is not None]
        if not ends:
            raise ArmillaryError(Code.UNAVAILABLE, "the server answered none of the requests that load it", "server")
        rates.append(len(ends) / (max(ends) - min(record.due for record in records)))
    runs = []
    for turn in range(len(LOADS)):
        for place, (many, rate) in enumerate(zip(crowds, rates, strict=True)):
            number = (turn + place) % len(LOADS)
            began = time.monotonic()
            records = await send(many.strangers(100 * place + 1 + number, LOADS[number] * rate))
            if LOADS[number] <= SELDOM:
                runs.append(Run(began, time.monotonic(), records))
    return warmed, runs


@contextlib.contextmanager
def serving(model: str, settings: EngineSettings, folder: Path) -> Iterator[str]:
    """`armillary serve` in a process of its own, with its files and its journal in a folder; yields its address."""
    engine: dict[str, Any] = settings.model_dump(mode="json", exclude_unset=True)
    engine |= {"journal": str(folder / "journal.jsonl")}
    with serving_file({"models": [{"path": model}], "engine": engine}, folder) as url:
        yield url


@contextlib.contextmanager
def serving_file(deployment: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """`armillary serve` in a process of its own with the contents of a deployment file, but for its address, which is
    this machine's own and a free port; yields that.

    Args:
        folder: for the file and for what the server says.

    Raises:
        ArmillaryError: UNAVAILABLE where it does not start, with what it said.
    """
    file = folder / "deployment.yaml"
    server = {**(deployment.get("server") or {}), "host": "127.0.0.1", "port": 0}
    file.write_text(yaml.safe_dump({**deployment, "server": server}), encoding="utf-8")
    log = folder / "server.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "armillary", "serve", str(file)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603  our own
        try:
            until = time.monotonic() + START_S
            while time.monotonic() < until and process.poll() is None:
                said = log.read_text(encoding="utf-8", errors="replace")
                if found := re.search(r"curl (http://\S+?)/v1/", said):
                    yield found[1]
                    return
                time.sleep(0.05)
            said = log.read_text(encoding="utf-8", errors="replace")
            last = said.strip().splitlines()[-1:] or ["nothing"]
            raise ArmillaryError(
                Code.UNAVAILABLE, f"the server to be measured must start, and did not; it said: {last[0]}"
            )
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
