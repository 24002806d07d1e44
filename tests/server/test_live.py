"""Looking at the engine: snapshots that add up, a stream that tells what changed, timelines that are the journal's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import TypeAdapter

from armillary.core.journal import Journal
from armillary.deployment import ServerSettings
from armillary.server.live import EngineSnapshot
from armillary.server.requests import RequestCard
from armillary.server.timeline import Timeline
from server.harness import NAME, Running, ScriptedExecutor

SAY = [{"role": "user", "content": "Where does the ferry go when the wind turns?"}]
ASK = {"model": NAME, "messages": SAY, "max_tokens": 24, "temperature": 0}
FREE, KEPT = -1, -2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Few blocks, so that sequences are preempted; prompts are computed 16 tokens at a time."""
    running = Running(
        tmp_path_factory.mktemp("model"),
        ScriptedExecutor(step_s=0.003),
        num_blocks=40,
        max_context=200,
        max_chunk_tokens=16,
        max_step_tokens=24,
        max_running=6,
    )
    running.wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def journal(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The engine's journal, from now on."""
    path = tmp_path_factory.mktemp("journal") / "engine.jsonl"
    assert server.engine is not None
    with path.open("w", buffering=1) as file:
        server.engine.journal = Journal(lambda line: print(line, file=file))
        yield path
        server.engine.journal = None


def load(server: Running, count: int, **options: Any) -> list[str]:
    """Ask so many things at once; the ids of the answers."""
    ids: list[str] = []

    def one(number: int) -> None:
        messages = [{"role": "user", "content": f"Question {number % 3}: " + "why " * (number % 14)}]
        answer = server.client().chat.completions.create(**{**ASK, "messages": messages, **options})
        ids.append(answer.id)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == count
    return ids


def look(server: Running, **options: Any) -> dict[str, Any]:
    """A snapshot, asked for until there is one: on a busy machine a step may take long."""
    while (answer := server.get("/v1/engine", **options)).status_code == 503:
        pass
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def unrolled(blocks: dict[str, Any]) -> list[tuple[int, int]]:
    """Owner and holders of every block."""
    runs = blocks["map"]
    assert len(runs) % 3 == 0
    return [pair for i in range(0, len(runs), 3) for pair in [(runs[i + 1], runs[i + 2])] * runs[i]]


def check(snapshot: dict[str, Any], pairs: list[tuple[int, int]]) -> None:
    """What a snapshot says of blocks is consistent in itself."""
    TypeAdapter(EngineSnapshot).validate_python(snapshot)
    blocks = snapshot["blocks"]
    assert len(pairs) == blocks["total"] == blocks["used"] + blocks["cached"] + blocks["free"]
    assert sum(holders > 0 for _, holders in pairs) == blocks["used"]
    assert sum(holders > 1 for _, holders in pairs) == blocks["shared"]
    assert sum(owner == KEPT for owner, _ in pairs) == blocks["cached"]
    assert all((owner < 0) == (holders == 0) for owner, holders in pairs)
    sequences = {each["owner"]: each for each in snapshot["sequences"]}
    assert {owner for owner, _ in pairs if owner >= 0} <= set(sequences)
    assert sum(holders for _, holders in pairs) == sum(each["blocks"] for each in sequences.values())
    assert sum(each["state"] == "running" for each in sequences.values()) == snapshot["running"]


def events(server: Running, seconds: float, **options: Any) -> Iterator[dict[str, Any]]:
    with server._http.stream("GET", server.url + "/v1/engine/stream", params=options) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_a_snapshot_adds_up(server: Running) -> None:
    load(server, 6)
    snapshot = look(server)
    check(snapshot, unrolled(snapshot["blocks"]))
    assert snapshot["model"] == NAME and NAME in snapshot["models"]
    assert snapshot["counters"]["steps"] >= snapshot["steps"]["rows"][-1][0] + 1
    assert look(server, params={"model": NAME})["engine"] == snapshot["engine"]


def test_the_stream_tells_under_load_what_a_whole_snapshot_would(server: Running) -> None:
    """Changes applied to the first map give a map that is consistent with the rest of each event."""
    worker = threading.Thread(target=load, args=(server, 16), kwargs={"max_tokens": 60})
    worker.start()
    pairs: list[tuple[int, int]] = []
    steps: list[int] = []
    changed = running = 0
    for number, event in enumerate(events(server, 10)):
        if event["object"] == "engine.busy":  # a step took long: so it is on a busy machine
            continue
        blocks = event["blocks"]
        assert ("map" in blocks) != ("changes" in blocks)
        if "map" in blocks:
            pairs = unrolled(blocks)
        else:
            assert number > 0
            for block, owner, holders in zip(*[iter(blocks["changes"])] * 3, strict=True):
                assert pairs[block] != (owner, holders)
                pairs[block] = (owner, holders)
                changed += 1
        check(event, pairs)
        running += event["running"] > 0
        steps += [row[0] for row in event["steps"]["rows"]]
        if not worker.is_alive():  # now one thing at a time, so that little changes
            if changed or number > 100:
                break
            load(server, 1, max_tokens=3)
    assert changed and running
    assert all(after == before + 1 for before, after in pairwise(steps)), "no step may be told twice or be left out"


def test_who_watches_together_costs_one_snapshot(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    real = server.service.loaded()[0].worker.call

    def counted(function: Any) -> Any:
        taken.append(function)
        return real(function)

    monkeypatch.setattr(server.service.loaded()[0].worker, "call", counted)
    snapshots = [look(server) for _ in range(20)]
    assert len(taken) < len({snapshot["time"] for snapshot in snapshots}) + 1
    assert len({snapshot["time"] for snapshot in snapshots}) < 20


def test_a_long_step_is_told_as_such(tmp_path: Path) -> None:
    executor = ScriptedExecutor()
    running = Running(tmp_path, executor)
    free = threading.Event()
    try:
        running.wait()
        executor.fault = lambda step: bool(free.wait(60)) and None  # type: ignore[func-returns-value]
        thread = threading.Thread(target=running.client().chat.completions.create, kwargs=ASK)
        thread.start()
        seen = []
        for event in events(running, 10):
            seen.append(event["object"])
            if event["object"] == "engine.busy":
                assert event["progress_s"] >= 0 and event["model"] == NAME
                break
        busy = running.get("/v1/engine")
        assert busy.status_code == 503 and "in one step" in busy.json()["error"]["message"]
        request = running.get("/v1/requests", params={"state": "live"}).json()["data"][0]
        timeline = running.get(f"/v1/requests/{request['id']}/timeline").json()
        assert [span[0] for span in timeline["choices"][0]["spans"]] == ["received", "queued", "prefill"]
        assert timeline["choices"][0]["spans"][-1][3] == 0 and timeline["phases_ns"]["prefill"] > 1e6 * 400
        free.set()
        thread.join()
        assert look(running)["object"] == "engine.snapshot"
    finally:
        free.set()
        running.stop()


def test_what_cannot_be_shown_is_refused(server: Running) -> None:
    for path, status, code in (
        ("/v1/engine?model=other", 404, "model_not_found"),
        ("/v1/engine/stream?model=other", 404, "model_not_found"),
        ("/v1/engine/stream?interval=0.01", 400, "invalid_request"),
        ("/v1/engine/stream?interval=nan", 400, "invalid_request"),
        ("/v1/requests?limit=0", 400, "invalid_request"),
        ("/v1/requests?state=gone", 400, "invalid_request"),
        ("/v1/requests/never/timeline", 404, "not_found"),
    ):
        response = server.get(path)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code), path
        assert ".py" not in error["message"], "nothing of the code"
    error = server.get("/v1/requests?limit=0").json()["error"]
    assert (error["param"], error["message"]) == ("limit", "limit must be greater than or equal to 1, given '0'")
    error = server.get("/v1/engine/stream?interval=often").json()["error"]
    assert (error["param"], error["message"]) == ("interval", "interval must be a number, given 'often'")


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/v1/requests", "limit, model, state"),
        ("/v1/requests/never/timeline", "none"),
        ("/v1/engine", "model"),
        ("/v1/engine/stream", "interval, model"),
        ("/v1/models", "none"),
        (f"/v1/models/{NAME}", "none"),
        ("/v1/responses/never", "none"),
    ],
)
def test_a_query_that_is_not_known_is_refused_with_those_that_are(server: Running, path: str, known: str) -> None:
    response = server.get(f"{path}?limits=2&page=3")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", "limits")
    assert f"({known}), given 'limits', 'page'" in error["message"]
    assert server.get("/health?limits=2").status_code == 200, "probes take any"


