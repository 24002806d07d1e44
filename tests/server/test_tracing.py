"""Spans by the conventions for generative AI, sent to a collector that a test listens as."""

from __future__ import annotations

import builtins
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code
from armillary.server.tracing import traced
from server.harness import NAME, Running, ScriptedExecutor

ASK: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Where is the ferry?"}],
    "max_tokens": 12,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 7,
}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.paths: set[str] = set()
        self.resources: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.paths.add(self.path)
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    outer.resources.append(values(group.resource.attributes))
                    for scope in group.scope_spans:
                        outer.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(each) for each in value.array_value.values]
        return getattr(value, kind)

    return {each.key: plain(each.value) for each in attributes}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Collector, dict[str, Any]]]:
    """What a collector has after some requests, and what the requests were answered."""
    collector = Collector()
    running = Running(tmp_path_factory.mktemp("model"), ScriptedExecutor(step_s=0.002))
    settings = ServerSettings(otlp_endpoint=collector.url, port=0)
    answers: dict[str, Any] = {}
    try:
        with traced(settings, running.service.requests):
            running.wait()
            client = running.client()
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
            answers["whole"] = client.chat.completions.create(**ASK, extra_headers=headers)
            answers["streamed"] = list(client.chat.completions.create(**{**ASK, "n": 2}, stream=True))
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(**{**ASK, "top_p": 5})
            unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00", "x-request-id": "unsampled"}
            client.completions.create(model=NAME, prompt="secret words", max_tokens=2, extra_headers=unsampled)
            running.executor.fault = lambda step: 1 / 0
            with pytest.raises(openai.InternalServerError):
                client.completions.create(model=NAME, prompt="secret words", max_tokens=2)
    finally:
        running.stop()
        collector.close()
    yield collector, answers


def roots(collector: Collector) -> list[Any]:
    return [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]


def test_a_request_is_a_span_with_its_phases_below_it(collected: tuple[Collector, dict[str, Any]]) -> None:
    collector, answers = collected
    assert collector.paths == {"/v1/traces"} and collector.resources[0]["service.name"] == "armillary"
    span = next(s for s in roots(collector) if values(s.attributes)["armillary.request.id"] == "mine")
    answer = answers["whole"]
    assert span.name == f"chat {NAME}"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    given = values(span.attributes)
    phases = {key: value for key, value in given.items() if key.startswith("armillary.phase.")}
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "armillary",
        "gen_ai.request.model": NAME,
        "gen_ai.response.model": NAME,
        "gen_ai.response.id": answer.id,
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["length"],
        "armillary.finish_reason": "length",
    }
    assert {key: given.get(key) for key in expected} == expected
    wall = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert sum(phases.values()) == pytest.approx(wall, abs=1e-5)
    children = sorted((s for s in collector.spans if s.parent_span_id == span.span_id), key=lambda s: s.name)
    assert [child.name for child in children] == ["decode", "prefill", "queued"]
    decode, prefill, queued = children
    assert queued.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano == span.events[0].time_unix_nano
    assert decode.end_time_unix_nano == span.end_time_unix_nano
    assert span.start_time_unix_nano <= queued.start_time_unix_nano


def test_streams_choices_and_failures_are_told_apart(collected: tuple[Collector, dict[str, Any]]) -> None:
    collector, answers = collected
    spans = [(span, values(span.attributes)) for span in roots(collector)]
    _, streamed = next(pair for pair in spans if pair[1].get("gen_ai.request.stream"))
    assert streamed["gen_ai.response.id"] == answers["streamed"][0].id
    assert streamed["gen_ai.request.choice.count"] == 2
    assert streamed["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert streamed["gen_ai.response.time_to_first_chunk"] > 0
    refused, told = next(pair for pair in spans if pair[1].get("error.type") == "invalid_request")
    assert refused.status.code == refused.status.STATUS_CODE_UNSET and told["armillary.finish_reason"] == "refused"
    failed, told = next(pair for pair in spans if pair[1].get("error.type") == "engine_failed")
    assert failed.name == f"text_completion {NAME}" and failed.status.code == failed.status.STATUS_CODE_ERROR
    assert not any(told["armillary.request.id"] == "unsampled" for _, told in spans), "the caller's choice is kept"
    assert "secret" not in str(collector.spans) and "ferry" not in str(collector.spans)


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ArmillaryError) as caught, traced(ServerSettings(otlp_endpoint="http://h:4318"), Any):  # type: ignore[arg-type]
        pass
    assert caught.value.code is Code.INVALID_DEPLOYMENT and "armillary[otel]" in caught.value.message


def test_nothing_of_it_is_loaded_without_an_endpoint() -> None:
    heavy = ("opentelemetry.sdk", "opentelemetry.exporter")
    code = f"import sys, armillary.server.serve; print([m for m in sys.modules if m.startswith({heavy})])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_collector_that_does_not_answer_harms_nobody(tmp_path: Path) -> None:
    running = Running(tmp_path)
    try:
        with traced(ServerSettings(otlp_endpoint="http://127.0.0.1:9"), running.service.requests):
            running.wait()
            assert running.client().chat.completions.create(**ASK).choices[0].finish_reason == "length"
    finally:
        running.stop()
