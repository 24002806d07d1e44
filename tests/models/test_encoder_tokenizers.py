"""Tokenizers of encoders: what transformers makes of a text or a pair is what we make of it; markers stay text."""

from __future__ import annotations

from pathlib import Path

import pytest

from armillary.models.tokenizer import Tokenizer
from encoders import write_tokenizer

FIRST = "The ferry from Port Ellin takes three hours."
SECOND = "A loaf costs 4 crowns, naïve café"


def both(name: str, folder: Path) -> tuple[Tokenizer, object]:
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(name, folder)
    return Tokenizer.from_folder(folder), PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
def test_texts_and_pairs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    ours, theirs = both(name, tmp_path)
    assert ours.encode(FIRST) == theirs(FIRST)["input_ids"]  # type: ignore[operator]
    wanted = theirs(FIRST, SECOND, return_token_type_ids=True)  # type: ignore[operator]
    ids, begins = ours.encode_pair(FIRST, SECOND)
    assert ids == wanted["input_ids"]
    kinds = wanted["token_type_ids"]
    assert kinds == ([0] * len(ids) if begins is None else [0] * begins + [1] * (len(ids) - begins))
    assert (begins is None) == (name != "bert")


@pytest.mark.parametrize(("name", "marker"), [("bert", "[SEP]"), ("xlm-roberta", "</s>"), ("roberta", "</s>")])
def test_a_text_cannot_write_the_marker_between_texts(name: str, marker: str, tmp_path: Path) -> None:
    write_tokenizer(name, tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    found = tokenizer.token_id(marker)
    honest, begins = tokenizer.encode_pair("a b", "c d")
    forged, moved = tokenizer.encode_pair(f"a {marker} b", f"c {marker}{marker} d")
    assert forged.count(found) == honest.count(found) == tokenizer.encode_pair("", "")[0].count(found)
    assert tokenizer.encode(f"x {marker} y").count(found) == tokenizer.encode("x y").count(found)
    if begins is not None and moved is not None:
        assert forged[moved - 1] == honest[begins - 1] == found


def test_pieces_of_words_become_text_again(tmp_path: Path) -> None:
    write_tokenizer("bert", tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode("The ferry takes hours")) == "the ferry takes hours"
