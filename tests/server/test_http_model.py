"""Sampling and logprobs (behaviours 6, 7 and 20 to 24) through the whole stack, on a small random model.

The pool is small and prompts are chunked, so that neighbours, preemptions and prefix hits all occur; the
answers must not show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from server.harness import NAME, Running, torch_executor, write_model

ASK = [{"role": "user", "content": "Where are the Isles?"}]
BLOCKS, BLOCK = 40, 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = Path(tmp_path_factory.mktemp("model"))
    write_model(folder)
    running = Running(
        folder,
        torch_executor(folder, BLOCKS, BLOCK),
        num_blocks=BLOCKS,
        block_size=BLOCK,
        max_context=256,
        max_running=24,
        max_step_tokens=48,
        max_chunk_tokens=12,
    )
    running.wait()
    yield running
    running.stop()


def chat(server: Running, **options: Any) -> openai.types.chat.ChatCompletion:
    asked = {"model": NAME, "messages": ASK, "max_tokens": 24, "extra_body": {"ignore_eos": True}, **options}
    return server.client().chat.completions.create(**asked)


def said(answer: openai.types.chat.ChatCompletion) -> list[tuple[bytes, float]]:
    """Tokens and logprobs of the first choice, exactly."""
    assert answer.choices[0].logprobs is not None
    return [(bytes(t.bytes or []), t.logprob) for t in answer.choices[0].logprobs.content or []]


def tokens(answer: openai.types.chat.ChatCompletion, choice: int = 0) -> tuple[bytes, ...]:
    logprobs = answer.choices[choice].logprobs
    assert logprobs is not None
    return tuple(bytes(token.bytes or []) for token in logprobs.content or [])


def test_21_choices_differ_unless_greedy(server: Running) -> None:
    warm = chat(server, n=4, temperature=1, seed=3, logprobs=True)
    assert [choice.index for choice in warm.choices] == [0, 1, 2, 3]
    assert len({tokens(warm, i) for i in range(4)}) == 4
    cold = chat(server, n=4, temperature=0, logprobs=True)
    assert len({tokens(cold, i) for i in range(4)}) == 1
    for n in (0, 129, 10**6):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, n=n)
        assert caught.value.param == "n"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_22_neighbours_do_not_change_a_seeded_answer(server: Running, temperature: float) -> None:
    asked = {"seed": 7, "temperature": temperature, "logprobs": True, "max_tokens": 40}
    alone = said(chat(server, **asked))
    before = server.metrics()

    def noise(i: int) -> object:
        other = [{"role": "user", "content": "n" * (7 * i % 60 + 1)}]
        return chat(server, messages=other, max_tokens=30 + i, n=1 + i % 3, temperature=1)

    with ThreadPoolExecutor(12) as pool:
        crowd = [pool.submit(noise, i) for i in range(20)]
        again = [pool.submit(chat, server, **asked) for _ in range(6)]
        assert [said(future.result(60)) for future in again] == [alone] * 6
        for future in crowd:
            future.result(60)
    after = server.metrics()
    for name in ("armillary_preemptions_total", "armillary_prefix_hit_tokens_total", "armillary_block_copies_total"):
        assert after[name] > before[name], f"{name}: the rare paths must have been taken"


def test_22_seeds(server: Running) -> None:
    assert len({tokens(chat(server, seed=s, temperature=1, logprobs=True)) for s in range(6)}) == 6
    assert len({tokens(chat(server, temperature=1, logprobs=True)) for _ in range(4)}) == 4, (
        "unset: a new one each time"
    )
    for seed in (-(2**63), 2**63 - 1):
        assert said(chat(server, seed=seed, logprobs=True)) == said(chat(server, seed=seed, logprobs=True))
    fingerprints = {chat(server, seed=s, max_tokens=1).system_fingerprint for s in range(2)}
    assert len(fingerprints) == 1 and None not in fingerprints


def test_23_ranges(server: Running) -> None:
    for field, bad, good in (
        ("temperature", (-0.1, 2.1), (0, 2)),
        ("top_p", (0, -1, 1.1), (0.01, 1)),
        ("presence_penalty", (-2.1, 2.1), (-2, 2)),
        ("frequency_penalty", (-2.1, 2.1), (-2, 2)),
    ):
        for value in bad:
            with pytest.raises(openai.BadRequestError) as caught:
                chat(server, **{field: value})
            assert caught.value.param == field
        for value in good:
            chat(server, max_tokens=2, **{field: value})
    for bias in ({"5": 101}, {"5": -101}, {str(10**6): 1}, {"x": 1}):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, logit_bias=bias)
        assert str(caught.value.param).startswith("logit_bias")


def test_23_bias_forbids_and_forces(server: Running) -> None:
    greedy = chat(server, temperature=0, logprobs=True, max_tokens=8)
    first = tokens(greedy)[0][0]
    without = chat(server, temperature=0, logprobs=True, max_tokens=8, logit_bias={str(first): -100})
    assert first not in b"".join(tokens(without))
    only = chat(server, temperature=1, logprobs=True, max_tokens=8, logit_bias={"65": 100})
    assert only.choices[0].message.content == "A" * 8


def test_23_cold_is_greedy_and_extensions_work(server: Running) -> None:
    cold = said(chat(server, temperature=0, logprobs=True))
    greedy = [said(chat(server, temperature=0, logprobs=True, seed=s)) for s in (1, 2)]
    assert greedy == [cold, cold]
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        forced = chat(server, temperature=1.5, logprobs=True, extra_body={"ignore_eos": True, **extra})
        assert said(forced) == cold
    assert said(chat(server, temperature=1.5, top_p=1e-6, logprobs=True)) == cold
    penalised = chat(server, temperature=0, logprobs=True, frequency_penalty=2, presence_penalty=2, max_tokens=40)
    repeated = chat(server, temperature=0, logprobs=True, max_tokens=40)
    assert len(set(tokens(penalised))) > len(set(tokens(repeated)))


def test_20_the_end_token_its_minimum_and_ignoring_it(server: Running) -> None:
    forced = {"logit_bias": {"258": 100}, "temperature": 0, "max_tokens": 9, "logprobs": True}
    ended = chat(server, **forced, extra_body={})
    assert ended.choices[0].finish_reason == "stop" and ended.choices[0].message.content == ""
    assert ended.usage is not None and ended.usage.completion_tokens == 1 and tokens(ended) == ()
    later = chat(server, **forced, extra_body={"min_tokens": 5})
    assert later.choices[0].finish_reason == "stop" and later.usage is not None and later.usage.completion_tokens == 6
    ignored = chat(server, **forced, extra_body={"ignore_eos": True})
    assert ignored.choices[0].finish_reason == "length" and ignored.choices[0].message.content == ""


def test_24_logprobs_are_of_a_distribution(server: Running) -> None:
    content = chat(server, temperature=0, logprobs=True, top_logprobs=20).choices[0].logprobs.content or []
    for token in content:
        listed = [top.logprob for top in token.top_logprobs]
        assert listed == sorted(listed, reverse=True) and all(math.isfinite(p) and p <= 0 for p in listed)
        assert sum(map(math.exp, listed)) <= 1 + 1e-6
        assert token.logprob == listed[0] and token.bytes == token.top_logprobs[0].bytes, "greedy takes the likeliest"


def test_24_the_same_tokens_have_the_same_logprobs_as_prompt_and_as_answer(server: Running) -> None:
    """What evaluation harnesses rely on: echo with logprobs and no new tokens scores a text."""
    create = server.client().completions.create
    prompt = list(b"Isles")
    extra = {"ignore_eos": True}
    made = create(model=NAME, prompt=prompt, max_tokens=12, temperature=0, logprobs=3, extra_body=extra).choices[0]
    assert made.logprobs is not None
    told = chat_tokens(made.logprobs.tokens)
    scored = create(model=NAME, prompt=prompt + told, max_tokens=0, echo=True, logprobs=3).choices[0].logprobs
    assert scored is not None
    assert scored.tokens[5:] == made.logprobs.tokens
    assert scored.token_logprobs[5:] == pytest.approx(made.logprobs.token_logprobs, abs=1e-4)


def chat_tokens(listed: list[str]) -> list[int]:
    """Token ids of this byte-sized vocabulary, from how logprobs spell them."""
    ids = []
    for text in listed:
        if text.startswith("bytes:"):
            ids.append(int(text.removeprefix("bytes:\\x"), 16))
        elif text.startswith("<|"):
            ids.append({"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}[text])
        else:
            ids.extend(text.encode())
    return ids


@pytest.mark.parametrize("options", [{}, {"logprobs": True, "top_logprobs": 4}, {"n": 2, "stop": ["e", "é"]}])
def test_06_stream_equals_whole(server: Running, options: dict[str, Any]) -> None:
    asked = {"seed": 9, "temperature": 0.8, "max_tokens": 60, **options}
    whole = chat(server, **asked)
    texts = [""] * len(whole.choices)
    entries: list[list[Any]] = [[] for _ in texts]
    for chunk in chat(server, stream=True, **asked):  # type: ignore[union-attr]
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            entries[choice.index] += (choice.logprobs.content or []) if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert entries == [(choice.logprobs.content or []) if choice.logprobs else [] for choice in whole.choices]


def test_07_an_exact_repeat_is_cached(server: Running) -> None:
    ask = [{"role": "user", "content": "A text of several blocks that nobody has sent before."}]
    first, again = (chat(server, messages=ask, temperature=0, logprobs=True) for _ in range(2))
    assert first.usage is not None and again.usage is not None and again.usage.prompt_tokens_details is not None
    assert 0 < (again.usage.prompt_tokens_details.cached_tokens or 0) <= again.usage.prompt_tokens
    assert said(first) == said(again)
