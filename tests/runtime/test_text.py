"""Text a token at a time: the pieces join to the whole, nothing half-made comes out, stop strings do not leak."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.models.tokenizer import Tokenizer
from armillary.runtime.text import StopMatcher, TextStream
from small_tokenizers import BYTE_LEVEL_CONFIG, SENTENCEPIECE_CONFIG, byte_level, sentencepiece, write_tokenizer


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "byte_level":
        return Tokenizer.from_folder(write_tokenizer(folder, byte_level(), BYTE_LEVEL_CONFIG))
    return Tokenizer.from_folder(write_tokenizer(folder, sentencepiece(), SENTENCEPIECE_CONFIG))


def run(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(token) for token in ids), stream.finish()]


def cut(text: str, stops: list[str]) -> str:
    """What a stream must produce, said plainly: find the stop that is complete first, the longest of those."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@settings(max_examples=150)
@given(data=st.data(), continues=st.booleans(), skip=st.booleans())
def test_pieces_join_to_the_decoded_whole(
    tokenizer: Tokenizer, data: st.DataObject, continues: bool, skip: bool
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    pieces = run(TextStream(tokenizer, continues=continues, skip_special=skip), ids)
    assert "".join(pieces) == tokenizer.decode(ids, continues=continues, skip_special=skip)


@settings(max_examples=150)
@given(text=st.text(max_size=30))
def test_no_replacement_character_before_a_character_is_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False)
    pieces = run(TextStream(tokenizer), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "�" in text or not any("�" in piece for piece in pieces)


@settings(max_examples=150)
@given(data=st.data(), stops=st.lists(st.text("ab 你", min_size=1, max_size=6), min_size=1, max_size=3))
def test_stop_strings_cut_and_never_leak(tokenizer: Tokenizer, data: st.DataObject, stops: list[str]) -> None:
    text = data.draw(st.lists(st.sampled_from([*stops, "a", "b", " ", "你", "é"]), max_size=12).map("".join))
    ids = tokenizer.encode(text, add_special=False)
    text = tokenizer.decode(ids)  # a leading space is lost where the tokenizer cannot tell it from its own
    stream = TextStream(tokenizer, stops)
    expected, seen = cut(text, stops), ""
    for token in ids:
        seen += stream.push(token)
        assert expected.startswith(seen)
    seen += stream.finish()
    assert seen == expected
    assert (stream.stopped is None) == (expected == text and not any(stop in text for stop in stops))


@settings(max_examples=150)
@given(data=st.data())
def test_only_what_may_begin_a_stop_is_held_back(tokenizer: Tokenizer, data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3))
    text = data.draw(st.text("abc", max_size=30))
    stream, given_out, known = TextStream(tokenizer, stops, continues=True), "", ""
    for token in tokenizer.encode(text, add_special=False):
        known += tokenizer.token_text(token)
        given_out += stream.push(token)
        if stream.stopped is not None:
            break
        held = known[len(given_out) :]
        longest = max(
            (k for stop in stops for k in range(len(stop)) if known.endswith(stop[:k])),
            default=0,
        )
        assert len(held) == longest


@settings(max_examples=150)
@given(text=st.text("ab", max_size=60), stop=st.text("ab", min_size=1, max_size=8))
def test_matcher_equals_the_plain_definition(text: str, stop: str) -> None:
    matcher, seen = StopMatcher(stop), ""
    for character in text:
        seen += character
        assert matcher.push(character) == seen.endswith(stop)
        assert matcher.matched == max(k for k in range(len(stop) + 1) if seen.endswith(stop[:k]))


@pytest.mark.parametrize("stops", [["abcd", "bc"], ["bc", "abcd"]])
def test_the_stop_that_is_complete_first_wins_however_tokens_fall(tokenizer: Tokenizer, stops: list[str]) -> None:
    ids = [i for c in "xabcd" for i in tokenizer.encode("-" + c, add_special=False)[-1:]]
    stream = TextStream(tokenizer, stops, continues=True)
    assert "".join(run(stream, ids)) == "xa" and stream.stopped == "bc"
    stream = TextStream(tokenizer, ["bc", "abc"], continues=True)
    assert "".join(run(stream, ids)) == "x" and stream.stopped == "abc"


@pytest.mark.parametrize("mark", list("^]-[\\&~|.*\n$") + ["é", "你", "🙂"])
def test_stops_may_begin_with_any_character(tokenizer: Tokenizer, mark: str) -> None:
    stream = TextStream(tokenizer, [mark + "!", mark * 2])
    ids = tokenizer.encode(f"a{mark}b{mark}!c", add_special=False)
    assert "".join(run(stream, ids)) == f"a{mark}b" and stream.stopped == mark + "!"


def test_nothing_comes_after_a_stop(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["b"])
    ids = tokenizer.encode("abc", add_special=False)
    assert "".join(run(stream, ids)) == "a"
    assert stream.push(ids[-1]) == "" and stream.finish() == ""


def test_min_tokens_delays_stop_strings(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\na\na\na", add_special=False)
    for least in range(len(ids) + 1):
        stream = TextStream(tokenizer, ["\n"], continues=True, min_tokens=least)
        run(stream, ids)
        assert stream.tokens >= least
        assert stream.stopped == "\n" or least > len(ids) - 1


def test_an_incomplete_character_at_the_end_is_replaced_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, byte_level(), BYTE_LEVEL_CONFIG))
    emoji = [tokenizer.token_id(c) or 0 for c in "ðŁĻĤ"]  # 🙂 in GPT-2's byte alphabet
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in emoji] == ["", "", "", "🙂"]
    stream = TextStream(tokenizer)
    assert run(stream, [*emoji[:3]]) == ["", "", "", "�"]
    stream = TextStream(tokenizer)
    assert "".join(run(stream, [*emoji[:2], *tokenizer.encode("x")])) == "�x"


def test_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopMatcher("")
