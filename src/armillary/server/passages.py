"""An answer as passages, which dialects with typed events make of it: reasoning, text and calls, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from armillary.server.logprobs import TokenEntry
from armillary.server.reply import CallArguments, CallStart, Content, Finish, Reasoning, Reply, ReplyDelta


class Kind(StrEnum):
    """What a passage is."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass(slots=True)
class Passage:
    """One run of an answer.

    Attributes:
        index: 0, 1, 2... in the answer.
        pieces: the text so far; of a call, its arguments.
        entries: the tokens of a text, where the request asks for logprobs.
        call_id, name: of a call.
    """

    index: int
    kind: Kind
    pieces: list[str] = field(default_factory=list)
    entries: list[TokenEntry] = field(default_factory=list)
    call_id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class What(StrEnum):
    """What happens to a passage."""

    OPENS = "opens"
    GROWS = "grows"
    CLOSES = "closes"


class Change(NamedTuple):
    """One thing that happens to one passage. What a closed passage holds is final."""

    what: What
    passage: Passage
    text: str = ""
    entries: tuple[TokenEntry, ...] = ()


class Passages:
    """Makes passages of the parts of one answer, so that a stream and a whole answer have the same ones.

    One passage is open at a time. An answer in which nothing was said has one empty text.

    Attributes:
        passages: all so far, in order.
        finish: why the answer ended; None before it has.
    """

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.finish: str | None = None
        self._open: Passage | None = None
        self._waiting: list[TokenEntry] = []
        """Tokens of a text that are not shown yet."""

    def take(self, deltas: Iterable[ReplyDelta]) -> Iterator[Change]:
        """Take what is new, and yield what it changes. To be read to its end."""
        for delta in deltas:
            match delta.part:
                case Reasoning(text):
                    yield from self._grow(Kind.REASONING, text)
                case Content(text):
                    self._waiting += delta.entries
                    if text:
                        yield from self._grow(Kind.TEXT, text)
                case CallStart(_, call_id, name):
                    yield from self._begin(Passage(len(self.passages), Kind.CALL, call_id=call_id, name=name))
                case CallArguments(_, text):
                    yield from self._grow(Kind.CALL, text)
                case Finish(reason):
                    self._waiting += delta.entries
                    yield from self._end(reason)

    def _grow(self, kind: Kind, text: str) -> Iterator[Change]:
        passage = self._open
        if passage is None or passage.kind is not kind:
            passage = Passage(len(self.passages), kind)
            yield from self._begin(passage)
        entries: tuple[TokenEntry, ...] = ()
        if kind is Kind.TEXT:
            entries, self._waiting = tuple(self._waiting), []
        passage.pieces.append(text)
        passage.entries += entries
        yield Change(What.GROWS, passage, text, entries)

    def _begin(self, passage: Passage) -> Iterator[Change]:
        yield from self._close()
        self.passages.append(passage)
        self._open = passage
        yield Change(What.OPENS, passage)

    def _close(self) -> Iterator[Change]:
        if self._open is not None:
            passage, self._open = self._open, None
            yield Change(What.CLOSES, passage)

    def _end(self, reason: str) -> Iterator[Change]:
        self.finish = reason
        if not self.passages:
            yield from self._begin(Passage(0, Kind.TEXT))
        if self._open is not None and self._open.kind is Kind.TEXT and self._waiting:
            yield from self._grow(Kind.TEXT, "")
        yield from self._close()


async def take_all(reply: Reply, passages: Passages) -> None:
    """Read a whole answer.

    Raises:
        ArmillaryError: as of `Reply.deltas`.
    """
    async with aclosing(reply.deltas(eager=False)) as news:
        async for deltas in news:
            for _ in passages.take(deltas):
                pass
