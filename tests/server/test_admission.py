"""Who is let in: overload, rates, keys and priorities, through the `openai` client and in raw HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import openai._base_client
import pytest

from armillary.core.order import Pace
from armillary.core.step import Step
from armillary.deployment import ServerSettings
from server.harness import NAME, Running, ScriptedExecutor

PATH = "/v1/completions"
RUNNING, WAITING = "armillary_sequences_running", "armillary_sequences_waiting"
POSTED = "armillary_http_responses_total"


def ask(tokens: int = 4, prompt: int = 5, **more: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": [65] * prompt, "max_tokens": tokens, "temperature": 0, **more}


def answers(server: Running) -> dict[str, float]:
    """Responses by status."""
    return {k.split('"')[1]: v for k, v in server.metrics().items() if k.startswith(POSTED)}


def rejected(server: Running, reason: str) -> float:
    return server.metrics().get(f'armillary_rejected_total{{reason="{reason}"}}', 0.0)


class Crowd:
    """Requests that are under way in threads; their answers are kept."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.results: list[httpx.Response] = []
        self._threads: list[threading.Thread] = []

    def send(self, body: dict[str, Any], **options: Any) -> None:
        def go() -> None:
            with httpx.Client(timeout=60) as client:
                self.results.append(client.post(self.server.url + PATH, json=body, **options))

        self._threads.append(threading.Thread(target=go))
        self._threads[-1].start()

    def join(self) -> list[httpx.Response]:
        for thread in self._threads:
            thread.join(60)
        return self.results


