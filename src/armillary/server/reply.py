"""The answer to a conversation as a stream of parts, which every dialect renders in its own events.

    reply = Reply(Generation(served, chat_parts(body, served), tally))

A dialect makes a `ChatBody` of its own request, so that all dialects check, tokenise, constrain and parse in
one way, and then reads either `deltas()` or `whole()`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from armillary.models.reply import CallArguments, CallStart, Content, Message, Reasoning, ReplyPart
from armillary.server.generation import Delta, Generation
from armillary.server.logprobs import TokenEntry
from armillary.server.usage import Usage

__all__ = [
    "CallArguments", "CallStart", "Content", "Finish", "Reasoning", "Reply", "ReplyDelta", "ReplyPart", "WholeReply",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finish:
    """The choice is over; nothing follows in it.

    Attributes:
        reason: `stop`, `length`, or `tool_calls` where it ended by itself and has at least one call.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """One part of one choice.

    Attributes:
        choice: index of the choice.
        part: what is new. Parts of a choice come in order: reasoning, then content and calls as the model
            wrote them (for each call its start, then its arguments), then exactly one `Finish`.
        entries: tokens that came since the last delta of this choice, with their logprobs; empty unless the
            request asks for logprobs. Every generated token is in one delta, whatever it became part of.
    """

    choice: int
    part: ReplyPart | Finish
    entries: list[TokenEntry] = field(default_factory=list)


@dataclass(slots=True)
class WholeReply:
    """One choice, complete.

    Attributes:
        message: content, reasoning and calls.
        finish: as of `Finish.reason`.
    """

    choice: int
    message: Message
    finish: str
    entries: list[TokenEntry] = field(default_factory=list)


class Reply:
    """The choices of one answer. Read once, by one coroutine: `deltas` or `whole`.

    What the deltas add up to equals what `whole` gives for the same tokens, ids of calls apart.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._calling: set[int] = set()
        """Choices that have a call."""

    @property
    def id(self) -> str:
        """Of the response."""
        return self._generation.response_id

    @property
    def count(self) -> int:
        """Number of choices."""
        return self._generation.count

    @property
    def begun(self) -> bool:
        """Whether the first token has come. The first list that `deltas` yields after it may be empty."""
        return self._generation.begun

    @property
    def usage(self) -> Usage:
        """Token counts so far; final once everything is read. `reasoning` is part of `completion`."""
        return self._generation.usage

    async def deltas(self, eager: bool = True) -> AsyncGenerator[list[ReplyDelta], None]:
        """Yield what is new, as lists that may go out together.

        Args:
            eager: yield at every token; off, only when a choice has ended, for whoever wants the whole in parts.

        An empty list means that the first token came without anything to show yet, or that nothing came for
        the length of a silence (send a keep-alive). Closing the generator cancels what still runs.

        Raises:
            ArmillaryError: the engine refused the request, or failed it.
        """
        async with aclosing(self._generation.deltas(eager)) as news:
            async for deltas in news:
                yield [part for delta in deltas for part in self._rendered(delta)]

    async def whole(self) -> list[WholeReply]:
        """All choices, complete, in order of index.

        Raises:
            ArmillaryError: as of `deltas`.
        """
        whole = []
        for delta in await self._generation.whole():
            message = Message()
            message.add(delta.parts)
            whole.append(WholeReply(delta.index, message, _reason(delta, bool(message.calls)), delta.entries))
        return whole

    def _rendered(self, delta: Delta) -> list[ReplyDelta]:
        parts: list[ReplyPart | Finish] = [*delta.parts]
        if any(isinstance(part, CallStart) for part in delta.parts):
            self._calling.add(delta.index)
        if delta.finish is not None:
            parts.append(Finish(_reason(delta, delta.index in self._calling)))
        return [ReplyDelta(delta.index, part, delta.entries if place == 0 else []) for place, part in enumerate(parts)]


def _reason(delta: Delta, calls: bool) -> str:
    """Agents go on where the reason is `tool_calls`, so it is that wherever there are calls to answer."""
    finish = delta.finish or "stop"
    return "tool_calls" if calls and finish == "stop" else finish
