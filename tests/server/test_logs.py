"""The log: one line per request with its timings, every line with its request, and nothing of what was said."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from armillary.server.logs import HumanLines, JsonLines, name_request
from server.harness import NAME, Running, ScriptedExecutor

ASK: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "A secret question"}],
    "max_tokens": 6,
    "temperature": 0,
}


class Heard:
    """What is logged below `armillary` while it listens."""

    def __init__(self, form: logging.Formatter) -> None:
        self.stream = io.StringIO()
        self._handler = logging.StreamHandler(self.stream)
        self._handler.setFormatter(form)
        self._handler.addFilter(name_request)
        self._log = logging.getLogger("armillary")

    def __enter__(self) -> Heard:
        self._log.addHandler(self._handler)
        self._level, self._log.level = self._log.level, logging.DEBUG
        logging.getLogger("armillary.server").manager._clear_cache()  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self._handler)
        self._log.setLevel(self._level)

    def until(self, *request_ids: str) -> None:
        """Wait for the lines of these requests: a client may have its answer before the line is written."""
        end = time.monotonic() + 120
        while not all(any(each in line and "duration_ms" in line for line in self.lines) for each in request_ids):
            assert time.monotonic() < end, f"{request_ids} must have their lines, given {self.lines}"
            time.sleep(0.01)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("model"), ScriptedExecutor(step_s=0.001))
    running.wait()
    yield running
    running.stop()


def test_a_json_line_per_request_has_its_account(server: Running) -> None:
    with Heard(JsonLines()) as heard:
        client = server.client()
        answer = client.chat.completions.create(**ASK, extra_headers={"x-request-id": "mine-1"})
        list(client.chat.completions.create(**ASK, stream=True, extra_headers={"x-request-id": "mine-2"}))
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**{**ASK, "top_p": 3}, extra_headers={"x-request-id": "mine-3"})
        heard.until("mine-1", "mine-2", "mine-3")
        server.get("/v1/models", headers={"x-request-id": "mine-4"})
        heard.until("mine-4")
    told = [json.loads(line) for line in heard.lines]
    ends = {line["request_id"]: line for line in told if "duration_ms" in line}
    whole = ends["mine-1"]
    expected = {
        "level": "info",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "endpoint": "chat",
        "model": NAME,
        "response_id": answer.id,
        "stream": False,
        "finish_reason": "length",
        "completion_tokens": 6,
        "cached_tokens": 0,
    }
    assert {key: whole.get(key) for key in expected} == expected
    assert answer.usage is not None and whole["prompt_tokens"] == answer.usage.prompt_tokens
    assert 0 <= whole["queued_ms"] <= whole["ttft_ms"] <= whole["duration_ms"] and whole["itl_ms"] > 0
    assert ends["mine-2"]["stream"] is True
    assert (ends["mine-3"]["status"], ends["mine-3"]["error"]) == (400, "invalid_request")
    assert ends["mine-3"]["finish_reason"] == "refused" and "completion_tokens" not in ends["mine-3"]
    assert ends["mine-4"]["path"] == "/v1/models" and "endpoint" not in ends["mine-4"]
    ids = ["mine-1", "mine-2", "mine-3", "mine-4"]
    assert sorted(line["request_id"] for line in told if "duration_ms" in line and line["request_id"] in ids) == ids
    everything = heard.stream.getvalue()
    assert "secret" not in everything and "Archipel" not in everything


def test_lines_for_people_say_the_same(server: Running) -> None:
    with Heard(HumanLines()) as heard:
        server.client().chat.completions.create(**ASK, extra_headers={"x-request-id": "mine-5"})
        server.get("/nowhere%1b%5b31m%0a", headers={"x-request-id": "mine-6"})
        heard.until("mine-5", "mine-6")
    line = next(line for line in heard.lines if "mine-5" in line and "duration_ms" in line)
    assert "INFO mine-5 POST '/v1/chat/completions' 200" in line
    assert "finish_reason=length" in line and "ttft_ms=" in line and f"model={NAME}" in line
    assert "\x1b" not in heard.stream.getvalue()
    assert sum("mine-6" in line for line in heard.lines) == 1


def test_a_failure_has_its_trace_in_one_line(tmp_path: Path) -> None:
    form = JsonLines()
    try:
        raise ValueError("broken\nin two lines")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("armillary", logging.ERROR, __file__, 1, "it %s", ("failed",), info)
    assert name_request(record)
    line = form.format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert told["message"] == "it failed" and "broken" in told["exception"] and "request_id" not in told
