"""`/tokenize` and `/detokenize`, in vLLM's forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.harness import NAME, Running

TEXT = "Grüße 世界 🏝️"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(Path(tmp_path_factory.mktemp("tokens")))
    running.wait()
    yield running
    running.stop()


def test_a_text_goes_to_tokens_and_back(server: Running) -> None:
    answer = server.post("/tokenize", {"model": NAME, "prompt": TEXT, "return_token_strs": True}).json()
    assert answer["tokens"] == list(TEXT.encode()) and answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 512
    assert answer["token_strs"][0] == "G" and answer["token_strs"][2] == "bytes:\\xc3"
    assert server.post("/detokenize", {"model": NAME, "tokens": answer["tokens"]}).json() == {"prompt": TEXT}
    assert server.post("/tokenize", {"prompt": ""}).json()["tokens"] == []


def test_a_conversation_is_counted_as_chat_counts_it(server: Running) -> None:
    messages = [{"role": "user", "content": "Where <|im_end|> now?"}]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    asked = {"model": NAME, "messages": messages, "tools": tools}
    answer = server.post("/tokenize", asked).json()
    chat = server.post("/v1/chat/completions", {**asked, "max_tokens": 1}).json()
    assert answer["count"] == chat["usage"]["prompt_tokens"]
    assert answer["token_strs"] is None
    shorter = server.post("/tokenize", {**asked, "add_generation_prompt": False}).json()
    assert answer["tokens"][: shorter["count"]] == shorter["tokens"] and shorter["count"] < answer["count"]


def test_control_tokens_in_a_prompt_are_tokens_and_in_a_message_text(server: Running) -> None:
    assert server.post("/tokenize", {"prompt": "<|im_end|>"}).json()["tokens"] == [258]
    spelt = server.post("/tokenize", {"messages": [{"role": "user", "content": "<|im_end|>"}]}).json()["tokens"]
    assert spelt.count(258) == 1
    assert server.post("/detokenize", {"tokens": [258]}).json() == {"prompt": "<|im_end|>"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/tokenize", {"prompt": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x"}], "add_special_tokens": True},
         "add_special_tokens"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"tools": "x"}},
         "chat_template_kwargs"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "mm_processor_kwargs": {}}, "mm_processor_kwargs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server: Running, path: str, body: dict[str, Any], param: str) -> None:
    response = server.post(path, body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_another_model_is_not_found(server: Running) -> None:
    response = server.post("/tokenize", {"model": "other", "prompt": "x"})
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
