"""One HTTP request in flight: the bridge between the engine's thread and the event loop.

The engine's thread hands over events; the loop turns them into text and keeps what the reader has not taken
yet, merged per choice. So a reader that lags costs the text it has not read, never the engine's time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from armillary.core.request import FinishReason, Request
from armillary.core.step import Event, OwnFault
from armillary.errors import ArmillaryError, Code
from armillary.models.reading import Reading, ReplyReader, merged
from armillary.models.reply import ReplyPart
from armillary.runtime.embed import too_late
from armillary.runtime.prepare import Prepared
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.text import TextStream
from armillary.server.admission import caller
from armillary.server.alarm import Alarm
from armillary.server.exchange import current
from armillary.server.logprobs import TokenEntry, token_entry
from armillary.server.served import Served
from armillary.server.tally import Tally
from armillary.server.timelimit import silence
from armillary.server.usage import Usage

log = logging.getLogger("armillary.server")

SILENCE_S = 15.0
"""Most seconds without news after which a reader hears that nothing has come yet."""
OVERDUE_S = 1.0
"""Seconds after the end of a request's time at which its client is told, even by an engine whose step goes on."""


@dataclass(frozen=True, slots=True)
class Part:
    """One prompt of an HTTP request, ready for the engine.

    Attributes:
        response_id: id of the HTTP response; the engine's request has the same, or one that begins so.
        logprobs: whether tokens carry logprobs.
        silent: nothing that is generated is wanted (echo with max_tokens 0); the engine makes one token all
            the same, and it is dropped.
        lead: text that comes before the generated text in every choice (echo).
        reading: how the text is read into parts of a reply; None: it stays text.
    """

    prepared: Prepared
    response_id: str
    logprobs: bool = False
    silent: bool = False
    lead: str = ""
    reading: Reading | None = None

    @property
    def request(self) -> Request:
        return self.prepared.request


@dataclass(slots=True)
class Delta:
    """What is new about one choice: text, or parts where its prompt has a reading."""

    index: int
    text: str
    entries: list[TokenEntry]
    finish: str | None
    parts: list[ReplyPart] = field(default_factory=list)


@dataclass(slots=True)
class _Choice:
    """One generation, from tokens to what the client has not read yet."""

    part: Part
    index: int
    stream: TextStream
    reader: ReplyReader | None
    hidden: frozenset[int]
    """Control tokens that are no text."""
    parts: list[ReplyPart] = field(default_factory=list)
    thought: int = 0
    """Tokens that are reasoning if it turns out that there is any."""
    text: list[str] = field(default_factory=list)
    entries: list[TokenEntry] = field(default_factory=list)
    held: deque[tuple[int, TokenEntry]] = field(default_factory=deque)
    """Logprobs of tokens whose text is held back, with the byte at which that text begins."""
    seen: int = 0
    """Bytes of all tokens so far."""
    released: int = 0
    """Bytes of text released so far."""
    finish: str | None = None
    told: bool = False
    """Whether a delta with `finish` has been taken."""
    last_at: float | None = None