def until(server: Running, name: str, value: float, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while server.metrics()[name] != value:
        assert time.monotonic() < end, f"{name} must become {value}, given {server.metrics()[name]}"
        time.sleep(0.01)


@contextmanager
def serving(folder: Path, settings: dict[str, Any] | None = None, **options: Any) -> Iterator[Running]:
    running = Running(folder, settings=ServerSettings(port=0, drain_s=0.5, **(settings or {})), **options)
    try:
        running.wait()
        yield running
    finally:
        running.executor.fault = lambda step: None
        running.stop()


class Gate:
    """Holds every step up while it is closed."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.held = threading.Event()

    def __call__(self, step: Step) -> None:
        if not self.open.is_set():
            self.held.set()
            assert self.open.wait(60)


class FixedPace(Pace):
    def __init__(self, tokens_per_second: float) -> None:
        super().__init__()
        self.seconds_per_step, self.tokens_per_step = 1.0, tokens_per_second

    def observe(self, seconds: float, tokens: int = 0) -> None:
        pass


def fix_pace(server: Running, tokens_per_second: float) -> None:
    """A pace that no load of the machine can change."""
    assert server.engine is not None
    server.engine.scheduler.pace = FixedPace(tokens_per_second)


# -------------------------------------------------------------------- 31: overload


def test_31_overload_is_refused_while_a_step_is_under_way_and_streams_go_on(tmp_path: Path) -> None:
    """No wait for the step, let alone for the queue: the refusal is there while everything stands still."""
    gate = Gate()
    gate.open.set()
    with serving(tmp_path, executor=ScriptedExecutor(step_s=0.005), max_running=1, max_waiting=2) as server:
        server.executor.fault = gate
        stream = server.client().completions.create(**ask(60), stream=True)
        text = next(iter(stream)).choices[0].text
        gate.open.clear()
        assert gate.held.wait(30)
        crowd = Crowd(server)
        for _ in range(2):
            crowd.send(ask())
        end = time.monotonic() + 120
        while server.service.served is None or server.service.served.worker.waiting().requests < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        for _ in range(5):
            with pytest.raises(openai.RateLimitError) as caught:
                server.client().completions.create(**ask())
            assert caught.value.code == "queue_full"
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert int(caught.value.response.headers["retry-after-ms"]) >= 1
        raw = server.post(PATH, content=b"{no json at all", headers={"content-length": "15"})
        assert raw.status_code == 429, "what cannot be taken in is not even read"
        assert rejected(server, "queue_requests") == 6
        gate.open.set()
        text += "".join(chunk.choices[0].text for chunk in stream)
        assert text == ScriptedExecutor().script.decode()[: len(text)] and len(text) > 30
        assert [answer.status_code for answer in crowd.join()] == [200, 200]
        server.quiet()


def test_31_the_time_to_retry_is_the_queue_over_the_pace(tmp_path: Path) -> None:
    """Two queues, two values, both by the formula: tokens that wait, and answers to come, over tokens a second."""
    gate = Gate()
    gate.open.set()
    with serving(tmp_path, max_running=1, max_waiting_tokens=200, max_step_tokens=8) as server:
        server.executor.fault = gate
        for _ in range(2):  # answers of 12 tokens in the mean
            server.client().completions.create(**ask(tokens=12))
        fix_pace(server, 20.0)
        gate.open.clear()
        crowd = Crowd(server)
        crowd.send(ask(prompt=4))
        assert gate.held.wait(30)
        found = []
        worker = server.service.served.worker if server.service.served else None
        assert worker is not None
        for waiting in (1, 3):
            while worker.waiting().requests < waiting:
                before = worker.waiting().requests
                crowd.send(ask(prompt=50))
                while worker.waiting().requests == before:
                    time.sleep(0.01)
            refused = server.post(PATH, ask(prompt=180))
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
            found.append((refused.headers["retry-after"], refused.headers["retry-after-ms"]))
        assert found == [("4", str((50 + 12) * 1000 // 20)), ("10", str((150 + 36) * 1000 // 20))]
        assert rejected(server, "queue_tokens") == 2
        gate.open.set()
        crowd.join()


def test_31_more_bodies_than_memory_for_them_is_a_passing_refusal(tmp_path: Path) -> None:
    with serving(tmp_path, {"max_body": "4KiB"}) as server:
        held = server.service.bodies.limit
        server.service.bodies.held = held
        refused = server.post(PATH, ask())
        assert refused.status_code == 429 and "retry-after" in refused.headers
        server.service.bodies.held = 0
        assert server.post(PATH, ask()).status_code == 200


# -------------------------------------------------------------------- 12: retries, counted at the server


def test_12_what_passes_is_retried_and_obeys_the_time_and_what_does_not_pass_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(openai._base_client.time, "sleep", slept.append)
    settings = {"api_keys": ("k",), "requests_per_minute": 50, "tokens_per_minute": 500}
    with serving(tmp_path, settings) as server:

        def asked(error: type[openai.OpenAIError], key: str = "k", **body: Any) -> tuple[float, list[float]]:
            slept.clear()
            before = sum(answers(server).values())
            with pytest.raises(error):
                server.client(retries=2, api_key=key).completions.create(**ask(**body))
            probes = 1  # `answers` itself
            return sum(answers(server).values()) - before - probes, list(slept)

        for error, body in [
            (openai.BadRequestError, {"temperature": 9}),
            (openai.NotFoundError, {"model": "other"}),
            (openai.AuthenticationError, {"key": "wrong"}),
            (openai.BadRequestError, {"prompt": 600}),
        ]:
            assert asked(error, **body) == (1, []), error
        server.executor.fault = lambda step: 1 / 0
        assert asked(openai.InternalServerError) == (1, []), "a step that fails would fail again"
        server.executor.fault = lambda step: None
        server.client(api_key="k").completions.create(**ask(tokens=300, prompt=100))
        times, waits = asked(openai.RateLimitError, prompt=400)
        assert times == 3
        assert len(waits) == 2 and all(20 < wait <= 60 for wait in waits), "as long as the bucket needs"
        assert rejected(server, "tokens_per_minute") == 3


def test_12_a_client_that_waits_as_told_gets_in(tmp_path: Path) -> None:
    """Nothing is patched: the client sleeps for what the server said, and its second attempt passes."""
    settings = {"tokens_per_minute": 6000}
    with serving(tmp_path, settings) as server:
        client = server.client(retries=2)
        assert server.service.keys.find(httpx_headers()).limits.tokens_per_minute == 6000
        server.service.keys.find(httpx_headers()).charge(6000 - 20)
        before = answers(server)
        client.completions.create(**ask(prompt=60))
        after = answers(server)
        assert after["429"] - before.get("429", 0) == 1 and after["200"] > before["200"]


def httpx_headers() -> Any:
    from starlette.datastructures import Headers

    return Headers({})


# -------------------------------------------------------------------- rates and shares of a key


def test_a_key_has_its_rate_and_every_answer_says_what_is_left(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("- {key: a, name: A, requests_per_minute: 3, tokens_per_minute: 1000}\n- {key: b, name: B}\n")
    keys.chmod(0o600)
    folder = tmp_path / "model"
    folder.mkdir()
    with serving(folder, {"api_key_file": keys}) as server:
        client = server.client(api_key="a")
        left = []
        for stream in (False, True):
            with client.completions.with_streaming_response.create(**ask(prompt=10), stream=stream) as response:
                left.append({k: response.headers[f"x-ratelimit-{k}"] for k in
                             ("limit-requests", "remaining-requests", "limit-tokens", "remaining-tokens")})  # fmt: skip
                response.read()
        assert left[0]["limit-requests"] == "3" and left[0]["limit-tokens"] == "1000"
        assert [row["remaining-requests"] for row in left] == ["2", "1"]
        assert 985 <= int(left[1]["remaining-tokens"]) - -14 <= 1000, "24 less, and a little that came in meanwhile"
        client.models.list()
        client.completions.create(**ask())
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**ask())
        assert caught.value.code == "rate_limit_exceeded" and "a minute with this key" in caught.value.message
        headers = caught.value.response.headers
        assert 1 <= int(headers["retry-after"]) <= 20 and int(headers["retry-after-ms"]) <= 20_000
        assert headers["x-ratelimit-remaining-requests"] == "0" and headers["x-ratelimit-reset-requests"]
        assert rejected(server, "requests_per_minute") == 1
        for _ in range(5):
            free = server.client(api_key="b").completions.with_raw_response.create(**ask())
            assert not any(name.startswith("x-ratelimit") for name in free.headers)


def test_one_key_cannot_fill_the_queue_for_all(tmp_path: Path) -> None:
    gate = Gate()
    settings = {"api_keys": ("a", "b"), "max_waiting_per_key": 2}
    with serving(tmp_path, settings, max_running=1) as server:
        server.executor.fault = gate
        worker = server.service.served.worker if server.service.served else None
        assert worker is not None
        crowd = Crowd(server)

        def send(key: str, waiting: int) -> None:
            crowd.send(ask(), headers={"authorization": f"Bearer {key}"})
            end = time.monotonic() + 120
            while worker.waiting().requests < waiting:
                assert time.monotonic() < end
                time.sleep(0.01)

        send("a", 0)
        assert gate.held.wait(30)
        send("a", 1)
        send("a", 2)
        with pytest.raises(openai.RateLimitError, match="of one key") as caught:
            server.client(api_key="a").completions.create(**ask())
        assert caught.value.code == "queue_full"
        send("b", 3)
        assert rejected(server, "key_queue_requests") == 1
        gate.open.set()
        assert {answer.status_code for answer in crowd.join()} == {200}
        assert worker.waiting("key-1").requests == 0


@pytest.mark.parametrize(
    ("settings", "limits", "prompts", "names"),
    [
        ({}, {"max_waiting": 3}, 4, "max_waiting), 3, given 4"),
        ({"max_waiting_per_key": 2}, {"max_waiting": 5}, 3, "max_waiting of the key), 2, given 3"),
        ({}, {"max_waiting_tokens": 16}, 4, "max_waiting_tokens), 16, given 20"),
    ],
)
def test_more_prompts_than_may_ever_wait_are_no_matter_of_time(
    tmp_path: Path, settings: dict[str, Any], limits: dict[str, Any], prompts: int, names: str
) -> None:
    """A 429 would be tried again for ever."""
    with serving(tmp_path, settings, **limits) as server:
        client = server.client(retries=2)
        fits = client.completions.create(**{**ask(), "prompt": [[65] * 5] * (prompts - 1), "n": 2})
        assert len(fits.choices) == 2 * (prompts - 1)
        with pytest.raises(openai.BadRequestError, match="several requests") as caught:
            client.completions.create(**{**ask(), "prompt": [[65] * 5] * prompts})
        assert caught.value.param == "prompt" and names in str(caught.value)
        assert sum(value for status, value in answers(server).items() if status == "429") == 0


def test_priorities_come_from_keys_and_requests(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "- {key: slow, name: slow, priority: 9, highest_priority: 5}\n- {key: fast, name: fast, priority: 1}\n"
    )
    keys.chmod(0o600)
    folder = tmp_path / "model"
    folder.mkdir()
    gate = Gate()
    order: list[int] = []
    with serving(folder, {"api_key_file": keys}, max_running=1, order="priority") as server:

        def note(step: Step) -> None:
            order.extend(s.request.prompt[0] for s in step.admitted)
            gate(step)

        server.executor.fault = note
        worker = server.service.served.worker if server.service.served else None
        assert worker is not None
        crowd = Crowd(server)
        sent = [
            ("slow", None, 1), ("slow", None, 2), ("fast", None, 3), ("fast", 12, 4), ("slow", 5, 5), ("fast", -1, 6),
        ]  # fmt: skip
        for place, (key, priority, mark) in enumerate(sent):
            body = ask(prompt=3, priority=priority) | {"prompt": [mark, 65, 66]}
            crowd.send(body, headers={"authorization": f"Bearer {key}"})
            end = time.monotonic() + 120
            while (worker.waiting().requests < place) or (place == 0 and not gate.held.is_set()):
                assert time.monotonic() < end
                time.sleep(0.01)
        with pytest.raises(openai.BadRequestError) as caught:
            server.client(api_key="slow").completions.create(**ask(), extra_body={"priority": 4})
        assert caught.value.param == "priority" and "at least 5" in caught.value.message
        gate.open.set()
        crowd.join()
    assert order == [1, 6, 3, 5, 2, 4]


# -------------------------------------------------------------------- 15: keys


def test_15_keys_are_asked_for_everywhere_but_where_it_is_said(tmp_path: Path) -> None:
    with serving(tmp_path, {"api_keys": ("sk-one", "sk-two")}) as server:
        for path in ("/health", "/ready", "/metrics"):
            assert server.get(path).status_code == 200, path
        for path in ("/v1/models", "/v1/requests", "/tokenize", "/v1", "/v1/nothing", "/nothing", "/health2"):
            refused = server.get(path)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key", path
            assert refused.headers["www-authenticate"] == "Bearer" and refused.headers["x-request-id"]
        for key in ("sk-one", "sk-two"):
            assert server.client(api_key=key).completions.create(**ask()).usage
            assert server.get("/v1/models", headers={"x-api-key": key}).status_code == 200
        for key in ("sk-", "sk-one", "sk-onesk-two", "x"):
            refused = server.get("/v1/models", headers={"authorization": f"Token {key}"})
            assert refused.status_code == 401
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="sk-three").models.list()
        assert rejected(server, "invalid_api_key") >= 8
        big = server.post(PATH, content=b" " * 5_000_000)
        assert big.status_code == 401, "answered before the body is read, and the client gets to read it"
        assert server.client(api_key="sk-one").completions.create(**ask()).usage


# -------------------------------------------------------------------- origins


def test_other_origins_may_call_only_where_they_are_named(tmp_path: Path) -> None:
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with serving(tmp_path) as server:
        assert "access-control-allow-origin" not in server.get("/v1/models", headers=asked).headers
        assert server._http.options(server.url + PATH, headers=asked).status_code == 405
    settings = {"cors_origins": ("https://app.example",), "api_keys": ("k",)}
    with serving(tmp_path, settings) as server:
        allowed = server._http.options(server.url + PATH, headers=asked)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://app.example"
        other = server._http.options(server.url + PATH, headers={**asked, "origin": "https://evil.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
        refused = server.post(PATH, ask(), headers={"origin": "https://app.example"})
        assert refused.status_code == 401, "a page may read why it was refused"
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        assert "retry-after-ms" in refused.headers["access-control-expose-headers"]
    with pytest.raises(ValueError, match="cors_origins"):
        ServerSettings(cors_origins=("app.example",))
