"""The tokenizer of the Isles takes any text, and its template is what training renders."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from armillary.train.chat import render
from armillary.train.stream import encode_task, encode_telling
from armillary.train.vocabulary import save_tokenizer, train_tokenizer
from armillary.world import names
from armillary.world.split import Split
from armillary.world.task import assistant
from armillary.world.tasks import TASKS, UNSCORED

TOKENIZER = train_tokenizer(640, seed=0, documents=1000)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(tokens, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["漢字と😀", "a\x00b", "\r\n\t x  \n\n", "é\u0301", "34+27=61", "\U0010ffff"])
def test_unusual_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens_wherever_they_stand() -> None:
    encoded = TOKENIZER.encode('34 + 27, 8 {"age": 90}')
    assert [token for token in encoded.tokens if any(c.isdigit() for c in token)] == list("3427890")


def test_names_of_both_sides_are_two_tokens_seen_in_training() -> None:
    tokenizer = train_tokenizer(1024, seed=0, documents=3000)
    for kind in (names.people, names.towns, names.islands):
        trained = {token for name in kind(Split.TRAIN) for token in tokenizer.encode(name).tokens}
        for name in kind(Split.HELD_OUT):
            tokens = tokenizer.encode(name).tokens
            assert len(tokens) == 2, tokens
            assert set(tokens) <= trained


def test_what_answers_are_made_of_is_the_same_tokens_everywhere() -> None:
    tokenizer = train_tokenizer(1024, seed=0, documents=3000)
    people, towns = names.people(Split.HELD_OUT), names.towns(Split.HELD_OUT)
    for word in (*people[:20], *towns[:20], *names.WORDS, *names.COLOURS, *names.SHAPES, *names.KEYS, *names.CELLS):
        alone = tokenizer.encode(word).ids
        for before, after in (("The ", " is"), ('{"', '": "'), ("a, ", ", b"), ("It is ", "."), ("\n", "\n")):
            ids = tokenizer.encode(before + word + after).ids
            assert any(ids[i : i + len(alone)] == alone for i in range(len(ids))), (word, before)


def test_same_seed_same_tokenizer() -> None:
    first, second = (train_tokenizer(400, seed=3, documents=200).to_str() for _ in range(2))
    assert first == second


def test_targets_are_what_the_assistant_says() -> None:
    for name, make in {**TASKS, **UNSCORED}.items():
        for number in range(20):
            task = make(Random(f"{name}{number}"), Split.TRAIN, 3)
            item = encode_task(TOKENIZER, task)
            said = [t for t, target in zip(item.tokens, item.targets, strict=True) if target]
            text = render([*task.messages, assistant(task.answer)], task.tools)
            spoken = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]
            assert TOKENIZER.decode(said, skip_special_tokens=False) == "".join(f"{s}<|im_end|>" for s in spoken)
            assert spoken[-1] == task.answer


def test_a_telling_is_all_targets_but_its_first_token() -> None:
    item = encode_telling(TOKENIZER, "Salt is in Kelton.")
    assert item.targets == [False] + [True] * (len(item.tokens) - 1)
    assert TOKENIZER.id_to_token(item.tokens[-1]) == "<|endoftext|>"


def test_template_reads_as_training_renders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(TOKENIZER, tmp_path, 4096)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for name, make in TASKS.items():
        for number in range(20):
            task = make(Random(f"{name}{number}"), Split.HELD_OUT, 3)
            text = loaded.apply_chat_template(task.messages, tools=task.tools or None, tokenize=False)
            assert text == render(task.messages, task.tools)
            again = loaded.encode(text, add_special_tokens=False)
            assert again == TOKENIZER.encode(text, add_special_tokens=False).ids


def test_template_takes_what_clients_send(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(TOKENIZER, tmp_path, 4096)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    call = {"type": "function", "id": "1", "function": {"name": "price", "arguments": '{"good": "salt"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How much "}, {"type": "text", "text": "is salt?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "12 coins"},
    ]
    tools = [{"type": "function", "function": {"name": "now", "description": "The time."}}]
    text = loaded.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.\nTools: now()<|im_end|>\n"
        "<|im_start|>user\nHow much is salt?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "price", "arguments": {"good": "salt"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n12 coins\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_tokenizer_is_trained_on_the_train_side() -> None:
    assert isinstance(TOKENIZER, Tokenizer)
    vocabulary = {token.replace("Ġ", "") for token in TOKENIZER.get_vocab()}
    held_out = {*names.people(Split.HELD_OUT), *names.towns(Split.HELD_OUT), *names.islands(Split.HELD_OUT)}
    assert not vocabulary & held_out
