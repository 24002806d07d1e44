"""Embeddings (behaviour 29) and reranking through the whole stack: a decoder, an encoder and a cross-encoder, random
weights, one server, the `openai` client."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from encoders import POSITIONS, write, write_layout
from server.deployed import SMALL, Deployed
from server.harness import write_model

TEXTS = ["The ferry takes three hours.", "a", "A loaf costs 4 crowns. naïve café", "The ferry takes three hours."]


class Site(Deployed):
    """The server, and the transformers models behind it."""

    oracles: dict[str, Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("models")
    (root / "talker").mkdir()
    write_model(root / "talker")
    oracles = {
        "encoder": write("bert", root / "encoder"),
        "judge": write("bert", root / "judge", "ForSequenceClassification"),
        "other": write("xlm-roberta", root / "other", matryoshka_dimensions=[8, 16]),
    }
    write_layout(root / "encoder", "pooling_mode_cls_token", normalize=False)
    models = [{"path": str(root / "talker"), "engine": {**SMALL, "max_chunk_tokens": 12, "max_waiting": 6}}]
    models += [{"path": str(root / name)} for name in oracles]
    models += [{"path": str(root / "talker"), "name": "wide", "engine": {**SMALL, "kv_blocks": 40}}]
    running = Site(models, {"threads": 1})
    running.oracles = oracles
    running.wait()
    yield running
    running.stop()


def embed(site: Site, model: str, given: Any, **options: Any) -> np.ndarray[Any, Any]:
    answer = site.client().embeddings.create(model=model, input=given, **options)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], dtype=np.float64)


def hidden(site: Site, model: str, text: str) -> torch.Tensor:
    """What transformers makes of the text, tokenised there too."""
    from transformers import PreTrainedTokenizerFast

    folder = Path(site.deployment.models[1].path).parent / model
    ids = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = site.oracles[model](ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    return torch.as_tensor(found)


@pytest.mark.parametrize("model", ["talker", "encoder", "other"])
def test_29_base64_by_default_and_floats_are_the_same_numbers(site: Site, model: str) -> None:
    default = embed(site, model, TEXTS)
    assert np.array_equal(default, embed(site, model, TEXTS, encoding_format="float"))
    assert np.array_equal(default[0], default[3]) and not np.array_equal(default[0], default[1])
    raw = site.post("/v1/embeddings", {"model": model, "input": "a", "encoding_format": "base64"}).json()
    numbers = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype="<f4")
    assert np.array_equal(numbers.astype(np.float64), default[1])
    assert raw["object"] == "list" and raw["model"] == model and raw["data"][0]["object"] == "embedding"
    plain = site.post("/v1/embeddings", {"model": model, "input": "a"}).json()
    assert isinstance(plain["data"][0]["embedding"], list)


def test_29_vectors_are_those_of_transformers_pooled_as_the_folder_says(site: Site) -> None:
    for text in TEXTS:
        first = hidden(site, "encoder", text)[0]
        np.testing.assert_allclose(embed(site, "encoder", text)[0], first.numpy(), atol=1e-4, rtol=0)
        mean = hidden(site, "other", text).mean(0)
        np.testing.assert_allclose(embed(site, "other", text)[0], (mean / mean.norm()).numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", ["talker", "encoder"])
def test_29_every_form_of_input_in_order(site: Site, model: str) -> None:
    ids = [site.post("/tokenize", {"model": model, "prompt": text}).json()["tokens"] for text in TEXTS]
    wanted = embed(site, model, TEXTS)
    assert np.array_equal(embed(site, model, ids), wanted)
    assert np.array_equal(embed(site, model, ids[2]), wanted[2:3])
    assert np.array_equal(embed(site, model, TEXTS[1]), wanted[1:2])
    assert np.array_equal(embed(site, model, TEXTS[::-1]), wanted[::-1])
    usage = site.client().embeddings.create(model=model, input=TEXTS).usage
    assert usage.prompt_tokens == usage.total_tokens == sum(map(len, ids))


def test_29_dimensions_pooling_and_length(site: Site) -> None:
    whole = embed(site, "talker", TEXTS)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    cut = embed(site, "talker", TEXTS, dimensions=5)
    np.testing.assert_allclose(cut, whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True), atol=1e-6)
    assert np.array_equal(embed(site, "talker", TEXTS, dimensions=32), whole)
    raw = embed(site, "talker", TEXTS, extra_body={"normalize": False})
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), whole, atol=1e-6)
    last = embed(site, "talker", TEXTS, extra_body={"pooling": "last"})
    assert not np.allclose(last[0], whole[0]) and np.array_equal(last[0], last[3])
    assert embed(site, "other", "a", dimensions=16).shape == (1, 16)
    for model, options, param in (
        ("talker", {"dimensions": 33}, "dimensions"),
        ("talker", {"dimensions": 0}, "dimensions"),
        ("other", {"dimensions": 9}, "dimensions"),
        ("talker", {"extra_body": {"pooling": "cls"}}, "pooling"),
        ("talker", {"extra_body": {"pooling": "max"}}, "pooling"),
        ("talker", {"encoding_format": "hex"}, "encoding_format"),
        ("talker", {"extra_body": {"truncate": True}}, "truncate"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            embed(site, model, "a", **options)  # type: ignore[arg-type]
        assert caught.value.param == param, options


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("", "input"), ([], "input"), ([""], "input[0]"), (["a", ""], "input"), ([[]], "input"), ([[1], []], "input"),
        ([-1], "input"), ([10**9], "input"), ([[1], [10**6]], "input[1]"), ([1.5], "input"), (["a", 1], "input"),
        (None, "input"), ({"text": "a"}, "input"), (["a"] * 2049, "input"), ([True], "input"), (7, "input"),
    ],
)  # fmt: skip
def test_29_what_is_no_input_is_refused_by_name(site: Site, given: Any, param: str) -> None:
    response = site.post("/v1/embeddings", {"model": "talker", "input": given})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert str(error["param"]).startswith(param.partition("[")[0]), error
    assert len(error["message"]) < 400


def test_what_is_empty_or_too_small_is_named_itself_and_not_its_form(site: Site) -> None:
    for given, param, fault in (
        ("", "input", "must have at least 1 character"),
        (["a", ""], "input[1]", "must have at least 1 character"),
        ([1, -1], "input[1]", "must be greater than or equal to 0"),
        (7, "input", "must be str or list[str]"),
    ):
        error = site.post("/v1/embeddings", {"model": "talker", "input": given}).json()["error"]
        assert (error["param"], error["message"].startswith(f"{param} {fault}")) == (param, True), error
    for document, param, fault in (
        ("", "documents[0]", "must have at least 1 character"),
        ({"text": ""}, "documents[0].text", "must have at least 1 character"),
        ({"title": "x"}, "documents[0].text", "is required"),
        (3, "documents[0]", "must be str or an object"),
    ):
        error = site.post("/v1/rerank", {"model": "judge", "query": "q", "documents": [document]}).json()["error"]
        assert (error["param"], error["message"].startswith(f"{param} {fault}")) == (param, True), error


@pytest.mark.parametrize(("model", "most"), [("talker", 256), ("encoder", POSITIONS)])
def test_29_too_long_is_refused_with_the_figures(site: Site, model: str, most: int) -> None:
    assert embed(site, model, [[5] * most]).shape[0] == 1, "as long as the context is not too long"
    with pytest.raises(openai.BadRequestError) as caught:
        embed(site, model, [[5], [5] * (most + 1)])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "input[1]"
    assert f"This model's maximum context length is {most} tokens." in caught.value.message
    assert str(most + 1) in caught.value.message
    response = site.post("/v1/embeddings", {"model": model, "input": "x " * 5_000_000})
    assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"


def test_29_many_inputs_need_no_room_in_the_queue(site: Site) -> None:
    """The queue of this model holds six requests, fewer than a batch submits at once; three hundred come back."""
    many = [f"{i} loaves" for i in range(300)]
    refused = site.metrics().get("armillary_rejected_total", 0.0)
    found = embed(site, "talker", many)
    assert found.shape == (300, 32) and np.array_equal(found, embed(site, "wide", many))
    assert np.array_equal(embed(site, "talker", many[17]), found[17:18])
    assert site.metrics().get("armillary_rejected_total", 0.0) == refused
    site.quiet()


def test_29_batches_that_contend_for_a_short_queue_end_whole_or_not_at_all(site: Site) -> None:
    """Who has begun is served to the end; who finds no room at all is told to come back."""
    many = [f"{i} loaves" for i in range(60)]
    wanted = embed(site, "wide", many)

    def one(_: int) -> bool:
        try:
            assert np.array_equal(embed(site, "talker", many), wanted)
        except openai.RateLimitError as error:
            assert "retry-after" in error.response.headers
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert any(pool.map(one, range(4)))


def test_29_neighbours_do_not_change_a_bit(site: Site) -> None:
    wanted = {model: embed(site, model, TEXTS) for model in ("wide", "encoder")}

    def noise(i: int) -> object:
        if i % 2:
            return embed(
                site, ("wide", "encoder")[i % 4 // 2], ["n" * (i + 1), "other words", TEXTS[0][:i]][: i % 3 + 1]
            )
        return site.client().completions.create(model="wide", prompt="T" * (i + 1), max_tokens=20)

    with ThreadPoolExecutor(8) as pool:
        crowd = [pool.submit(noise, i) for i in range(1, 30)]
        again = [(model, pool.submit(embed, site, model, TEXTS)) for model in wanted for _ in range(4)]
        for model, future in again:
            assert np.array_equal(future.result(60), wanted[model])
        for future in crowd:
            future.result(60)


def test_29_a_client_that_leaves_leaves_nothing_behind(site: Site) -> None:
    body = json.dumps({"model": "talker", "input": [[i % 100] * 200 for i in range(400)]}).encode()
    host, _, port = site.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until = time.monotonic() + 120
        while not any(v for k, v in site.metrics().items() if k.startswith("armillary_sequences_running")):
            assert time.monotonic() < until
    until = time.monotonic() + 120
    gauges = ("armillary_sequences_running", "armillary_sequences_waiting", "armillary_kv_blocks_used")
    while any(value for name, value in site.metrics().items() if name.startswith(gauges)):
        assert time.monotonic() < until
        time.sleep(0.02)
    ends = [v for k, v in site.metrics().items() if "requests_total" in k and "embeddings" in k and "cancelled" in k]
    assert sum(ends) >= 1
    assert embed(site, "talker", "a").shape == (1, 32)


def test_an_encoder_generates_nothing_and_says_so(site: Site) -> None:
    client = site.client()
    for model, hint in (("encoder", "/v1/embeddings"), ("judge", "/v1/rerank")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}])
        assert hint in caught.value.message and caught.value.param == "model"
        with pytest.raises(openai.BadRequestError, match="encoder"):
            client.completions.create(model=model, prompt="Hello")
        with pytest.raises(openai.BadRequestError, match="encoder"):
            client.responses.create(model=model, input="Hello")
        response = site.post(
            "/v1/messages", {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
        )
        assert response.status_code == 400 and "encoder" in response.text
    with pytest.raises(openai.BadRequestError) as caught:
        embed(site, "judge", "a")
    assert "/v1/rerank" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        embed(site, "nobody", "a")


def test_the_timeline_and_the_list_know_them(site: Site) -> None:
    answer = site.client().embeddings.with_raw_response.create(model="encoder", input=TEXTS)
    assert answer.headers["x-request-id"]
    assert "encoder" in [model.id for model in site.client().models.list()]
    recent = site.get("/v1/requests").json()
    assert "embeddings" in json.dumps(recent)


# ---------------------------------------------------------------- reranking

QUERY = "How long does the ferry take?"
DOCUMENTS = ["A loaf costs 4 crowns.", "The ferry takes three hours.", "naïve café", "A loaf costs 4 crowns."]


def rerank(site: Site, model: str, path: str = "/v1/rerank", **options: Any) -> dict[str, Any]:
    body = {"model": model, "query": QUERY, "documents": DOCUMENTS, **options}
    response = site.post(path, {key: value for key, value in body.items() if value is not ...})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_cross_encoder_scores_as_in_transformers(site: Site) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = Path(site.deployment.models[2].path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    answer = rerank(site, "judge")
    assert answer["method"] == "cross-encoder" and answer["model"] == "judge"
    found = {result["index"]: result["relevance_score"] for result in answer["results"]}
    tokens = 0
    for place, document in enumerate(DOCUMENTS):
        given = tokenizer(QUERY, document, return_tensors="pt", return_token_type_ids=True)
        tokens += given["input_ids"].shape[1]
        with torch.inference_mode():
            wanted = torch.sigmoid(site.oracles["judge"](**given).logits[0, 0]).item()
        assert abs(found[place] - wanted) < 1e-4
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    order = [result["index"] for result in answer["results"]]
    assert order.index(0) < order.index(3) and found[0] == found[3], "equal documents keep their order"
    alone = rerank(site, "judge", documents=[DOCUMENTS[2]])["results"][0]["relevance_score"]
    assert alone == found[2]


@pytest.mark.parametrize("model", ["talker", "encoder", "other"])
def test_a_model_that_scores_no_pairs_compares_vectors(site: Site, model: str) -> None:
    answer = rerank(site, model)
    assert answer["method"] == "cosine"
    vectors = embed(site, model, [QUERY, *DOCUMENTS])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for result in answer["results"]:
        assert abs(result["relevance_score"] - vectors[0] @ vectors[1 + result["index"]]) < 1e-5


def test_what_results_carry(site: Site) -> None:
    full = rerank(site, "judge")
    assert [r["document"]["text"] for r in full["results"]] == [DOCUMENTS[r["index"]] for r in full["results"]]
    two = rerank(site, "judge", top_n=2, return_documents=False)
    assert [r["index"] for r in two["results"]] == [r["index"] for r in full["results"]][:2]
    assert all("document" not in result for result in two["results"])
    assert len(rerank(site, "judge", top_n=100)["results"]) == 4
    objects = rerank(site, "judge", documents=[{"text": text, "id": i} for i, text in enumerate(DOCUMENTS)])
    assert [r["document"]["id"] for r in objects["results"]] == [r["index"] for r in full["results"]]
    for path in ("/rerank", "/v2/rerank"):
        assert rerank(site, "judge", path)["results"] == full["results"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"query": ""}, "query"), ({"query": ...}, "query"), ({"documents": []}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"), ({"documents": [{"title": "x"}]}, "documents[0]"),
        ({"documents": "a"}, "documents"), ({"documents": ["a"] * 1025}, "documents"), ({"top_n": 0}, "top_n"),
        ({"documents": ["a", "x " * 100]}, "documents[1]"), ({"rank_fields": ["a"]}, "rank_fields"),
        ({"query": "x " * 100}, "documents[0]"), ({"documents": [3]}, "documents[0]"),
    ],
)  # fmt: skip
def test_what_cannot_be_ranked_is_refused_by_name(site: Site, options: dict[str, Any], param: str) -> None:
    body = {"model": "judge", "query": QUERY, "documents": DOCUMENTS, **options}
    response = site.post("/v1/rerank", {key: value for key, value in body.items() if value is not ...})
    assert response.status_code == 400, response.text
    assert str(response.json()["error"]["param"]).startswith(param), response.text


def test_an_encoder_sleeps_and_wakes(site: Site) -> None:
    before = embed(site, "other", TEXTS)
    site.change("sleep", "other")
    with pytest.raises(openai.InternalServerError):
        embed(site, "other", TEXTS)
    site.change("wake", "other")
    assert np.array_equal(embed(site, "other", TEXTS), before)
    assert threading.active_count() < 60