def test_requests_are_listed_without_a_word_of_what_was_said(server: Running) -> None:
    client = server.client()
    answer = client.chat.completions.create(**ASK, extra_headers={"x-request-id": "mine-1"})
    streamed = list(client.chat.completions.create(**{**ASK, "n": 2}, stream=True))
    while server.get("/v1/requests", params={"state": "live"}).json()["data"]:
        pass  # its client may have the last event before the server books its end
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**ASK, "top_p": 7})
    listed = server.get("/v1/requests", params={"limit": 3})
    cards = listed.json()["data"]
    for each in cards:
        TypeAdapter(RequestCard).validate_python(each)
    refused, second, first = cards
    assert (first["id"], first["request_id"], first["state"]) == (answer.id, "mine-1", "ended")
    assert answer.usage is not None
    assert (first["prompt_tokens"], first["completion_tokens"]) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )
    assert (first["finish_reason"], first["stream"], first["choices"], first["error"]) == ("length", False, 1, None)
    assert 0 < first["ttft_s"] < first["wall_s"] and first["itl_s"] > 0
    assert (second["id"], second["stream"], second["choices"]) == (streamed[0].id, True, 2)
    assert (refused["finish_reason"], refused["error"], refused["id"]) == ("refused", "invalid_request", None)
    assert "ferry" not in listed.text and "Archipel" not in listed.text
    ended = server.get("/v1/requests", params={"state": "live"}).json()["data"]
    assert ended == [] and server.get("/v1/requests", params={"model": "other"}).json()["data"] == []


