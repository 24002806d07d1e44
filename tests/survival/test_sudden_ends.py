"""kill -9 under load, a second server in the same place, a disk that is full."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from survival.process import Server

ASK = {"model": "isles", "prompt": "Repeat: salt, tea", "max_tokens": 300, "ignore_eos": True, "temperature": 0}


def deployment(journal: Path | str) -> dict[str, Any]:
    return {"models": [{"name": "isles"}], "engine": {"journal": str(journal), "kv_blocks": 100, "max_running": 4}}


def test_killed_under_load_and_started_again_on_the_same_folder(tmp_path: Path) -> None:
    """Nobody is left hanging by the death; the journal's whole lines survive; the next server appends to them."""
    journal = tmp_path / "journal.jsonl"
    seen: list[str] = []

    def client(url: str) -> None:
        try:
            httpx.post(f"{url}/v1/completions", json=ASK, timeout=120).raise_for_status()
            seen.append("answered")
        except httpx.HTTPError as error:
            seen.append(type(error).__name__)

    answers = []
    for life in range(3):
        with Server(tmp_path, deployment(journal)) as server:
            short = httpx.post(f"{server.url}/v1/completions", json={**ASK, "max_tokens": 8}, timeout=120)
            answers.append(short.json()["choices"][0]["text"])
            if life < 2:
                clients = [threading.Thread(target=client, args=(server.url,)) for _ in range(8)]
                for one in clients:
                    one.start()
                while server.gauges()["armillary_sequences_running"] < 2:
                    assert any(one.is_alive() for one in clients), seen
                server.process.send_signal(signal.SIGKILL)
                for one in clients:
                    one.join(120)
                    assert not one.is_alive()
    assert len(set(answers)) == 1, "the same answer before and after"
    assert any(outcome != "answered" for outcome in seen), "the kill came after everything was over"
    lines = journal.read_text().splitlines()
    whole = []
    for line in lines:
        try:
            whole.append(json.loads(line))
        except ValueError:
            pass  # at most one a death: the line that was being written
    assert len(lines) - len(whole) <= 2
    assert sum("scheduler" in record for record in whole) == 3, "each life begins with its configuration"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk_ends_the_journal_and_no_request(tmp_path: Path) -> None:
    with Server(tmp_path, deployment("/dev/full")) as server:
        for _ in range(3):
            reply = httpx.post(f"{server.url}/v1/completions", json={**ASK, "max_tokens": 8}, timeout=120)
            assert reply.status_code == 200
            assert reply.json()["usage"]["completion_tokens"] == 8
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.said.count("journal") >= 1
        assert "No space left on device" in server.said


def test_two_servers_may_write_beside_each_other(tmp_path: Path) -> None:
    """Each in a folder of its own, both on the same model files."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with Server(tmp_path / "one", deployment(tmp_path / "one/journal")) as one:
        with Server(tmp_path / "two", deployment(tmp_path / "two/journal")) as two:
            texts = {
                httpx.post(f"{each.url}/v1/completions", json={**ASK, "max_tokens": 8}, timeout=120).text.split(
                    '"text"'
                )[1]
                for each in (one, two)
            }
    assert len(texts) == 1
