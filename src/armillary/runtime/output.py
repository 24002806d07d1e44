"""What a caller gets: pieces while it is generated, an output when it is complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from armillary.core.request import FinishReason
from armillary.core.step import Event, OwnFault
from armillary.errors import ArmillaryError, Code
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.prepare import Prepared
from armillary.runtime.sampling import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new about one choice.

    Attributes:
        text: may be empty, where the new tokens end within a character or may begin a stop string.
        logprobs: one entry per token of `token_ids`; None where none were asked for.
        finish_reason: set in the last piece of the choice.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(slots=True)
class Choice:
    """One complete generation.

    Attributes:
        text: without control tokens, and without the stop string that ended it.
        token_ids: everything generated, the stopping token included.
        logprobs: one entry per token; None where none were asked for.
        stop: the stop string that ended it, if one did.
        cached_tokens: prompt tokens that came from the prefix cache.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop: str | None = None
    cached_tokens: int = 0


@dataclass(slots=True)
class Output:
    """The answer to one prompt: its choices, or the error that prevented them.

    `text`, `token_ids` and `finish_reason` are those of the first choice.

    Attributes:
        prompt_logprobs: per prompt token, None for the first; None where they were not asked for.
        error: what went wrong with this prompt alone. The choices hold what there was until then.
    """

    request_id: str
    prompt_token_ids: list[int]
    choices: list[Choice]
    prompt_logprobs: object = None
    error: ArmillaryError | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text if self.choices else ""

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids if self.choices else []

    @property
    def finish_reason(self) -> FinishReason:
        reason = self.choices[0].finish_reason if self.choices else None
        return reason if reason is not None else FinishReason.ERROR


class Assembly:
    """Turns the events of one request into pieces and, at the end, into its output.

    Args:
        stop: called with the index of a choice in whose text a stop string was found, to end it in the engine.
    """

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer, stop: Callable[[int], None]) -> None:
        request = prepared.request
        self._stop = stop
        self._streams = [prepared.text_stream(tokenizer) for _ in range(request.n)]
        self._parts: list[list[str]] = [[] for _ in range(request.n)]
        self._unfinished = request.n
        self.output = Output(request.id, list(request.prompt), [Choice(index) for index in range(request.n)])

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return self._unfinished == 0

    def take(self, events: list[Event]) -> list[Piece]:
        """The news in these events, in order."""
        return [piece for event in events if (piece := self._take(event)) is not None]

    def _take(self, event: Event) -> Piece | None:
        choice = self.output.choices[event.index]
        if choice.finish_reason is not None:  # a stop string ended it before the engine heard of it
            return None
        if event.prompt_detail is not None:
            self.output.prompt_logprobs = event.prompt_detail
        choice.cached_tokens = max(choice.cached_tokens, event.cached)
        stream, finish, text = self._streams[event.index], event.finish, ""
        tokens: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprobs, ...] | None = None
        if event.token is not None:
            tokens = (event.token,)
            choice.token_ids.append(event.token)
            if isinstance(event.detail, TokenLogprobs):
                logprobs = (event.detail,)
                if choice.logprobs is None:
                    choice.logprobs = []
                choice.logprobs.append(event.detail)
            # A token that stops the sequence is no part of its text.
            text = "" if finish is FinishReason.STOP else stream.push(event.token)
        if finish is not None and stream.stopped is None:
            text += stream.finish()
        if stream.stopped is not None:
            choice.stop = stream.stopped
            if finish is None:
                self._stop(event.index)
            finish = FinishReason.STOP
        self._parts[event.index].append(text)
        if finish is not None:
            self._end(choice, finish, event.error)
        return Piece(event.index, text, tokens, logprobs, finish, event.error)

    def _end(self, choice: Choice, finish: FinishReason, error: str | None) -> None:
        choice.finish_reason = finish
        choice.text = "".join(self._parts[choice.index])
        self._unfinished -= 1
        if finish is FinishReason.ERROR and self.output.error is None:
            code = Code.INVALID_REQUEST if isinstance(error, OwnFault) else Code.ENGINE_FAILED
            self.output.error = ArmillaryError(code, error or "the request failed")
