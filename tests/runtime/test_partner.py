"""Talking to a server: the same words as over the wire, in order, and refusals in the server's own words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code
from armillary.runtime.partner import Partner, RemotePartner, Wishes, answers
from armillary.runtime.spelling import Spelling
from server.harness import NAME, SCRIPT, Running

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("partner"))
    running.wait()
    yield running
    running.stop()


async def joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


def said(partner: Partner, **wishes: object) -> str:
    return asyncio.run(joined(partner.reply(HELLO, Wishes(**wishes))))  # type: ignore[arg-type]


def test_the_first_model_is_asked_unless_one_is_named(server: Running) -> None:
    assert RemotePartner(server.url).name == NAME
    assert RemotePartner(server.url + "/v1/", "other").name == "other"


def test_a_reply_and_a_completion_arrive_whole(server: Running) -> None:
    partner = RemotePartner(server.url)
    whole = len(SCRIPT.encode())
    assert said(partner, temperature=0.0, max_tokens=whole) == SCRIPT
    assert asyncio.run(joined(partner.complete("x", Wishes(0.0, max_tokens=whole)))) == SCRIPT


def test_wishes_reach_the_server(server: Running) -> None:
    partner = RemotePartner(server.url)
    assert said(partner, temperature=0.0, stop=("STOP",), max_tokens=200) == SCRIPT.split("STOP")[0]
    drawn = {said(partner, temperature=1.0, seed=seed, max_tokens=20) for seed in (1, 1, 2)}
    assert len(drawn) == 2
    assert Wishes().given() == {}


def test_many_questions_are_all_answered(server: Running) -> None:
    partner = RemotePartner(server.url)
    done: list[None] = []
    questions = [(HELLO, ())] * 7
    found = asyncio.run(answers(partner, questions, Wishes(0.0, max_tokens=6), 3, lambda: done.append(None)))
    assert found == ["Grüß"] * 7
    assert len(done) == 7


def test_a_refusal_is_told_in_the_words_of_the_server(server: Running) -> None:
    with pytest.raises(ArmillaryError, match="answered 404: .*nobody") as caught:
        said(RemotePartner(server.url, "nobody"))
    assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(ArmillaryError, match="answered 400: .*max_tokens") as caught:
        said(RemotePartner(server.url), max_tokens=0)
    assert caught.value.code is Code.INVALID_REQUEST


def test_a_key_is_sent_and_its_lack_is_told(tmp_path: Path) -> None:
    running = Running(tmp_path, settings=ServerSettings(port=0, drain_s=0.5, api_keys=("sesame",)))
    running.wait()
    try:
        with pytest.raises(ArmillaryError) as caught:
            RemotePartner(running.url)
        assert caught.value.code is Code.UNAUTHORIZED
        assert said(RemotePartner(running.url, api_key="sesame"), temperature=0.0, max_tokens=2) == SCRIPT[:2]
    finally:
        running.stop()


def test_nobody_at_home_is_told_with_a_remedy() -> None:
    with pytest.raises(ArmillaryError, match="armillary serve") as caught:
        RemotePartner("http://127.0.0.1:9")
    assert caught.value.code is Code.UNREACHABLE
    with pytest.raises(ArmillaryError) as caught:
        said(RemotePartner("http://127.0.0.1:9", "named"))
    assert caught.value.code is Code.UNREACHABLE


def test_reasoning_and_calls_that_a_server_took_apart_are_text_again() -> None:
    spelling = Spelling()
    deltas: list[dict[str, object]] = [
        {"role": "assistant", "content": None},
        {"reasoning": "Hm", "reasoning_content": "Hm"},
        {"reasoning_content": "."},
        {"content": "Wait."},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]},
        {},
    ]
    text = "".join(map(spelling.take, deltas)) + spelling.end()
    f = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    g = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert text == f"<think>\nHm.\n</think>\n\nWait.\n{f}\n{g}"
