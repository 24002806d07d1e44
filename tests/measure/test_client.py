"""The load client in virtual time: what it records is compared with what must come out, to the microsecond."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from armillary.errors import ArmillaryError
from armillary.measure.client import Drive, calibrate, drive, first_model
from armillary.measure.prompts import Calibration, Prompts
from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.slo import Slo
from armillary.measure.statistics import quantile
from armillary.measure.summary import summarise
from armillary.measure.target import Target, api_base
from armillary.measure.workload import WorkItem, Workload
from measure_virtual_time import DONE, FakeServer, block, event, now, piece, run, steady_answer, streamed, usage

TARGET = Target(url="http://fake", model="m")


def items(arrivals: list[float | None], output: int = 4, **fields: Any) -> tuple[WorkItem, ...]:
    return tuple(
        WorkItem(id=str(i), arrival=at, prompt_tokens=8, output_tokens=output, **fields)
        for i, at in enumerate(arrivals)
    )


def send(workload: Workload, server: FakeServer, target: Target = TARGET, **options: Any) -> Drive:
    return run(lambda: drive(workload, target, transport=server, **options))


def test_latencies_are_those_of_the_server() -> None:
    server = FakeServer(steady_answer(first=0.3, gap=0.05))
    driven = send(Workload(items([0.0, 0.1, 0.1, 2.0], output=5)), server)
    for record, due in zip(driven.records, [0.0, 0.1, 0.1, 2.0], strict=True):
        assert record.outcome is Outcome.OK
        assert record.sent == pytest.approx(due)
        assert record.ttft == pytest.approx(0.3)
        assert record.gaps == pytest.approx([0.05] * 4)
        assert record.tpot == pytest.approx(0.05)
        assert record.e2e == pytest.approx(0.5)
        assert (record.output_tokens, record.counted_by, record.finish_reason) == (5, "usage", "length")
    assert driven.duration == pytest.approx(2.5)


def one_at_a_time(service: float, stall_at: int, stall: float):
    """A server that answers requests in order, one at a time, and once stands still."""
    lock = asyncio.Lock()
    served = iter(range(10**9))

    async def handler(body: dict[str, Any]) -> httpx.Response:
        async def chunks() -> AsyncIterator[bytes]:
            async with lock:
                await asyncio.sleep(service + (stall if next(served) == stall_at else 0.0))
            yield piece("x", "stop")
            yield DONE

        return streamed(chunks())

    return FakeServer(handler)


def test_a_stall_shows_in_the_percentiles_of_an_open_loop() -> None:
    """The test for coordinated omission: all requests that were due during the stall have waited."""
    service, stall, count, every = 0.01, 2.0, 200, 0.02
    arrivals = [i * every for i in range(count)]
    opened = send(Workload(items(arrivals, output=1)), one_at_a_time(service, 50, stall))
    expected, free = [], 0.0
    for i, at in enumerate(arrivals):  # the queue of one server, by hand
        free = max(free, at) + service + (stall if i == 50 else 0.0)
        expected.append(free - at)
    measured = [record.e2e or 0.0 for record in opened.records]
    assert measured == pytest.approx(expected, abs=1e-6)
    assert quantile(measured, 0.9) > stall / 2

    closed = send(Workload(items([None] * count, output=1), users=1), one_at_a_time(service, 50, stall))
    slow = [record for record in closed.records if (record.e2e or 0.0) > 2 * service]
    assert len(slow) == 1, "one user sees a stall once: why closed loops hide it"
    assert quantile([record.e2e or 0.0 for record in closed.records], 0.99) == pytest.approx(service)


def test_a_client_that_lags_says_so_and_does_not_hide_it_in_the_latency() -> None:
    server = FakeServer(steady_answer(first=0.01, gap=0.01))

    def busy(record: RequestRecord) -> None:
        if record.id == "0":
            block(1.0)

    driven = send(Workload(items([0.0, 0.5, 0.6], output=1)), server, on_done=busy)
    late = driven.records[1]
    assert late.lateness == pytest.approx(1.01 - 0.5)
    assert late.ttft == pytest.approx(late.lateness + 0.01), "latency counts from when it was due"
    assert max(driven.lag) >= 0.9
    summary = summarise(driven.records, driven.duration, Slo(), lag=driven.lag)
    assert any("client itself lagged" in note for note in summary.notes)
    calm = send(Workload(items([0.0, 0.5], output=1)), server)
    assert not any("lagged" in note for note in summarise(calm.records, calm.duration, Slo(), lag=calm.lag).notes)


def test_a_closed_loop_keeps_each_user_to_one_request_and_thinks() -> None:
    server = FakeServer(steady_answer(first=1.0, gap=0.0))
    driven = send(Workload(items([None] * 6, output=1, think=0.5), users=2), server)
    assert sorted(record.due for record in driven.records) == pytest.approx([0.5, 0.5, 2.0, 2.0, 3.5, 3.5])
    assert summarise(driven.records, driven.duration, Slo()).peak_outstanding == 2


def test_turns_of_a_session_wait_for_each_other() -> None:
    server = FakeServer(steady_answer(first=1.0, gap=0.0))
    turns = items([0.0, 0.2, 5.0], output=1, session="s", think=0.25)
    driven = send(Workload(turns), server)
    assert [record.due for record in driven.records] == pytest.approx([0.0, 1.25, 5.0])
    assert [record.ttft for record in driven.records] == pytest.approx([1.0, 1.0, 1.0])


def chat_of(replies: list[str]) -> FakeServer:
    """Answers each request with the next of `replies`."""
    said = iter(replies)

    async def handler(body: dict[str, Any]) -> httpx.Response:
        halves = next(said)
        parts = [halves[: len(halves) // 2], halves[len(halves) // 2 :]]
        events = [event({"choices": [{"index": 0, "delta": {"content": part}}]}) for part in parts]
        return await answer(*events, event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), DONE)

    return FakeServer(handler)


def conversation(histories: list[int], **fields: Any) -> tuple[WorkItem, ...]:
    """Turns with four words each, answers of two tokens."""
    return tuple(
        WorkItem(id=f"t{i}", prompt_tokens=history + 4, output_tokens=2, session="s", history=history, **fields)
        for i, history in enumerate(histories)
    )


def test_later_turns_repeat_what_was_really_answered() -> None:
    server = chat_of(["yes indeed", "no", "well"])
    driven = send(Workload(conversation([0, 6, 12], arrival=0.0)), server, Target("http://fake", "m", "chat"))
    assert all(record.ok for record in driven.records)
    first, second, third = (body["messages"] for _, body in server.seen)
    assert [message["role"] for message in third] == ["user", "assistant"] * 2 + ["user"]
    assert second[:1] == first
    assert second[1]["content"] == "yes indeed"
    assert third[:3] == second
    assert third[3]["content"] == "no"
    assert len({message["content"] for message in third}) == 5
    cut = chat_of(["yes indeed", "no"])
    send(Workload(conversation([0, 3], arrival=0.0)), cut, Target("http://fake", "m", "chat"))
    (message,) = cut.seen[1][1]["messages"]
    assert message["content"].split()[:3] == first[0]["content"].split()[:3], "of a history cut short, its beginning"
    assert len(message["content"].split()) == 7


def test_a_user_of_a_closed_loop_has_whole_conversations() -> None:
    server = FakeServer(steady_answer(first=1.0, gap=0.0))
    other = WorkItem(id="o", prompt_tokens=4, output_tokens=2)
    last = WorkItem(id="l", prompt_tokens=4, output_tokens=2)
    driven = send(Workload((*conversation([0, 6, 12]), other, last), users=2), server)
    assert [record.due for record in driven.records] == pytest.approx([0.0, 1.0, 2.0, 0.0, 1.0])


def test_ids_of_a_conversation_begin_with_it() -> None:
    workload = Workload(conversation([0, 6, 9], arrival=0.0))
    made = Prompts(workload, Calibration(), 0)
    first, second, third = (made.ids(row, 1000) for row in range(3))
    assert [len(ids) for ids in (first, second, third)] == [4, 10, 13]
    assert second[:4] == first
    assert third[:9] == second[:9]
    assert third[9:] != second[9:]


async def answer(*chunks: bytes, status: int = 200) -> httpx.Response:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            await asyncio.sleep(0.1)
            yield chunk

    response = streamed(stream())
    response.status_code = status
    return response


def outcome_of(*chunks: bytes, status: int = 200, target: Target = TARGET) -> RequestRecord:
    server = FakeServer(lambda body: answer(*chunks, status=status))
    return send(Workload(items([0.0])), server, target).records[0]


def test_failures_are_told_apart_and_never_dropped() -> None:
    refused = outcome_of(b'{"error": {"message": "no such model"}}', status=404)
    assert (refused.outcome, refused.status, refused.error) == (Outcome.REFUSED, 404, "no such model")
    for status in (429, 503):
        assert outcome_of(b"busy", status=status).outcome is Outcome.SHED
    broken = outcome_of(piece("a"), piece("b"))
    assert broken.outcome is Outcome.FAILED
    assert broken.error == "the stream ended before a finish reason or [DONE]"
    failed = outcome_of(piece("a"), event({"error": {"message": "engine failed"}}), DONE)
    assert (failed.outcome, failed.error) == (Outcome.FAILED, "engine failed")
    assert outcome_of(b"data: {nonsense\n\n").outcome is Outcome.FAILED
    slow = outcome_of(*[piece("a")] * 99, target=Target(url="http://fake", model="m", timeout=1.0))
    assert slow.outcome is Outcome.TIMEOUT
    assert slow.end == pytest.approx(1.0)

    async def unreachable(body: dict[str, Any]) -> httpx.Response:
        raise httpx.ConnectError("refused")

    gone = send(Workload(items([0.0])), FakeServer(unreachable)).records[0]
    assert (gone.outcome, gone.status) == (Outcome.UNREACHED, None)

    async def breaks(body: dict[str, Any]) -> httpx.Response:
        async def stream() -> AsyncIterator[bytes]:
            yield piece("a")
            raise httpx.ReadError("reset")

        return streamed(stream())

    assert send(Workload(items([0.0])), FakeServer(breaks)).records[0].outcome is Outcome.FAILED


def test_outcomes_are_counted_and_only_successes_have_latencies() -> None:
    async def handler(body: dict[str, Any]) -> httpx.Response:
        shed = now() - 1000.0 >= 0.95
        return await (answer(b"{}", status=429) if shed else answer(piece("a", "stop"), DONE))

    driven = send(Workload(items([i / 10 for i in range(20)])), FakeServer(handler))
    summary = summarise(driven.records, driven.duration, Slo.parse("ttft p95 500ms"))
    assert summary.outcomes == {"ok": 10, "shed": 10}
    assert summary.statuses == {"200": 10, "429": 10}
    assert summary.ttft is not None
    assert summary.ttft.count == 10
    assert summary.goodput.share == 0.5, "a shed request is a request whose service level was missed"
    assert any("10 of 20 requests did not succeed (10 shed)" in note for note in summary.notes)


def test_tokens_come_from_usage_and_else_from_arrivals() -> None:
    by_usage = outcome_of(piece("ab"), piece("cd", "stop"), usage(7, 6), DONE)
    assert (by_usage.prompt_tokens, by_usage.output_tokens, by_usage.counted_by) == (7, 6, "usage")
    assert by_usage.tpot == pytest.approx(0.1 / 5)
    by_events = outcome_of(piece("ab"), piece("cd"), piece("", "stop"), DONE)
    assert (by_events.output_tokens, by_events.counted_by) == (2, "events")
    assert by_events.e2e == pytest.approx(0.3), "the finish reason is the end of the answer"


def test_chat_streams_and_odd_chunk_borders() -> None:
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    words = event({"choices": [{"index": 0, "delta": {"content": "hé"}}]})
    end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    whole = b": a comment\r\n\r\n" + role + words.replace(b"\n", b"\r\n") + end + DONE
    record = outcome_of(role, *[whole[i : i + 1] for i in range(len(whole))])
    assert (record.outcome, record.output_tokens) == (Outcome.OK, 1)
    assert record.first is not None
    assert record.first > 0.2, "a chunk with only the role is not a token"


def test_the_body_says_what_was_asked() -> None:
    server = FakeServer(steady_answer(0.1, 0.1))
    shared = {"prefix": (("p", 6),)}
    target = Target(
        url="http://fake/v1/", model="m", ignore_eos=True, send_policy=True, extra={"top_k": 1}, api_key="k"
    )
    driven = send(Workload(items([0.0, 0.0], deadline=2.0, **shared)), server, target)
    bodies = [body for _, body in server.seen]
    assert all(body["stream_options"] == {"include_usage": True} and body["ignore_eos"] for body in bodies)
    assert all((body["priority"], body["deadline_s"], body["top_k"]) == (0, 2.0, 1) for body in bodies)
    first, second = (body["prompt"].split() for body in bodies)
    assert first[:6] == second[:6]
    assert first != second
    assert [record.prompt_tokens for record in driven.records] == [8, 8]
    plain = Target(url="http://fake", model="m", ignore_eos=False, vocab_size=100)
    send(Workload(items([0.0, 0.0], **shared)), server, plain)
    ids = [body["prompt"] for _, body in server.seen[2:]]
    assert ids[0][:6] == ids[1][:6]
    assert ids[0] != ids[1]
    assert all(len(prompt) == 8 and all(10 <= i < 90 for i in prompt) for prompt in ids)
    assert "ignore_eos" not in server.seen[-1][1]
    assert "priority" not in server.seen[-1][1]


def test_prompts_are_sized_by_what_the_server_counts() -> None:
    async def handler(body: dict[str, Any]) -> httpx.Response:
        counted = 5 + 3 * len(body["prompt"].split())
        return await answer(piece("a", "stop"), usage(counted, 1), DONE)

    calibration, told = run(lambda: calibrate(TARGET, FakeServer(handler)))
    assert told
    assert (calibration.base, calibration.per_word) == (5.0, 3.0)
    long = Workload((WorkItem(id="a", arrival=0.0, prompt_tokens=305, output_tokens=1),))
    assert len(Prompts(long, calibration, 0).text(0).split()) == 100

    silent = FakeServer(lambda body: answer(piece("a", "stop"), DONE))
    assert run(lambda: calibrate(TARGET, silent)) == (Calibration(), False)
    with pytest.raises(ArmillaryError, match="first request"):
        run(lambda: calibrate(TARGET, FakeServer(lambda body: answer(b"{}", status=401))))


def test_prompts_depend_on_seed_and_id_only() -> None:
    workload = Workload((WorkItem(id="a", arrival=0.0, prompt_tokens=12, output_tokens=1),))
    one, again, other = (Prompts(workload, Calibration(), seed) for seed in (1, 1, 2))
    assert one.text(0) == again.text(0) != other.text(0)
    assert one.ids(0, 50) == again.ids(0, 50) != other.ids(0, 50)
    # Pinned: the same in every process and on every machine.
    assert one.ids(0, 1000)[:4] == PINNED


PINNED = [852, 662, 403, 392]


def test_a_server_that_is_loading_is_waited_for() -> None:
    class Loading(httpx.AsyncBaseTransport):
        def __init__(self, ready: float) -> None:
            self.ready = ready

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            loading = now() - 1000.0 < self.ready
            return httpx.Response(503) if loading else httpx.Response(200, json={"data": [{"id": "m"}]})

    assert run(lambda: first_model("http://fake", transport=Loading(20.0))) == "m"
    with pytest.raises(ArmillaryError, match="lists a model"):
        run(lambda: first_model("http://fake", transport=Loading(1e6)))


def test_addresses() -> None:
    assert api_base("http://a:1") == api_base("http://a:1/v1/") == "http://a:1/v1"
    with pytest.raises(ArmillaryError, match="http://"):
        api_base("a:1")
    with pytest.raises(ArmillaryError, match="completions"):
        Target(url="http://a", model="m", endpoint="chat", vocab_size=100)
