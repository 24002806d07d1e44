"""Several models in one server (behaviour 32): names, routing, loading and unloading while others serve."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from armillary.core.step import Step, StepResult
from armillary.models import locate
from armillary.server.shelf import State
from server.deployed import SMALL, Deployed, Gate
from server.harness import Running, write_model

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 12, "temperature": 0}
LONG = {**ASK, "max_tokens": 200, "stream": True, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that answer differently."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("east", "west")}
    for seed, folder in enumerate(found.values()):
        write_model(folder, seed=seed)
    return found


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Deployed]:
    """Both of them, one under a hub id and an alias."""
    running = Deployed(
        [
            {"path": str(folders["east"]), "name": "org/east", "aliases": ["gpt-4o", "a/b/c"]},
            {"path": str(folders["west"]), "name": "west", "engine": {"kv_blocks": 40}},
        ]
    )
    running.wait()
    yield running
    running.stop()


def text(server: Deployed, model: str) -> str:
    answer = server.client().chat.completions.create(model=model, **ASK)
    assert answer.choices[0].message.content is not None
    return answer.choices[0].message.content


def test_32_models_are_listed_under_all_their_names(server: Deployed) -> None:
    cards = {card.id: card for card in server.client().models.list()}
    assert list(cards) == ["org/east", "gpt-4o", "a/b/c", "west"]
    for card in cards.values():
        assert card.object == "model" and card.created > 1_700_000_000 and card.owned_by == "armillary"
        assert card.state == "ready" and card.max_model_len == 256
    assert cards["gpt-4o"].root == "org/east" and cards["west"].root == "west"


def test_32_a_name_with_slashes_can_be_retrieved(server: Deployed) -> None:
    for name in ("org/east", "a/b/c", "west"):
        assert server.client().models.retrieve(name).id == name
    found = server.get("/v1/models/org%2Feast").json()
    assert found["id"] == "org/east" and found["aliases"] == ["gpt-4o", "a/b/c"]
    assert found["memory"]["weights"] > 0 and 0 <= found["memory"]["kv_taken"] <= found["memory"]["kv"]
    assert found["loading"]["phase"] is None and found["loading"]["weights_read"] == found["memory"]["weights"]
    assert found["loading"]["weights_total"] == found["memory"]["weights"]


def test_32_an_unknown_model_is_not_found_and_the_known_ones_are_named(server: Deployed) -> None:
    for ask in (lambda: server.client().models.retrieve("north"), lambda: text(server, "north")):
        with pytest.raises(openai.NotFoundError, match="'org/east', 'gpt-4o', 'a/b/c', 'west'") as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_32_requests_go_to_the_model_that_they_name(server: Deployed) -> None:
    alone = {name: text(server, name) for name in ("org/east", "west")}
    assert alone["org/east"] != alone["west"]
    assert text(server, "gpt-4o") == alone["org/east"]
    answers: dict[str, list[str]] = {name: [] for name in alone}

    def ask(name: str) -> None:
        for _ in range(3):
            answers[name].append(text(server, name))

    threads = [threading.Thread(target=ask, args=(name,)) for name in alone for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {name: [alone[name]] * 6 for name in alone}, "a neighbour on another engine changes nothing"
    answer = server.client().chat.completions.create(model="gpt-4o", **ASK)
    assert answer.model == "org/east"


def test_32_each_model_has_an_engine_as_its_settings_say(server: Deployed) -> None:
    samples = server.get("/metrics").text.splitlines()
    assert 'armillary_kv_blocks{model="org/east"} 64.0' in samples
    assert 'armillary_kv_blocks{model="west"} 40.0' in samples


def test_a_model_is_loaded_while_another_serves_and_taken_away_again(folders: dict[str, Path]) -> None:
    gate = Gate()
    gate.guarded = "west"
    running = Deployed([{"path": str(folders["east"]), "name": "east"}], build=gate, manage_models="any")
    try:
        running.wait()
        stream = iter(running.client().chat.completions.create(model="east", **LONG))
        next(stream)
        body = {"model": str(folders["west"]), "name": "west", "aliases": ["w"], "engine": {"kv_blocks": 50}}
        begun = running.post("/v1/models/load", body)
        assert begun.status_code == 202 and begun.json()["state"] == "loading"
        assert gate.waits.wait(60)
        # Others serve; the new one says what it does, and when to come again.
        assert running.get("/ready").status_code == 200 and next(stream).choices
        with pytest.raises(openai.InternalServerError, match="'west' cannot answer now: it is loading") as caught:
            text(running, "w")
        assert caught.value.status_code == 503 and "retry-after" in caught.value.response.headers
        assert running.get("/v1/models/west").json()["loading"]["phase"] == "runtime"
        again = running.post("/v1/models/load", body)
        assert again.status_code == 400 and "must be free" in again.json()["error"]["message"]
        gate.opened.set()
        while running.state("west") == "loading":
            pass
        assert text(running, "w") != text(running, "east")
        assert running.get("/v1/models/west").json()["max_model_len"] == 256
        assert list(stream)[-1].choices[0].finish_reason == "length"
        gone = running.change("unload", "w")
        assert gone["state"] == "unloaded" and gone["memory"]["kv"] == 0
        assert [card.id for card in running.client().models.list()] == ["east"]
        with pytest.raises(openai.NotFoundError):
            text(running, "west")
        assert text(running, "east")
    finally:
        gate.opened.set()
        running.stop()


def test_a_model_that_is_ready_serves_while_another_is_loaded(folders: dict[str, Path]) -> None:
    gate = Gate()
    gate.guarded = "west"
    running = Deployed([{"path": str(folders[name]), "name": name} for name in folders], build=gate)
    try:
        assert gate.waits.wait(60)
        Running.wait(running)
        assert running.get("/ready").json() == {"status": "ready", "models": {"east": "ready", "west": "loading"}}
        assert text(running, "east")
        with pytest.raises(openai.InternalServerError, match="'west' cannot answer now: it is loading") as caught:
            text(running, "west")
        assert caught.value.status_code == 503 and int(caught.value.response.headers["retry-after"]) >= 1
        refused = running.post("/v1/models/unload", {"model": "west"})
        assert refused.status_code == 503, "nor is it taken away meanwhile"
        gate.opened.set()
        running.wait()
        assert text(running, "west")
    finally:
        gate.opened.set()
        running.stop()


def test_no_model_waits_for_the_download_of_another(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    here, asked = threading.Event(), threading.Event()
    known = locate.locate

    def download(name: str) -> Path:
        if name != "org/far":
            return known(name)
        asked.set()
        assert here.wait(60)
        return folders["east"]

    monkeypatch.setattr(locate, "locate", download)
    monkeypatch.setattr(locate, "is_here", lambda name: False)
    running = Deployed([{"path": "org/far", "name": "far"}, {"path": str(folders["west"]), "name": "west"}])
    try:
        Running.wait(running)
        assert asked.wait(60)
        assert running.get("/ready").json()["models"] == {"far": "loading", "west": "ready"}
        assert text(running, "west")
        here.set()
        running.wait()
        assert text(running, "far") and text(running, "far") != text(running, "west")
    finally:
        here.set()
        running.stop()


def test_unloading_finishes_what_runs_or_ends_it(folders: dict[str, Path]) -> None:
    running = Deployed([{"path": str(folders["east"]), "name": "east"}])
    try:
        running.wait()
        client = running.client()
        stream = iter(client.chat.completions.create(model="east", **LONG))
        next(stream)
        begun = running.post("/v1/models/unload", {"model": "east", "wait": False, "drain_s": 60})
        assert begun.status_code == 202 and begun.json()["state"] == "draining"
        assert list(stream)[-1].choices[0].finish_reason == "length"
        while list(running.service.shelf):
            time.sleep(0.01)
        running.wait("/ready", 503)
        assert running.get("/health").status_code == 200, "an empty server is no broken one"
        assert running.get("/v1/models").json()["data"] == []
        running.change("load", "east")
        east = running.service.shelf.find("east").served
        assert east is not None
        run = east.worker._engine.executor.run

        def slowly(step: Step) -> StepResult:
            time.sleep(0.02)  # else the answer may be whole before the model is taken away
            return run(step)

        east.worker._engine.executor.run = slowly  # type: ignore[method-assign]
        stream = iter(client.chat.completions.create(model="east", **LONG))
        next(stream)
        running.change("unload", "east", drain_s=0)
        with pytest.raises(openai.APIError, match="the engine was stopped"):
            list(stream)
    finally:
        running.stop()


def test_what_a_client_may_load_is_the_deployments_choice(folders: dict[str, Path], server: Deployed) -> None:
    refused = server.post("/v1/models/load", {"model": str(folders["east"]), "name": "third"})
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "forbidden"
    assert "`manage_models: any`" in refused.json()["error"]["message"]
    changed = server.post("/v1/models/load", {"model": "west", "engine": {"kv_blocks": 3}})
    assert changed.status_code == 403 and changed.json()["error"]["param"] == "engine"
    running = Deployed([{"path": str(folders["east"]), "name": "east"}], manage_models="off", api_keys=["secret"])
    try:
        running.wait()
        for verb in ("load", "unload", "sleep", "wake"):
            assert running.post(f"/v1/models/{verb}", {"model": "east"}).status_code == 401
            signed = running.post(f"/v1/models/{verb}", {"model": "east"}, headers={"authorization": "Bearer secret"})
            assert signed.status_code == 403 and "`manage_models`" in signed.json()["error"]["message"]
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": ""}, "model"),
        ({"model": "nowhere/to be found"}, "model"),
        ({"model": "FOLDER", "engine": {"kv_block": 3}}, "engine"),
        ({"model": "FOLDER", "engine": {"kv_blocks": "many"}}, "engine"),
        ({"model": "FOLDER", "engine": {"max_chunk_tokens": 999}}, "engine"),
        ({"model": "FOLDER", "name": "org/east"}, "name"),
        ({"model": "FOLDER", "aliases": [""]}, "aliases"),
        ({"model": "FOLDER", "aliases": ["x", "x"]}, "aliases"),
        ({"model": "FOLDER", "warm": True}, "warm"),
        ({"model": "FOLDER", "wait": "yes"}, "wait"),
    ],
)
def test_a_bad_wish_is_refused_by_name(
    server: Deployed, folders: dict[str, Path], body: dict[str, Any], param: str
) -> None:
    settings = server.service.settings
    server.service.settings = settings.model_copy(update={"manage_models": "any"})
    try:
        asked = {**body, **({"model": str(folders["west"])} if body.get("model") == "FOLDER" else {})}
        if asked.get("model"):
            asked = {"name": "third", "wait": True, **asked}
        response = server.post("/v1/models/load", asked)
        assert response.status_code in (400, 404), response.text
        assert response.json()["error"]["param"] == param, response.text
    finally:
        server.service.settings = settings
    for place in server.service.shelf:
        if place.state is State.FAILED:
            server.change("unload", place.name)
    assert text(server, "west")


def test_a_web_page_cannot_load_models(server: Deployed) -> None:
    """A cross-origin form can send text/plain without asking; application/json it cannot."""
    response = server.post("/v1/models/sleep", content=b'{"model": "west"}', headers={"content-type": "text/plain"})
    assert response.status_code == 400 and "content-type" in response.json()["error"]["message"]
    assert server.state("west") == "ready"


def test_a_model_that_cannot_fit_beside_the_others_is_refused_with_what_would(folders: dict[str, Path]) -> None:
    running = Deployed([{"path": str(folders["east"]), "name": "east"}], manage_models="any")
    try:
        running.wait()
        body = {"model": str(folders["west"]), "name": "west", "wait": True, "engine": {"kv_blocks": 10**9}}
        refused = running.post("/v1/models/load", body)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "memory_plan_impossible"
        assert "kv_blocks must be at most" in refused.json()["error"]["message"]
        found = running.get("/v1/models/west").json()
        assert found["state"] == "failed" and "must be at most" in found["error"]
        with pytest.raises(openai.InternalServerError, match="could not be loaded"):
            text(running, "west")
        assert running.get("/ready").status_code == 200 and text(running, "east")
        body["engine"] = {"kv_blocks": 40}
        assert running.post("/v1/models/load", body).json()["state"] == "ready", "a failed load can be tried again"
    finally:
        running.stop()


def test_memory_comes_back_when_a_model_is_unloaded(folders: dict[str, Path], tmp_path: Path) -> None:
    write_model(tmp_path, hidden_size=768, intermediate_size=3072, num_hidden_layers=4, head_dim=64,
                num_attention_heads=12, num_key_value_heads=4)  # fmt: skip
    running = Deployed([{"path": str(folders["east"]), "name": "east"}], manage_models="any")
    try:
        running.wait()
        text(running, "east")
        process = psutil.Process()
        for _ in range(2):
            empty = process.memory_info().rss
            loaded = running.change("load", str(tmp_path), name="big")
            weights = loaded["memory"]["weights"]
            assert weights > 100 << 20
            text(running, "big")
            full = process.memory_info().rss
            gone = running.change("unload", "big")
            assert full - process.memory_info().rss > 0.9 * weights
            assert gone["memory"]["freed"] > 0.9 * weights
            assert process.memory_info().rss < empty + 0.3 * weights
    finally:
        running.stop()


def test_a_dead_engine_ends_the_server_once_the_others_have_finished(folders: dict[str, Path]) -> None:
    running = Deployed([{"path": str(folders[name]), "name": name} for name in folders], drain_s=30)
    running.wait()
    client = running.client()
    stream = iter(client.chat.completions.create(model="west", **LONG))
    next(stream)

    def die(step: object) -> None:
        raise SystemExit("the engine's thread is gone")

    east = running.service.shelf.find("east").served
    assert east is not None
    east.worker._engine.executor.run = die  # type: ignore[method-assign]
    with pytest.raises(openai.InternalServerError, match="the engine"):
        text(running, "east")
    assert list(stream)[-1].choices[0].finish_reason == "length", "no fault of its own"
    running._thread.join(60)
    assert not running._thread.is_alive()
    assert "the engine died" in str(running.error) and "'east'" in str(running.error)


def test_one_that_cannot_be_loaded_ends_the_start(folders: dict[str, Path], tmp_path: Path) -> None:
    running = Deployed([{"path": str(folders["east"])}, {"path": str(tmp_path), "name": "broken"}])
    running._thread.join(60)
    assert not running._thread.is_alive() and "config.json" in str(running.error)


def test_the_default_pools_of_two_models_fit_beside_each_other(folders: dict[str, Path]) -> None:
    own = {name: value for name, value in SMALL.items() if name != "kv_blocks"}
    running = Deployed([{"path": str(folders[name]), "name": name} for name in folders], engine=own)
    try:
        running.wait()
        plans = [place.plan for place in running.service.shelf]
        assert plans[0] is not None and plans[1] is not None
        assert plans[0].promised == 0 and plans[1].promised >= plans[0].workspace
        assert plans[1].total + plans[1].promised < plans[0].available
    finally:
        running.stop()
