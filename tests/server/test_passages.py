"""Passages do not depend on how the parts of an answer were cut, nor on whether it was streamed."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from armillary.server.logprobs import TokenEntry
from armillary.server.passages import Kind, Passages, What
from armillary.server.reply import CallArguments, CallStart, Content, Finish, Reasoning, ReplyDelta

TEXTS = st.text("ab", max_size=3)
SHAPES = st.lists(st.tuples(st.sampled_from(["reasoning", "content", "call"]), st.lists(TEXTS, max_size=4)), max_size=6)


def deltas_of(shape: list[tuple[str, list[str]]]) -> list[ReplyDelta]:
    deltas = []
    calls = 0
    for kind, texts in shape:
        if kind == "call":
            deltas.append(ReplyDelta(0, CallStart(calls, f"id{calls}", "f")))
            deltas += [ReplyDelta(0, CallArguments(calls, text)) for text in texts if text]
            calls += 1
        for text in texts if kind != "call" else ():
            if kind == "reasoning" and text:
                deltas.append(ReplyDelta(0, Reasoning(text)))
            if kind == "content":  # tokens whose text is held back come without any
                deltas.append(ReplyDelta(0, Content(text), [TokenEntry(text.encode(), -1.0, ())]))
    return [*deltas, ReplyDelta(0, Finish("stop"))]


@given(SHAPES, st.lists(st.integers(1, 4), min_size=1))
def test_passages_are_the_runs_of_an_answer(shape: list[tuple[str, list[str]]], cuts: list[int]) -> None:
    deltas = deltas_of(shape)
    whole = Passages()
    changes = list(whole.take(deltas))
    pieces = Passages()
    seen = []
    rest = list(deltas)
    for count in cuts * len(deltas):
        batch, rest = rest[:count], rest[count:]
        seen += [(change.what, change.passage.index, change.text, change.entries) for change in pieces.take(batch)]
    assert seen == [(change.what, change.passage.index, change.text, change.entries) for change in changes]
    assert pieces.finish == whole.finish == "stop" and pieces.passages == whole.passages

    # Each opens, grows and closes in turn, and what it grew by is what it is.
    for index, of_one in groupby(changes, key=lambda change: change.passage.index):
        run = list(of_one)
        assert run[0].what is What.OPENS and run[-1].what is What.CLOSES
        assert all(change.what is What.GROWS for change in run[1:-1])
        passage = whole.passages[index]
        assert "".join(change.text for change in run) == passage.text
        assert [entry for change in run for entry in change.entries] == passage.entries
    said = "".join(text for kind, texts in shape if kind == "content" for text in texts)
    assert "".join(passage.text for passage in whole.passages if passage.kind is Kind.TEXT) == said
    assert sum(passage.kind is Kind.CALL for passage in whole.passages) == sum(kind == "call" for kind, _ in shape)
    assert whole.passages, "an answer that says nothing has one empty text"
