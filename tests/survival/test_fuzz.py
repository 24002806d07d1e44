"""Whatever is sent, no answer is a 5xx, none hangs, and the next request works.

Three ways to make it up: from the OpenAPI document, as it asks and as it forbids (schemathesis); from whole requests of
every endpoint, with one value replaced by a wrong one; and from their bytes, with no regard for what they mean.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from server.harness import NAME, Running, ScriptedExecutor

HANG_S = 60.0
MESSAGES = [{"role": "user", "content": "Hello, 世界"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
ITEM_TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "model": NAME, "prompt": ["ab", "c"], "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["x"],
        "logprobs": 2, "seed": 1, "logit_bias": {"65": 1.5}, "echo": False, "stream": False, "presence_penalty": 0.1,
        "top_k": 5, "min_p": 0.1, "timeout": 30, "priority": 1,
    },
    "/v1/chat/completions": {
        "model": NAME, "messages": MESSAGES, "max_completion_tokens": 3, "tools": [TOOL], "tool_choice": "auto",
        "response_format": {"type": "text"}, "stream": True, "stream_options": {"include_usage": True}, "n": 1,
        "logprobs": True, "top_logprobs": 2,
    },
    "/v1/responses": {
        "model": NAME, "input": MESSAGES, "instructions": "x", "max_output_tokens": 3, "tools": [ITEM_TOOL],
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}, "store": True,
    },
    "/v1/messages": {
        "model": NAME, "messages": MESSAGES, "max_tokens": 3, "system": "x", "stop_sequences": ["x"], "stream": False,
        "tools": [{"name": "look", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
    },
    "/v1/messages/count_tokens": {"model": NAME, "messages": MESSAGES},
    "/v1/embeddings": {"model": NAME, "input": ["a", "b"], "encoding_format": "float", "dimensions": 4},
    "/v1/rerank": {"model": NAME, "query": "a", "documents": ["b", {"text": "c"}], "top_n": 1},
    "/tokenize": {"model": NAME, "prompt": "ab", "add_special_tokens": True},
    "/detokenize": {"model": NAME, "tokens": [1, 2, 3]},
}  # fmt: skip
"""A request of each kind, with many of its fields."""

DEEP = "[" * 100_000 + "]" * 100_000
LITERALS = (
    "null", "true", "0", "-1", "1e308", "1e999", "-0.0", "NaN", "Infinity", "1" * 400, "123456789012345678901234567890",
    '""', '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"' + "a" * 5000 + '"', "[]", "{}", "[[[]]]", '[null]',
    '[1e999]', '{"a": {"b": []}}', '["\\ud83d"]', '[{"role": "user"}]', "3.5", '"😀"', "[65, -1, 1e30]", "[true]",
)  # fmt: skip
"""JSON values that some field does not expect, and some texts that are not quite JSON."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(Path(tmp_path_factory.mktemp("fuzz")), ScriptedExecutor())
    running.wait()
    yield running
    running.quiet(5)
    running.stop()


def send(server: Running, path: str, body: bytes, **headers: str) -> httpx.Response:
    reply = server.post(path, content=body, headers={"content-type": "application/json", **headers}, timeout=HANG_S)
    late = reply.status_code == 504 and b'"timeout"' in body  # a time that is over at once is a right thing to ask for
    assert reply.status_code < 500 or late, (path, body[:500], reply.text[:500])
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert error["message"] and "Traceback" not in reply.text
    elif reply.headers["content-type"].startswith("text/event-stream"):
        assert "the server failed" not in reply.text, (path, body[:500], reply.text[-500:])
    return reply


def test_the_whole_requests_are_right(server: Running) -> None:
    """What is mutated below is taken as it stands, but for what this model cannot do."""
    for path, body in WHOLE.items():
        reply = send(server, path, json.dumps(body).encode())
        assert reply.status_code == 200 or "embed" in reply.text or "not" in reply.text, (path, reply.text)


@pytest.mark.parametrize("path", WHOLE)
def test_one_value_that_is_wrong(server: Running, path: str) -> None:
    """Every field with every odd literal in its place, and one level down."""
    whole = WHOLE[path]
    rng = random.Random(path)
    for field in whole:
        for literal in rng.sample(LITERALS, 12):
            marked = json.dumps({**whole, field: "@@"})
            send(server, path, marked.replace('"@@"', literal).encode("utf-8", "surrogatepass"))
        value = whole[field]
        if isinstance(value, (dict, list)) and value:
            inner: Any = json.loads(json.dumps(value))
            inner[next(iter(inner)) if isinstance(inner, dict) else 0] = "@@"
            for literal in rng.sample(LITERALS, 6):
                marked = json.dumps({**whole, field: inner})
                send(server, path, marked.replace('"@@"', literal).encode("utf-8", "surrogatepass"))
    assert server.post("/v1/completions", {"model": NAME, "prompt": "x", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("path", WHOLE)
def test_bytes(server: Running, path: str) -> None:
    """Bodies with bytes changed, cut, doubled and put in."""
    whole = json.dumps(WHOLE[path], ensure_ascii=False).encode()
    rng = random.Random(path + "bytes")
    for _ in range(60):
        body = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(body) + 1)
            change = rng.randrange(5)
            if change == 0 and at < len(body):
                body[at] = rng.randrange(256)
            elif change == 1:
                body[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 4)))
            elif change == 2:
                del body[at : at + rng.randint(1, 20)]
            elif change == 3:
                body[at:at] = body[at : at + 30]
            else:
                body[at:at] = rng.choice(
                    (b"\x00", b"\xed\xa0\x80", b"\xff\xfe", b'"', b"{", b"]", b"\\u", b"1e999", b",")
                )
        send(server, path, bytes(body))
    for body in (
        b"",
        b"\xff\xfe{}",
        b"null",
        b"[]",
        b'"x"',
        b"{" * 5000,
        DEEP.encode(),
        b"\xef\xbb\xbf{}",
        b"{}" * 100,
    ):
        assert send(server, path, bytes(body)).status_code in (400, 413), body[:50]
    send(server, path, whole, **{"content-type": "text/plain"})
    assert server.post("/v1/completions", {"model": NAME, "prompt": "x", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("path", WHOLE)
def test_very_large_strings(server: Running, path: str) -> None:
    """Ten million characters in each field of text."""
    for field, value in WHOLE[path].items():
        if field == "model" or not isinstance(value, (str, list)):
            continue
        body = json.dumps({**WHOLE[path], field: "a" * 10_000_000}).encode()
        assert send(server, path, body).status_code in (400, 413)
    assert server.post("/v1/completions", {"model": NAME, "prompt": "x", "max_tokens": 1}).status_code == 200


ENDLESS = {"/v1/engine/stream"}
"""Streams that end when the client leaves."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_the_openapi_document(server: Running, mode: GenerationMode) -> None:
    """Requests made from our own document, as it asks (positive) and as it forbids (negative)."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ENDLESS:
            continue

        @settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            reply = case.call(base_url=server.url, timeout=HANG_S)
            late = reply.status_code == 504 and "timeout" in case.as_curl_command()
            assert reply.status_code < 500 or late, (case.as_curl_command(), reply.text[:500])

        try:
            ask()
        except Unsatisfiable as error:  # nothing can be made wrong where nothing is asked for
            assert mode is GenerationMode.NEGATIVE, error
    assert asked > 500
    assert server.post("/v1/completions", {"model": NAME, "prompt": "x", "max_tokens": 1}).status_code == 200
