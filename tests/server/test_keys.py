"""Keys, their file, and the limits that go with them: without a server."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from armillary.core.load import Share
from armillary.core.request import Request
from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code, Refused
from armillary.server.admission import Caller, Limits, duration
from armillary.server.bucket import Bucket
from armillary.server.keys import Keyring, read_key_file


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Waiting:
    """A queue that says what it is told to."""

    def __init__(
        self, mine: Share | None = None, everything: Share | None = None, seconds: float | None = None
    ) -> None:
        self.mine, self.everything, self.seconds = mine or Share(), everything or Share(), seconds

    def waiting(self, owner: str | None = None) -> Share:
        return self.everything if owner is None else self.mine

    def seconds_to_work_off(self) -> float | None:
        return self.seconds


def bearer(key: str) -> Headers:
    return Headers({"authorization": f"Bearer {key}"})


def requests(*lengths: int) -> list[Request]:
    return [Request(f"r{i}", (1,) * length, 4) for i, length in enumerate(lengths)]


def ring(path: Path | None = None, text: str = "", **settings: Any) -> Keyring:
    if path is not None:
        path.write_text(text)
        path.chmod(0o600)
        settings["api_key_file"] = path
    return Keyring(ServerSettings(**settings))


def refused(keys: Keyring, headers: Headers) -> bool:
    try:
        keys.find(headers)
    except ArmillaryError as error:
        return error.code is Code.UNAUTHORIZED
    return False


def test_a_bucket_holds_a_minute_and_fills_steadily() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.remaining == 60 and bucket.full_in_s == 0
    bucket.take(60)
    assert bucket.wait_s(1) == 1.0 and bucket.wait_s(30) == 30.0
    clock.now += 10
    assert bucket.remaining == 10 and bucket.wait_s(10) == 0 and bucket.full_in_s == 50
    bucket.take(130)
    assert bucket.remaining == 0 and bucket.wait_s(1) == 121.0, "what was taken beyond the level is owed"
    clock.now += 1e6
    assert bucket.remaining == 60, "it never holds more than a minute's worth"
    assert bucket.wait_s(1000) == 0.0, "what is larger than the bucket needs it full, not for ever"
    bucket.take(10)
    clock.now -= 50
    assert bucket.remaining == 50, "a clock that goes back gives nothing and takes nothing"
    bucket.take(-1000)
    assert bucket.remaining == 60


def test_over_time_no_more_passes_than_was_allowed() -> None:
    clock = Clock()
    caller = Caller("a", Limits(tokens_per_minute=600), clock)
    used = 0
    for _ in range(20_000):
        clock.now += 0.05
        try:
            caller.arrive()
            caller.admit(requests(40), Waiting())
        except Refused as error:
            assert error.retry_s is not None and error.retry_s > 0
            continue
        used += 40 + 100
        caller.charge(100)
    minutes = 20_000 * 0.05 / 60
    assert 600 * minutes * 0.95 < used < 600 * (minutes + 1) + 140


def test_a_refusal_says_when_there_will_be_enough() -> None:
    clock = Clock()
    caller = Caller("a", Limits(requests_per_minute=2), clock)
    caller.arrive()
    caller.arrive()
    with pytest.raises(Refused) as caught:
        caller.arrive()
    assert (caught.value.code, caught.value.reason) == (Code.RATE_LIMIT, "requests_per_minute")
    assert caught.value.retry_s == 30.0 and "30s" in caught.value.message
    clock.now += 30.0
    caller.arrive()
    assert dict(caller.headers()) == {
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"1m0s",
    }


def test_what_is_refused_is_not_charged() -> None:
    clock = Clock()
    caller = Caller("a", Limits(tokens_per_minute=100, max_waiting=2), clock)
    with pytest.raises(Refused) as caught:
        caller.admit(requests(10, 10), Waiting(Share(1, 1, 5), Share(4, 4, 20), 8.0))
    assert caught.value.reason == "key_queue_requests"
    assert caught.value.retry_s == 2.0, "a quarter of the queue is its own"
    assert dict(caller.headers())[b"x-ratelimit-remaining-tokens"] == b"100"
    caller.admit(requests(60), Waiting())
    with pytest.raises(Refused):
        caller.admit(requests(60), Waiting())
    assert dict(caller.headers())[b"x-ratelimit-remaining-tokens"] == b"40"
    caller.charge(-60)
    caller.admit(requests(100), Waiting())


def test_one_key_has_its_part_of_the_queue() -> None:
    caller = Caller("a", Limits(max_waiting=3, max_waiting_tokens=50))
    caller.admit(requests(20), Waiting(Share(2, 2, 30)))
    for mine, lengths, reason in [
        (Share(3, 3, 5), (1,), "key_queue_requests"),
        (Share(2, 2, 5), (1, 1), "key_queue_requests"),
        (Share(1, 1, 31), (20,), "key_queue_tokens"),
    ]:
        with pytest.raises(Refused) as caught:
            caller.admit(requests(*lengths), Waiting(mine))
        assert caught.value.reason == reason and caught.value.code is Code.QUEUE_FULL
    caller.admit(requests(1, 1, 1, 1), Waiting())  # many prompts at once pass where nothing waits
    caller.admit(requests(*[1] * 40), Waiting(Share(1, 1, 5)), at_once=2)  # no more than two of them ever wait


def test_priorities_have_a_default_and_a_bound() -> None:
    caller = Caller("a", Limits(priority=5, highest_priority=3))
    assert [caller.priority(given) for given in (None, 3, 7)] == [5, 3, 7]
    with pytest.raises(ArmillaryError) as caught:
        caller.priority(2)
    assert caught.value.param == "priority" and caught.value.code is Code.INVALID_REQUEST
    assert Caller().priority(-100) == -100 and Caller().priority(None) == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.02, "20ms"), (1.0, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (361, "6m1s")]
)
def test_durations_look_as_at_openai(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_file_of_lines(tmp_path: Path) -> None:
    keys = ring(tmp_path / "keys", "# ours\nsk-one\n\n  sk-two  \n#sk-three\n", api_keys=("inline",))
    assert keys.asks
    assert [keys.find(bearer(key)).name for key in ("inline", "sk-one", "sk-two")] == ["key-1", "key-2", "key-3"]
    assert keys.find(Headers({"x-api-key": "sk-one"})).name == "key-2"
    for wrong in ("sk-three", "# ours", "", "sk-on", "sk-onee", "key-1"):
        assert refused(keys, bearer(wrong)), wrong
    assert refused(keys, Headers({}))


def test_a_file_of_entries(tmp_path: Path) -> None:
    text = """
