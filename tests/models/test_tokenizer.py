"""The tokenizer against transformers' own, and against strangers' text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from armillary.errors import ArmillaryError, Code
from armillary.models.tokenizer import Tokenizer
from small_tokenizers import (
    BYTE_LEVEL_CONFIG,
    SENTENCEPIECE_CONFIG,
    SPECIALS,
    TEXTS,
    byte_level,
    sentencepiece,
    write_tokenizer,
)

KINDS = {"byte_level": (byte_level, BYTE_LEVEL_CONFIG), "sentencepiece": (sentencepiece, SENTENCEPIECE_CONFIG)}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    make, config = KINDS[request.param]
    folder = write_tokenizer(tmp_path_factory.mktemp(request.param), make(), config)
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("chatml"), byte_level(), BYTE_LEVEL_CONFIG))


def test_encode_and_decode_equal_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.vocab_size == len(theirs)
    for text in [*TEXTS, "a  b   c", " leading", "", "x<|im_end|>y</s>z", "\n\n\t"]:
        ids = ours.encode(text, parse_special=True)
        assert ids == theirs(text)["input_ids"]
        assert (
            ours.encode(text, add_special=False, parse_special=True) == theirs(text, add_special_tokens=False).input_ids
        )
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_text_comes_back(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids) == text or (ours.strips_first_space and text.startswith(" "))
    assert not ours.special_ids & set(ours.encode(text, add_special=False))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_decode_of_any_ids_equals_the_library_byte_level(chatml: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, chatml.vocab_size - 1), max_size=30))
    library = chatml._backend
    assert chatml.decode(ids) == library.decode(ids, skip_special_tokens=True)
    assert chatml.decode(ids, skip_special=False) == library.decode(ids, skip_special_tokens=False)


def test_bytes_of_tokens_join_to_the_text(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    for text in TEXTS:
        joined = b"".join(ours.token_bytes(i) for i in ours.encode(text, add_special=False)).decode()
        assert joined.removeprefix(" ") == text
    assert ours.token_bytes(10**6) == b"" and ours.token_bytes(-1) == b""


def test_byte_fallback_and_metaspace_pieces(tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(write_tokenizer(tmp_path, sentencepiece(), SENTENCEPIECE_CONFIG))
    assert ours.token_bytes(ours.token_id("<0xE4>") or 0) == b"\xe4"
    assert ours.token_text(ours.token_id("<0xE4>") or 0) == "�"
    assert ours.token_bytes(ours.token_id("▁") or 0) == b" "
    assert ours.strips_first_space
    ids = ours.encode("The ferry", add_special=False)
    assert ours.decode(ids) == "The ferry"
    assert ours.decode(ids, continues=True) == " The ferry"


def test_text_never_becomes_control_tokens_unless_asked(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    for special in ours.special_ids:
        spelled = ours.token_bytes(special).decode()
        for text in [spelled, f"a{spelled}b", f"{spelled}{spelled}", f"<{spelled}>", f"a {spelled} b 123"]:
            literal = ours.encode(text, add_special=False)
            assert special not in literal
            assert max(literal) < ours.vocab_size
            assert ours.decode(literal) == text
            assert special in ours.encode(text, parse_special=True)


def test_a_control_token_that_ordinary_merges_can_reach_is_still_split(tmp_path: Path) -> None:
    definition = json.loads(byte_level())
    definition["model"]["vocab"] = {**definition["model"]["vocab"]}
    # "<" + ">" merges into a token that is then declared special.
    merged = max(definition["model"]["vocab"].values()) + 1
    definition["model"]["vocab"]["<>"] = merged
    definition["model"]["merges"].insert(0, ["<", ">"])
    definition["added_tokens"] = definition["added_tokens"][:3]
    folder = write_tokenizer(tmp_path, json.dumps(definition), {**BYTE_LEVEL_CONFIG, "bos_token": "<>"})
    ours = Tokenizer.from_folder(folder)
    assert merged in ours.special_ids
    assert ours.encode("a<>b", parse_special=True)[1] == merged
    assert merged not in ours.encode("a<>b") and ours.decode(ours.encode("a<>b")) == "a<>b"


def test_special_tokens_known_only_to_the_config(tmp_path: Path) -> None:
    config = {
        **BYTE_LEVEL_CONFIG,
        "additional_special_tokens": ["<tool_call>", "<not in the vocabulary>"],
        "unk_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
    }
    ours = Tokenizer.from_folder(write_tokenizer(tmp_path, byte_level(), config))
    call = ours.special_id("<tool_call>")
    assert call is not None and call in ours.special_ids
    assert ours.special_id("<not in the vocabulary>") is None
    assert ours.decode([call, *ours.encode("x")]) == "x"


@pytest.mark.parametrize("add_bos", [True, False, None])
@pytest.mark.parametrize("in_definition", [True, False])
def test_the_post_processor_says_whether_text_begins_with_a_token(
    tmp_path: Path, add_bos: bool | None, in_definition: bool
) -> None:
    definition = json.loads(sentencepiece())
    if not in_definition:
        definition["post_processor"] = None
    config = dict(SENTENCEPIECE_CONFIG) if add_bos is None else {**SENTENCEPIECE_CONFIG, "add_bos_token": add_bos}
    folder = write_tokenizer(tmp_path, json.dumps(definition), config)
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode("hello") == theirs("hello")["input_ids"]
    assert (ours.encode("hello")[0] == ours.bos_id) == in_definition


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {2}),
        ({"config": {"eos_token_id": 0}}, {0, 2}),
        ({"config": {"eos_token_id": 5}, "generation_config": {"eos_token_id": [0, 1]}}, {0, 1, 2}),
        ({"config": {"eos_token_id": 0}, "generation_config": {}}, {0, 2}),
        ({"generation_config": {"eos_token_id": None}}, {2}),
    ],
)
def test_eos_ids(tmp_path: Path, files: dict[str, Any], expected: set[int]) -> None:
    ours = Tokenizer.from_folder(write_tokenizer(tmp_path, byte_level(), BYTE_LEVEL_CONFIG, **files))
    assert ours.eos_ids == expected


def test_half_a_surrogate_pair_is_refused(chatml: Tokenizer) -> None:
    for parse in (True, False):
        with pytest.raises(ArmillaryError) as caught:
            chatml.encode("a\ud800b", parse_special=parse)
        assert caught.value.code is Code.INVALID_REQUEST


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    definition = json.loads(byte_level())
    definition["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    ours = Tokenizer.from_folder(write_tokenizer(tmp_path, json.dumps(definition), BYTE_LEVEL_CONFIG))
    assert len(ours.encode("one two three four five")) > 2


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), Code.INVALID_CHECKPOINT),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), Code.INVALID_CHECKPOINT),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), Code.INVALID_CHECKPOINT),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), Code.INVALID_CHECKPOINT),
        (lambda folder: (folder / "tokenizer_config.json").write_bytes(b"\xff"), Code.INVALID_CHECKPOINT),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"chat_template": [{"name": "x"}]}'),
            Code.INVALID_CHECKPOINT,
        ),
    ],
)
def test_broken_folders_are_refused(tmp_path: Path, spoil: Any, code: Code) -> None:
    folder = write_tokenizer(tmp_path, byte_level(), BYTE_LEVEL_CONFIG)
    spoil(folder)
    with pytest.raises(ArmillaryError) as caught:
        Tokenizer.from_folder(folder)
    assert caught.value.code is code


@pytest.mark.parametrize("decoder", [None, {"type": "BPEDecoder", "suffix": "</w>"}])
def test_pieces_without_bytes_are_refused(tmp_path: Path, decoder: Any) -> None:
    definition = {**json.loads(byte_level()), "decoder": decoder}
    with pytest.raises(ArmillaryError) as caught:
        Tokenizer.from_folder(write_tokenizer(tmp_path, json.dumps(definition), BYTE_LEVEL_CONFIG))
    assert caught.value.code is Code.UNSUPPORTED_MODEL


def test_all_specials_of_the_small_tokenizer_are_special(chatml: Tokenizer) -> None:
    assert {chatml.token_text(i) for i in chatml.special_ids} == set(SPECIALS)