class Generation:
    """The requests of one HTTP request, and their choices in order.

    Used by one coroutine: iterate over `deltas`, and close it. Choices of part p with n choices each have the
    indices p * n ... p * n + n - 1.
    """

    def __init__(self, served: Served, parts: list[Part], tally: Tally, silence_s: float | None = None) -> None:
        self._served = served
        self._parts = parts
        self._tally = tally
        self._silence_s = silence(current.get(), SILENCE_S) if silence_s is None else silence_s
        self._caller = caller()
        self._choices: list[_Choice] = []
        self._first: dict[str, int] = {}
        for part in parts:
            self._first[part.request.id] = len(self._choices)
            shown = frozenset() if part.reading is None else part.reading.shown
            hidden = served.tokenizer.special_ids - shown
            for _ in range(part.request.n):
                stream = part.prepared.text_stream(served.tokenizer, shown)
                reader = None if part.reading is None else ReplyReader(part.reading)
                self._choices.append(_Choice(part, len(self._choices), stream, reader, hidden))
        self._wake = asyncio.Event()
        self._eager = True
        """Whether the reader wants every token, or only to know when a choice has ended."""
        self._error: ArmillaryError | None = None
        self.begun = False
        """Whether the first token has come."""
        self.usage = Usage(prompt=sum(len(part.request.prompt) for part in parts))
        self._prompt_details: dict[str, Any] = {}
        tally.understood(served.name, parts[0].response_id, [part.request for part in parts], served.recent)

    @property
    def response_id(self) -> str:
        return self._parts[0].response_id

    @property
    def count(self) -> int:
        """Number of choices."""
        return len(self._choices)

    @property
    def over(self) -> bool:
        """Whether the last delta of every choice has been taken: what an answer still says then, it says at once."""
        return all(choice.told for choice in self._choices)

    async def deltas(self, eager: bool = True) -> AsyncGenerator[list[Delta], None]:
        """Submit, then yield what is new, at most one delta per choice each time, until all choices ended.

        Args:
            eager: yield at every token; off, only when a choice has ended, which costs the loop less.

        An empty list means that the first token came without text yet, or that there was nothing to yield for
        the length of a silence. Closing the generator cancels whatever still runs, in every state.

        Raises:
            ArmillaryError: the engine refused the request, or failed it.
        """
        self._eager = eager
        worker, mailbox = self._served.worker, self._served.mailbox
        announced = said = False
        charged = 0
        now = asyncio.get_running_loop().time
        overdue = self._overdue(now())
        alarm = Alarm(self._wake.set)
        try:
            self._caller.admit([part.request for part in self._parts], worker)
            charged = self.usage.prompt
            post = partial(mailbox.post, self._deliver)
            for submission in [worker.submit_soon(part.request, post) for part in self._parts]:
                try:
                    async with asyncio.timeout_at(overdue):
                        await asyncio.wrap_future(submission)
                except TimeoutError:
                    raise too_late() from None
            charged = 0
            patience = now() + self._silence_s
            while not self.over:
                alarm.set(patience if overdue is None else min(patience, overdue))
                await self._wake.wait()
                self._wake.clear()
                if self._error is not None and not said:
                    raise self._error  # with a status of its own: nothing was sent yet
                deltas = self._take()
                if deltas or (self.begun and not announced):
                    announced = said = True
                    yield deltas
                    patience = now() + self._silence_s
                if self._error is not None:
                    raise self._error
                if not deltas and overdue is not None and now() >= overdue:
                    raise too_late()
                if not deltas and now() >= patience:
                    said = True
                    yield []
                    patience = now() + self._silence_s
            self._tally.end(self._reason())
        except ArmillaryError as error:
            self._caller.charge(-charged)  # what the engine did not take is given back
            self._tally.fail(error, accepted=self._error is not None)
            raise
        finally:
            alarm.end()
            self._close()

    async def whole(self) -> list[Delta]:
        """All choices, complete, in order of index."""
        whole = [Delta(choice.index, "", [], None) for choice in self._choices]
        async with aclosing(self.deltas(eager=False)) as news:
            async for deltas in news:
                for delta in deltas:
                    mine = whole[delta.index]
                    mine.text += delta.text
                    mine.entries += delta.entries
                    mine.finish = delta.finish
                    mine.parts += delta.parts
        return whole

    @property
    def params(self) -> SamplingParams:
        """How the first prompt's choices are sampled, defaults included."""
        return self._parts[0].prepared.params

    def stop_string(self, index: int) -> str | None:
        """The stop string that ended a choice, if one did."""
        return self._choices[index].stream.stopped

    def prompt_of(self, index: int) -> tuple[Part, list[Any]]:
        """The prompt of a choice, and what the executor said about each of its tokens (None for the first).

        Known from the first delta of the choice on.
        """
        part = self._choices[index].part
        return part, self._prompt_details[part.request.id]

    def _overdue(self, now: float) -> float | None:
        """When to give up on an engine that does not end what has no more time: it hangs, or its steps are long.

        The engine decides who has time and who has not, at the ends of its steps. This is for clients, who
        get their answer even if no step ends.
        """
        moments = [part.request.expires for part in self._parts if part.request.expires is not None]
        return now + min(moments) - self._served.clock() + OVERDUE_S if moments else None

    def _reason(self) -> str:
        return "length" if any(choice.finish == "length" for choice in self._choices) else "stop"

    def _close(self) -> None:
        """Cancel what still runs. Called once, however the reading ended."""
        if self.begun:
            self._tally.count(self.usage.prompt, self.usage.completion)
            self._caller.charge(self.usage.completion)
        for part in self._parts:
            first = self._first[part.request.id]
            if any(choice.finish is None for choice in self._choices[first : first + part.request.n]):
                self._served.worker.cancel(part.request.id)
        for choice in self._choices:
            choice.finish = choice.finish or "cancelled"  # late events find nothing to do

    def _take(self) -> list[Delta]:
        """What is new since the last time."""
        deltas = []
        for choice in self._choices:
            news = choice.text or choice.entries if choice.reader is None else choice.parts
            if choice.told or not (news or choice.finish):
                continue
            parts = merged(choice.parts)
            deltas.append(Delta(choice.index, "".join(choice.text), choice.entries, choice.finish, parts))
            choice.text, choice.entries, choice.parts = [], [], []
            choice.told = choice.finish is not None
        return deltas

    def _deliver(self, events: list[Event], at: float) -> None:
        """Take one step's news of one request in, in the event loop. What cannot be read ends the request."""
        begun = time.perf_counter()
        try:
            news = self._absorb(events, at)
        except Exception as error:
            log.exception("what was generated for %s cannot be read", events[0].request_id if events else "a request")
            self._error = ArmillaryError(Code.ENGINE_FAILED, f"what was generated cannot be read: {error}")
            news = True
        self._tally.detokenise_s += time.perf_counter() - begun
        if news:
            self._wake.set()

    def _absorb(self, events: list[Event], at: float) -> bool:
        """Whether there is anything to tell the client."""
        news = self._eager
        for event in events:
            first = self._first[event.request_id]
            choice = self._choices[first + event.index]
            if choice.finish is not None:
                continue
            if event.prompt_detail is not None:
                self._prompt_details[event.request_id] = event.prompt_detail
            if event.token is not None:
                self._token(choice, event, event.token, at)
            elif event.finish is not None:
                self._error = self._failure(event)
                if event.finish is FinishReason.DEADLINE:
                    choice.finish = event.finish.value
                    choice.parts += [] if choice.reader is None else choice.reader.finish()
            news = news or choice.finish is not None or self._error is not None
        return news

    def _failure(self, event: Event) -> ArmillaryError:
        """Why a choice ended without a token."""
        if event.finish is FinishReason.DEADLINE:
            return too_late()
        worker = self._served.worker
        stopped = not worker.alive and worker.failure is None
        if isinstance(event.error, OwnFault):
            return ArmillaryError(Code.INVALID_REQUEST, f"the request cannot be completed: {event.error}")
        if event.finish is FinishReason.ERROR and not stopped:
            return ArmillaryError(Code.ENGINE_FAILED, f"the engine failed on this request: {event.error}")
        return ArmillaryError(
            Code.UNAVAILABLE,
            "the engine was stopped before this request was complete: the server stops, or its model is put away",
        )

    def _token(self, choice: _Choice, event: Event, token: int, at: float) -> None:
        served = self._served
        if choice.last_at is None:
            if choice.part.lead:
                choice.text.append(choice.part.lead)
            self.usage.cached += event.cached if event.index == 0 else 0
            self._tally.cached_tokens = self.usage.cached
            if not self.begun:
                self.begun = True
                self._tally.first_token(at)
        else:
            self._tally.next_token(at - choice.last_at)
        choice.last_at = at
        if choice.part.silent:
            choice.finish = "length"
            return
        self.usage.completion += 1
        self._tally.tokens[choice.index] += 1
        stream = choice.stream
        text = ""
        if event.finish is not FinishReason.STOP:  # a token that ends a choice is no text
            if choice.part.logprobs:
                entry = token_entry(token, event.detail, served.tokenizer.token_bytes)
                choice.held.append((choice.seen, entry))
                choice.seen += 0 if token in choice.hidden else len(entry.data)
            text = stream.push(token)
            if stream.stopped is not None:
                choice.finish = "stop"
                if event.finish is None:
                    served.worker.cancel(event.request_id, event.index, FinishReason.STOP)
        if event.finish is not None and choice.finish is None:
            text += _whole_characters(stream.finish(), served.tokenizer.token_bytes(token))
            choice.finish = event.finish.value
        self._release(choice, text, everything=event.finish is not None and stream.stopped is None)
        if choice.reader is not None:
            self._read(choice, choice.reader, text)
            if choice.reader.done and choice.finish is None:
                choice.finish = "stop"
                served.worker.cancel(event.request_id, event.index, FinishReason.STOP)

    def _read(self, choice: _Choice, reader: ReplyReader, text: str) -> None:
        """Text into parts, and one more token into the count of reasoning."""
        choice.thought += reader.may_reason
        choice.parts += reader.push(text)
        if choice.finish is not None:
            choice.parts += reader.finish()
        if reader.has_reasoned:
            self.usage.reasoning += choice.thought
            choice.thought = 0

    def _release(self, choice: _Choice, text: str, everything: bool) -> None:
        """Let text out, and with it the logprobs of the tokens that begin in it."""
        if text:
            if choice.reader is None:
                choice.text.append(text)
            choice.released += len(text.encode())
        while choice.held and (everything or choice.held[0][0] < choice.released):
            choice.entries.append(choice.held.popleft()[1])


def _whole_characters(rest: str, last: bytes) -> str:
    """The end of a text without the mark of a character that the last token left unfinished."""
    unfinished = rest.endswith("\ufffd") and not last.endswith("\ufffd".encode())
    return rest[:-1] if unfinished else rest
