"""Errors as OpenAI clients expect them (behaviours 10 to 16), and bodies that nobody should send."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code
from armillary.server.body import check_body
from armillary.server.chat import ChatBody
from armillary.server.errors import LOOKS
from armillary.server.rerank import RerankBody
from server.harness import NAME, Running

ASK = [{"role": "user", "content": "Where?"}]
GOOD = {"model": NAME, "messages": ASK, "max_tokens": 3}
MAX_BODY = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = ServerSettings(port=0, max_body=MAX_BODY, drain_s=1.0)
    running = Running(Path(tmp_path_factory.mktemp("errors")), settings=settings)
    running.wait()
    yield running
    running.stop()


def check_shape(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str) and isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    return dict(error)


def test_10_every_failure_has_the_shape(server: Running) -> None:
    check_shape(server.get("/nowhere"), 404)
    check_shape(server.get("/v1/nowhere"), 404)
    check_shape(server.get("/v1/chat/completions"), 405)
    check_shape(server.post("/health", {}), 405)
    check_shape(server.post("/v1/chat/completions/", GOOD), 404)
    check_shape(server.post("/v1/chat/completions", content=b"{"), 400)
    check_shape(server.post("/v1/chat/completions", content=b"\xff\xfe"), 400)
    check_shape(server.post("/v1/chat/completions", content=b"[]"), 400)
    check_shape(server.post("/v1/chat/completions"), 400)
    assert check_shape(server.post("/v1/chat/completions", {**GOOD, "tempo": 1}), 400)["param"] == "tempo"


def test_10_the_client_reads_code_param_and_body(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(**{**GOOD, "temperature": 3})
    error = caught.value
    assert error.param == "temperature" and error.code == "invalid_request" and error.type == "invalid_request_error"
    assert "3" in error.message and isinstance(error.body, dict)


def test_11_every_code_has_a_status() -> None:
    assert set(LOOKS) == set(Code)
    assert all(look.status >= 400 for look in LOOKS.values())
    expected = {
        Code.INVALID_REQUEST: 400,
        Code.CONTEXT_LENGTH: 400,
        Code.UNAUTHORIZED: 401,
        Code.MODEL_NOT_FOUND: 404,
        Code.METHOD_NOT_ALLOWED: 405,
        Code.TOO_LARGE: 413,
        Code.QUEUE_FULL: 429,
        Code.ENGINE_FAILED: 500,
        Code.UNAVAILABLE: 503,
    }
    assert {code: LOOKS[code].status for code in expected} == expected


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": "hot"},
        {"temperature": True},
        {"messages": "hello"},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 2.5},
        {"max_tokens": 10**30},
        {"n": 0},
        {"n": 10_000},
        {"seed": 2**70},
        {"stop": ["a", 5]},
        {"stop": ["x"] * 17},
        {"logit_bias": {"one": 1}},
        {"logit_bias": {"-1": 1}},
        {"stop_token_ids": [-1]},
        {"priority": 2**40},
        {"deadline_s": -1},
        {"tools": []},
        {"tool_choice": "required"},
        {"response_format": {"type": "grammar"}},
        {"audio": {"voice": "x"}},
        {"functions": []},
        {"prediction": {}},
        {"store": True},
        {"metadata": {"a": 1}},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"other": 1}},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"chat_template_kwargs": {"messages": "mine"}},
    ],
    ids=lambda change: ",".join(f"{k}={str(v)[:24]}" for k, v in change.items()),
)
def test_11_validation_is_400_and_names_the_field(server: Running, change: dict[str, Any]) -> None:
    error = check_shape(server.post("/v1/chat/completions", {**GOOD, **change}), 400)
    assert error["param"].split(".")[0].split("[")[0] in (*change, "max_completion_tokens")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": []},
        {"prompt": ""},
        {"prompt": [[]]},
        {"prompt": [1, "a"]},
        {"prompt": [999]},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": ["x"] * 300},
        {"best_of": 3},
        {"suffix": "end"},
        {"max_tokens": 0},
        {"logprobs": 21},
        {"logprobs": True},
    ],
    ids=lambda change: ",".join(f"{k}={str(v)[:24]}" for k, v in change.items()),
)
def test_11_validation_of_completions(server: Running, change: dict[str, Any]) -> None:
    error = check_shape(server.post("/v1/completions", {"model": NAME, "prompt": "x", **change}), 400)
    assert error["param"] in change


@pytest.mark.parametrize(
    ("body", "change", "param", "says"),
    [
        (ChatBody, {"messages": []}, "messages", "must have at least 1 item, given none"),
        (ChatBody, {"tools": []}, "tools", "must have at least 1 item, given none"),
        (ChatBody, {"stop": ["x"] * 17}, "stop", "must have at most 16 items, given 17"),
        (
            ChatBody,
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice.allowed_tools.tools",
            "must have at least 1 item, given none",
        ),
        (RerankBody, {"query": "x", "documents": []}, "documents", "must have at least 1 item, given none"),
    ],
)
def test_how_long_a_list_must_be_is_said_in_our_words(
    body: type[BaseModel], change: dict[str, Any], param: str, says: str
) -> None:
    """Of a union of objects, the member that is meant is judged, not the first one."""
    good: dict[str, Any] = {"model": NAME} if body is RerankBody else {**GOOD}
    with pytest.raises(ArmillaryError) as caught:
        check_body(body, {**good, **change})
    assert (caught.value.param, caught.value.message) == (param, f"{param} {says}")


def test_11_harmless_fields_are_tolerated(server: Running) -> None:
    client = server.client()
    client.chat.completions.create(
        **GOOD,
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_key="k",
        response_format={"type": "text"},
        modalities=["text"],
        logit_bias={},
        tool_choice="none",
    )


def requests_seen(server: Running) -> float:
    return sum(value for name, value in server.metrics().items() if name.startswith("armillary_requests_total"))


def test_12_what_cannot_change_is_asked_once(server: Running) -> None:
    client = server.client(retries=2)
    before = requests_seen(server)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**GOOD, "top_p": 7})
    assert requests_seen(server) == before + 1

    def broken(step: object) -> None:
        raise RuntimeError("always")

    server.executor.fault = broken
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**GOOD)
    finally:
        server.executor.fault = lambda step: None
    assert caught.value.status_code == 500 and caught.value.code == "engine_failed" and "always" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert requests_seen(server) == before + 2
    client.chat.completions.create(**GOOD)


def test_13_request_ids(server: Running) -> None:
    client = server.client()
    answer = client.chat.completions.create(**GOOD)
    assert answer._request_id
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**GOOD, "model": "other"})
    assert caught.value.request_id and caught.value.request_id != answer._request_id
    mine = client.chat.completions.create(**GOOD, extra_headers={"x-request-id": "trace-7"})
    assert mine._request_id == "trace-7"
    odd = server.post("/v1/chat/completions", GOOD, headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"].startswith("req_")
    streamed = server.post("/v1/chat/completions", {**GOOD, "stream": True})
    assert streamed.headers["x-request-id"]


def test_15_unknown_model_and_keys(server: Running, tmp_path: Path) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().chat.completions.create(**{**GOOD, "model": "other"})
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    settings = ServerSettings(port=0, api_keys=("first-key", "second-kéy"), drain_s=1.0)
    guarded = Running(tmp_path, settings=settings)
    try:
        guarded.wait()
        for key in ("none", "first-ke", "second"):
            with pytest.raises(openai.AuthenticationError) as refused:
                guarded.client(api_key=key).models.list()
            assert refused.value.code == "invalid_api_key"
        check_shape(guarded.get("/v1/models"), 401)
        check_shape(guarded.get("/v1/nowhere"), 401)
        check_shape(guarded.get("/v1/models", headers={"authorization": "Basic first-key"}), 401)
        assert guarded.client(api_key="first-key").models.list().data
        utf8 = {"authorization": "Bearer second-kéy".encode()}
        assert guarded.get("/v1/models", headers=utf8).status_code == 200
        assert guarded.get("/health").status_code == guarded.get("/metrics").status_code == 200
    finally:
        guarded.stop()


def well(server: Running) -> None:
    assert server.client().chat.completions.create(**GOOD).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model": NaN}',
        b'{"model":"org/tiny","messages":[],"temperature":Infinity}',
        b'{"model":"org/tiny","messages":[{"role":"user","content":"x"}],"temperature":-Infinity}',
        b'{"model":"org/tiny","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"model":"org/tiny","messages":[{"role":"user","content":"x"}],"max_tokens":' + b"9" * 5000 + b"}",
        b'{"model":"org/tiny","messages":[{"role":"user","content":"x"}],"max_tokens":' + b"9" * 400 + b"}",
        b'{"model":"org/tiny","messages":[{"role":"user","content":"\\ud83d"}]}',
        b'{"model":"\\udc00","messages":[{"role":"user","content":"x"}]}',
        b"[" * 100_000,
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"model":"org/tiny","messages":' + b"[" * 150 + b"]" * 150 + b"}",
        b'{"model":"org/tiny","messages":[{"role":"user","content":"x"}],"tools":'
        + b'[{"x":' * 60
        + b"1"
        + b"}]" * 60
        + b"}",
        b"\x00" * 100,
        b'{"model":"org/tiny"',
    ],
    ids=range(14),
)
def test_16_malformed_bodies_are_400(server: Running, raw: bytes) -> None:
    check_shape(server.post("/v1/chat/completions", content=raw), 400)
    check_shape(server.post("/v1/completions", content=raw), 400)
    well(server)


def test_16_large_bodies(server: Running) -> None:
    fits = {**GOOD, "messages": [{"role": "user", "content": "x" * (MAX_BODY - 1000)}]}
    assert check_shape(server.post("/v1/chat/completions", fits), 400)["code"] == "context_length_exceeded"
    large = {**GOOD, "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    assert check_shape(server.post("/v1/chat/completions", large), 413)["code"] == "request_too_large"
    with pytest.raises(openai.APIStatusError) as caught:
        server.client().chat.completions.create(**large)
    assert caught.value.status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 10_000

    assert server.post("/v1/completions", content=endless()).status_code == 413
    well(server)


def test_16_many_large_bodies_share_a_budget(server: Running) -> None:
    bodies = server.service.bodies
    assert bodies.held == 0 and bodies.limit == 4 * MAX_BODY
    with bodies.one() as take:
        take(bodies.limit - 50)
        refused = server.post("/v1/chat/completions", GOOD)
        assert check_shape(refused, 429)["code"] == "queue_full" and "retry-after" in refused.headers
    assert bodies.held == 0
    well(server)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}],
        [{"role": "assistant", "content": None}],
        [{"role": "user", "content": []}],
        [{"role": "system", "content": "a"}, {"role": "system", "content": "\u0000\u2028"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": EOS} for EOS in ("<|im_end|>", "<|endoftext|>")],
        [{"role": "user", "content": "x", "extra": {"deep": [1, {"a": None}]}}],
        [{"role": "assistant", "content": "x", "tool_calls": [5]}],
        [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": 5, "arguments": "{{"}}]}],
    ],
    ids=range(9),
)
def test_16_odd_messages_never_500(server: Running, messages: list[dict[str, Any]]) -> None:
    response = server.post("/v1/chat/completions", {**GOOD, "messages": messages})
    assert response.status_code in (200, 400), response.text
    well(server)


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**200, 0.5, -0.0, 1e308, 1e-320, "", "x", "1", "\u0000",
    "🏝️", "x" * 5000, [], [None], [[]], [1], ["a"], [-1], [1e9], {}, {"type": "text"}, {"a": {"b": [1]}},
    {"1": 1}, {"1": None},
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_16_random_bodies_never_500(server: Running, path: str) -> None:
    """Known field names with values from everywhere: whatever comes is answered, and never with a 5xx."""
    from armillary.server.chat import ChatBody
    from armillary.server.completions import CompletionBody

    body = ChatBody if path.startswith("/v1/chat") else CompletionBody
    good = GOOD if body is ChatBody else {"model": NAME, "prompt": "x", "max_tokens": 3}
    chance = random.Random(7)
    seen = set()
    for name in body.model_fields:
        for value in VALUES:
            asked = {**good, name: value}
            if chance.random() < 0.3:
                asked[chance.choice(list(body.model_fields))] = chance.choice(VALUES)
            if chance.random() < 0.75:
                continue
            response = server.post(path, content=to_json(asked), headers={"content-type": "application/json"})
            late = response.status_code == 504 and "timeout" in asked  # a time too short for anything
            assert response.status_code < 500 or late, (asked, response.text)
            if response.status_code >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            seen.add(response.status_code)
    assert {200, 400} <= seen
    assert json.loads(server.post(path, good).text)["usage"]
    well(server)
