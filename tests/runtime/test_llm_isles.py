"""The bundled model through the Python interface: the same tokens and text as transformers, greedily."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from armillary import LLM, SamplingParams
from armillary.models.locate import locate

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 34 + 27?"}],
    [{"role": "user", "content": "Sort these numbers from small to large: 5, 3, 9."}],
    [
        {"role": "system", "content": "You know the Isles."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello! Ask me a question."},
        {"role": "user", "content": "Who are you?"},
    ],
]
GREEDY = SamplingParams(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("isles", dtype="float32", kv_blocks=64, max_step_tokens=32, max_running=4, max_context=512) as made:
        yield made


def test_chat_equals_transformers(llm: LLM) -> None:
    folder = locate("isles")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for messages, output in zip(CONVERSATIONS, llm.chat(CONVERSATIONS, GREEDY), strict=True):
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length = prompt["input_ids"].shape[1]
        expected = model.generate(**prompt, do_sample=False, max_new_tokens=40)[0]
        assert output.prompt_token_ids == expected[:length].tolist()
        assert output.token_ids == expected[length:].tolist()
        assert output.text == tokenizer.decode(expected[length:], skip_special_tokens=True)


def test_stream_equals_batch(llm: LLM) -> None:
    async def joined(messages: list[dict[str, Any]]) -> str:
        return "".join([piece.text async for piece in llm.stream(messages, GREEDY)])

    async def all_at_once() -> list[str]:
        return list(await asyncio.gather(*(joined(messages) for messages in CONVERSATIONS)))

    assert asyncio.run(all_at_once()) == [output.text for output in llm.chat(CONVERSATIONS, GREEDY)]