- key: sk-a
  name: team a
  requests_per_minute: 5
  priority: 3
  highest_priority: 1
- sk-b
- {key: sk-c, name: c, tokens_per_minute: 7, max_waiting: 2, max_waiting_tokens: 9}
"""
    keys = ring(tmp_path / "keys.yaml", text, requests_per_minute=100, max_waiting_per_key=50)
    a, b, c = (keys.find(bearer(f"sk-{x}")) for x in "abc")
    assert (a.name, b.name, c.name) == ("team a", "key-2", "c")
    assert a.limits == Limits(5, None, 50, None, 3, 1)
    assert b.limits == Limits(100, None, 50, None)
    assert c.limits == Limits(100, 7, 2, 9)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("keys", "", "at least one key"),
        ("keys", "# none\n", "at least one key"),
        ("keys", "sk-secret with blanks\n", "entry 1 of api_key_file"),
        ("keys.yaml", "key: sk-secret\n", "must be a list"),
        ("keys.yaml", "- key: sk-secret\n  limit: 3\n", "no other members than key, name"),
        ("keys.yaml", "- sk-secret: 3\n", "entry 1"),
        ("keys.yaml", "- name: x\n", "must have a key"),
        ("keys.yaml", "- key: sk-secret\n  requests_per_minute: 0\n", "requests_per_minute"),
        ("keys.yaml", "- key: sk-secret\n  priority: high\n", "priority"),
        ("keys.yaml", "- [sk-secret\n", "valid YAML"),
        ("keys.yaml", "- sk-secret\n- sk-secret\n", "same key again as number 2"),
        ("keys.yaml", "- {key: sk-secret, name: x}\n- {key: b, name: x}\n", "same name again as number 2"),
    ],
)
def test_a_file_that_is_wrong_is_refused_without_showing_a_key(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(ArmillaryError) as caught:
        ring(tmp_path / name, text)
    assert caught.value.code is Code.INVALID_DEPLOYMENT
    assert says in caught.value.message and "secret" not in caught.value.message


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(ArmillaryError, match=str(path)):
            Keyring(ServerSettings(api_key_file=path))


def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text("sk-secret\n")
    for mode, warned in ((0o600, False), (0o400, False), (0o640, True), (0o604, True)):
        path.chmod(mode)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read_key_file(path)
        assert ("may be read by others" in caplog.text) == warned
        assert "secret" not in caplog.text


def test_reading_anew_adds_and_removes_keys_and_forgets_no_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    keys = ring(path, "- {key: a, name: A}\n- {key: b, name: B}\n", requests_per_minute=10)
    keys.find(bearer("a")).arrive()
    path.write_text("- {key: a, name: A}\n- {key: c, name: C}\n")
    keys.reload()
    assert refused(keys, bearer("b")) and not refused(keys, bearer("c"))
    assert dict(keys.find(bearer("a")).headers())[b"x-ratelimit-remaining-requests"] == b"9"
    path.write_text("- {key: secret, nome: A}\n")
    with caplog.at_level(logging.ERROR):
        keys.reload()
    assert "stay as they are" in caplog.text and "secret" not in caplog.text
    assert not refused(keys, bearer("c"))
    path.unlink()
    keys.reload()
    assert not refused(keys, bearer("c")), "a file that is gone locks nobody out and lets nobody in"


def test_a_key_without_a_name_keeps_what_it_was_called_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys = ring(path, "a\nb\n", requests_per_minute=10)
    keys.find(bearer("b")).arrive()
    for text, names in (
        ("b\n", {"b": "key-2"}),
        ("c\nb\n", {"b": "key-2", "c": "key-3"}),
        ("d\na\nb\n", {"a": "key-1", "b": "key-2", "d": "key-4"}),
    ):
        path.write_text(text)
        keys.reload()
        assert {key: keys.find(bearer(key)).name for key in names} == names
        assert dict(keys.find(bearer("b")).headers())[b"x-ratelimit-remaining-requests"] == b"9"


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a test can see constant time: always the same comparisons, of digests of the same length."""
    keys = Keyring(ServerSettings(api_keys=tuple(f"key number {i}".replace(" ", "-") for i in range(20))))
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in ("key-number-0", "key-number-19", "nothing", "", "x" * 5000, "schlüssel"):
        compared.clear()
        refused(keys, Headers(raw=[(b"authorization", f"Bearer {given}".encode())]))
        assert compared == [(32, 32)] * 20


def test_without_keys_nobody_is_asked_and_all_share_the_limits() -> None:
    keys = Keyring(ServerSettings(requests_per_minute=3))
    assert not keys.asks
    assert keys.find(Headers({})) is keys.find(bearer("whatever"))
    assert keys.find(Headers({})).limits.requests_per_minute == 3


def test_headers_of_what_has_no_limit() -> None:
    found: Sequence[tuple[bytes, bytes]] = Caller("a").headers()
    assert found == []