def from_journal(lines: list[dict[str, Any]], request_id: str, choice: int) -> dict[str, float]:
    """Seconds per phase of a choice between its submission and its end, straight from the lines of the journal."""
    begun = next(i for i, line in enumerate(lines) if line.get("submit") == request_id)
    prompt = len(lines[begun]["prompt"])
    seconds: dict[str, float] = {}
    cursor, state, reached = lines[begun]["at"], "queued", 0

    def book(phase: str, until: float) -> None:
        nonlocal cursor
        seconds[phase] = seconds.get(phase, 0.0) + until - cursor
        cursor = until

    for line in lines[begun + 1 :]:
        if line.get("cancel") == request_id and line["index"] in (None, choice):
            book(state, line["at"])
            break
        if "step" not in line:
            continue
        book(state, line["at"])
        me = [request_id, choice if reached >= prompt else 0]
        if me in line["preempted"]:
            state = "preempted"
        if me in [entry[:2] for entry in line["admitted"]]:
            state = "between"
        share = next((entry for entry in line["run"] if entry[:2] == me), None)
        if share is None:
            book("waiting" if state == "between" else state, line["until"])
        else:
            book("recompute" if share[2] < reached else "prefill" if share[2] < prompt else "decode", line["until"])
            reached = max(reached, share[2] + share[3])
        if [request_id, choice] in [entry[:2] for entry in line["ended"]]:
            break
    return seconds


def test_timelines_are_the_journals(server: Running, journal: Path) -> None:
    ids = load(server, 14, max_tokens=80) + load(server, 3, n=3, max_tokens=40)
    stopped = server.client().chat.completions.create(**{**ASK, "stop": "Archipel"})
    ids.append(stopped.id)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    met: set[str] = set()
    for request_id in ids:
        timeline = server.get(f"/v1/requests/{request_id}/timeline").json()
        TypeAdapter(Timeline).validate_python(timeline)
        assert timeline["complete"] and timeline["state"] == "ended"
        assert sum(timeline["phases_ns"].values()) == timeline["wall_ns"]
        assert 0 < timeline["detokenise_ns"]
        for choice in timeline["choices"]:
            spans = choice["spans"]
            assert (spans[0][1], spans[-1][2]) == (0, timeline["wall_ns"])
            assert all(before[2] == after[1] for before, after in pairwise(spans))
            sums = dict.fromkeys(choice["phases_ns"], 0)
            for phase, start, end, _, _ in spans:
                sums[phase] += end - start
            assert sums == choice["phases_ns"]
            expected = from_journal(lines, request_id, choice["index"])
            got = {phase: ns for phase, ns in sums.items() if phase not in ("received", "delivery")}
            for phase, ns in got.items():
                pieces = sum(span[0] == phase for span in spans)
                # Each boundary is rounded once, to a nanosecond. What a stop string ends in the text layer may go on
                # in the engine until the cancellation is obeyed, and the response may be over by then.
                early = request_id == stopped.id
                assert ns <= expected.get(phase, 0.0) * 1e9 + pieces + 1, (phase, choice)
                assert early or ns >= expected.get(phase, 0.0) * 1e9 - pieces - 1, (phase, choice)
            met.update(phase for phase, ns in sums.items() if ns)
            steps = [span[3] for span in spans if span[0] in ("prefill", "decode", "recompute")]
            assert steps == sorted(set(steps))
    assert {"received", "queued", "prefill", "decode", "between", "preempted", "recompute", "delivery"} <= met


