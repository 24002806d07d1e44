"""`/openapi.json`: it has every endpoint, names the options that are checked, and real answers are as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.routing import APIRoute

from armillary.server.app import create_app
from armillary.server.openapi import description_of
from server.harness import NAME, Running

ASK = [{"role": "user", "content": "Where?"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(Path(tmp_path_factory.mktemp("openapi")))
    running.wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    return dict(server.get("/openapi.json").json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def holds(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def answer_schema(document: dict[str, Any], path: str, method: str, status: int) -> dict[str, Any]:
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    return dict(content["application/json"]["schema"])


def test_it_has_every_endpoint(server: Running, document: dict[str, Any]) -> None:
    routes = [route for route in create_app(server.service).routes if isinstance(route, APIRoute)]
    missing = [route.path for route in routes if route.include_in_schema and description_of(route) is None]
    assert not missing, f"endpoints must be described, or not be part of the API: {missing}"
    named = {re.sub(r"{(\w+):\w+}", r"{\1}", route.path) for route in routes if route.include_in_schema}
    assert set(document["paths"]) == named
    assert document["openapi"] == "3.1.0"


def test_every_reference_leads_somewhere_and_names_are_unique(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(schemas)
    assert not [name for name in schemas if "__" in name], "two types must not share a name"
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert all(operation["summary"] for _, _, operation in operations(document))
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_options_it_names_are_those_that_are_checked(server: Running, document: dict[str, Any]) -> None:
    seen = 0
    for path, method, operation in operations(document):
        if "requestBody" not in operation:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        assert schema["additionalProperties"] is False, path
        required = dict.fromkeys(schema.get("required", ()))
        response = server.post(path, {**required, "zzz_unknown": 1})
        if response.status_code == 403:  # not before the deployment allows it at all
            assert "403" in operation["responses"]
            continue
        seen += 1
        assert response.status_code == 400, (path, response.text)
        response = server.post(path, {"zzz_unknown": 1, **_least(path)})
        message = response.json()["error"]["message"]
        known = message.partition("it knows ")[2].split(", ")
        assert sorted(schema["properties"]) == known, (path, message)
        assert set(operation["responses"]) >= {"200", "400", "401", "413", "503"}
    assert seen >= 6


def _least(path: str) -> dict[str, Any]:
    """What a body must have before its unknown options are looked at."""
    return {
        "/v1/completions": {"model": NAME, "prompt": "x"},
        "/v1/chat/completions": {"model": NAME, "messages": ASK},
        "/v1/responses": {"model": NAME, "input": "x"},
        "/v1/messages": {"model": NAME, "messages": ASK, "max_tokens": 1},
        "/v1/messages/count_tokens": {"model": NAME, "messages": ASK},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": []},
        "/v1/embeddings": {"model": NAME, "input": "x"},
        **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), {"model": NAME, "query": "x", "documents": ["x"]}),
    }.get(path, {"model": NAME})


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "x", "logprobs": 2, "echo": True, "n": 2, "stop": "e"}),
    ("/v1/completions", {"prompt": [1, 2], "max_tokens": 3, "stop": ["a", "b"]}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 8, "logprobs": True, "top_logprobs": 1}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 8, "tools": [TOOL], "tool_choice": "none"}),
    ("/v1/responses", {"input": "x", "max_output_tokens": 8, "include": ["message.output_text.logprobs"]}),
    (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
                {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "fog"},
            ],
            "max_output_tokens": 8,
            "text": {"format": {"type": "text"}},
        },
    ),
    ("/v1/messages", {"messages": ASK, "max_tokens": 8, "system": "x", "stop_sequences": ["e"]}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
    ("/tokenize", {"prompt": "x", "return_token_strs": True}),
    ("/detokenize", {"tokens": [65, 66]}),
]


@pytest.mark.parametrize(("path", "body"), BODIES, ids=[f"{path}-{place}" for place, (path, _) in enumerate(BODIES)])
def test_bodies_and_answers_are_as_it_says(
    server: Running, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    body = {"model": NAME, **body}
    holds(document, document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"], body)
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    holds(document, answer_schema(document, path, "post", 200), response.json())
    event = document["paths"][path]["post"]["responses"]["200"]["content"].get("text/event-stream", {}).get("x-event")
    if event is not None:
        lines = server.post(path, {**body, "stream": True}).text.splitlines()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
        assert events
        for data in events:
            holds(document, event, json.loads(data))


def test_answers_without_a_body_are_as_it_says(server: Running, document: dict[str, Any]) -> None:
    kept = server.post("/v1/responses", {"model": NAME, "input": "x", "max_output_tokens": 2}).json()["id"]
    asked = {
        "/health": "/health",
        "/ready": "/ready",
        "/v1/models": "/v1/models",
        "/v1/models/{name}": f"/v1/models/{NAME}",
        "/v1/responses/{response_id}": f"/v1/responses/{kept}",
        "/v1/requests": "/v1/requests",
        "/v1/engine": "/v1/engine",
        "/openapi.json": "/openapi.json",
    }
    for path, url in asked.items():
        response = server.get(url)
        assert response.status_code == 200, (url, response.text)
        holds(document, answer_schema(document, path, "get", 200), response.json())
    assert server.get("/metrics").headers["content-type"].startswith("text/plain")


def test_errors_are_as_it_says(server: Running, document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if method != "post":
            continue
        assert {"400", "401"} <= set(operation["responses"])
        for status, response in (
            (400, server.post(path, content=b"[]")),
            (404, server.post(path, {"model": "none-such", **{k: v for k, v in _least(path).items() if k != "model"}})),
        ):
            if str(status) not in operation["responses"]:
                continue
            assert response.status_code in (status, 400, 403), (path, response.text)
            holds(document, answer_schema(document, path, method, response.status_code), response.json())