def test_a_timeline_is_found_by_either_id_while_it_lasts_and_after(server: Running) -> None:
    client = server.client()
    with client.chat.completions.create(
        **{**ASK, "max_tokens": 100}, stream=True, extra_headers={"x-request-id": "mine-2"}
    ) as stream:
        first = next(iter(stream))
        live = server.get("/v1/requests/mine-2/timeline").json()
        assert live["id"] == first.id and live["state"] in ("waiting", "generating")
        assert live["finish_reason"] is None
        assert sum(live["phases_ns"].values()) == live["wall_ns"]
    server.quiet(20)
    after = server.get(f"/v1/requests/{first.id}/timeline").json()
    assert after["request_id"] == "mine-2" and after["finish_reason"] == "cancelled"
    assert sum(after["phases_ns"].values()) == after["wall_ns"] > live["wall_ns"]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**ASK, "top_p": 7}, extra_headers={"x-request-id": "mine-3"})
    refused = server.get("/v1/requests/mine-3/timeline").json()
    assert refused["choices"] == [] and refused["phases_ns"]["received"] == refused["wall_ns"] > 0


def test_a_timeline_is_found_by_what_the_engine_calls_a_part_of_the_request(server: Running) -> None:
    """The live view links what it knows from the engine, and each prompt is a request of its own there."""
    several = server.client().completions.create(model=NAME, prompt=["x", "y"], max_tokens=2).id
    for name in (several, f"{several}-0", f"{several}-1"):
        assert server.get(f"/v1/requests/{name}/timeline").json()["id"] == several
    assert server.get(f"/v1/requests/{several}-2/timeline").status_code == 404


def test_without_a_ring_a_timeline_says_that_it_knows_nothing(tmp_path: Path) -> None:
    running = Running(tmp_path, recent_steps=0)
    try:
        running.wait()
        answer = running.client().chat.completions.create(**ASK)
        timeline = running.get(f"/v1/requests/{answer.id}/timeline").json()
        assert not timeline["complete"]
        assert timeline["phases_ns"]["unrecorded"] == timeline["wall_ns"] == sum(timeline["phases_ns"].values())
        snapshot = look(running)
        assert snapshot["steps"]["rows"] == [] and snapshot["counters"]["steps"] > 0
    finally:
        running.stop()


@pytest.mark.parametrize("watch", ["own", "all"])
def test_a_key_sees_its_own_requests_or_everybodys(tmp_path: Path, watch: Any) -> None:
    settings = ServerSettings(port=0, drain_s=2.0, api_keys=("one", "two"), watch=watch)
    running = Running(tmp_path, ScriptedExecutor(step_s=0.02), settings)
    mine, theirs = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    try:
        running.wait()
        with running.client(api_key="one").chat.completions.create(**{**ASK, "max_tokens": 400}, stream=True) as stream:
            name = next(iter(stream)).id
            for headers, sees in ((mine, True), (theirs, watch == "all")):
                listed = running.get("/v1/requests", headers=headers).json()["data"]
                assert [each["id"] for each in listed] == ([name] if sees else [])
                status = running.get(f"/v1/requests/{name}/timeline", headers=headers).status_code
                assert status == (200 if sees else 404)
                sequences = look(running, headers=headers)["sequences"]
                assert [each["id"] for each in sequences] == [name if sees else None]
        assert running.get("/v1/engine").status_code == 401
    finally:
        running.stop()
