"""Requests, and the sequences that a request becomes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from armillary.core.prefix import Link, Name


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for, already tokenised and validated.

    Attributes:
        id: unique among the requests that are alive in one engine.
        prompt: token ids, at least one, each from 0 to 2**32 - 1 (the vocabulary is the caller's to check).
        max_tokens: generated tokens per sequence. 0 generates nothing: the sequence ends with `STOP` in the step
            that has computed its prompt, and what the executor found about the prompt (a pooled vector)
            travels with that event.
        n: sequences generated from the one prompt.
        min_tokens: no stop token ends a sequence before this many were generated.
        stop_ids: tokens that end a sequence. The stopping token is reported like any other.
        priority: smaller runs first under the `priority` ordering.
        deadline: clock seconds by which the last token is wanted, for the `deadline` ordering. It may have
            passed already, and nothing ends when it does.
        expires: clock seconds at which the request ends in whatever state it is, with reason DEADLINE; None
            for never. A request that arrives at or after it is refused.
        identity: all besides the tokens that the KV depends on (adapter, media). Requests with different
            identities never share a block.
        reuse_prefix: whether cached blocks may stand in for computing the prompt. Off where every
            prompt position must pass through the model (prompt logprobs).
        handed: leading prompt tokens whose keys and values were computed elsewhere and come along. They are written
            into the request's blocks when it is first admitted, but for those that the prefix index has.
        hold: whether its blocks stay after it has ended well, for whoever fetches what they hold, until
            `Engine.release`.
        sampling: opaque to the core; handed to the executor.
        owner: for whom it is counted while it waits. No decision on steps depends on it.
        digests: of the leading full blocks of the prompt without its last token, as the engine's prefix index makes
            them, where whoever submits it has them, and so knows its tokens to be as of `prompt`; others are made when
            they are needed.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    n: int = 1
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    priority: int = 0
    deadline: float | None = None
    expires: float | None = None
    identity: str = ""
    reuse_prefix: bool = True
    handed: int = 0
    hold: bool = False
    sampling: object = None
    owner: str = ""
    digests: tuple[Name, ...] = ()


class Sequence:
    """One generation in progress.

    `tokens` holds the known tokens (prompt, then generated) and `computed` counts how many of them have
    their keys and values in `blocks`. A step lets `computed` chase `len(tokens)`; nothing else describes
    progress. The block that holds position p is `blocks[p // block_size]`.
    """

    __slots__ = (
        "admitted_length", "arrival", "blocks", "cached", "chain", "computed", "digests", "dropped", "finish", "forks",
        "index", "limit", "prompt_length", "request", "rows", "running", "shares_tail", "tokens", "uid",
    )  # fmt: skip

    def __init__(self, request: Request, index: int, uid: int, arrival: float) -> None:
        self.request = request
        self.index = index
        self.uid = uid
        """Unique over the life of an engine; also the tie-break of every ordering."""
        self.arrival = arrival
        self.tokens: list[int] = list(request.prompt)
        self.prompt_length = len(request.prompt)
        self.limit = self.prompt_length + request.max_tokens
        self.computed = 0
        self.cached = 0
        """Prompt tokens that were served from the prefix index at first admission."""
        self.blocks: list[int] = []
        self.digests: list[Name] = list(request.digests)
        """Of the leading full blocks, as far as anyone has asked."""
        self.chain: list[Link] = []
        """The prefix index's links on the leading computed blocks."""
        self.forks = request.n - 1
        """Siblings still to be split off when the prompt has been computed."""
        self.rows = request.n if request.max_tokens else 0
        """Tokens to sample once all known tokens are computed."""
        self.dropped: frozenset[int] = frozenset()
        """Choices that were cancelled before they were split off."""
        self.shares_tail = False
        """Whether the last, partly filled block may be held by a sibling too."""
        self.running = False
        self.admitted_length = 0
        """Known tokens when it was last admitted; 0 before the first time."""
        self.finish: FinishReason | None = None

    def fork(self, index: int, uid: int) -> Sequence:
        """A sibling that has computed the same tokens into the same blocks."""
        child = Sequence(self.request, index, uid, self.arrival)
        child.forks, child.rows = 0, 1
        child.computed = self.computed
        child.cached = self.cached
        child.blocks = list(self.blocks)
        child.chain = list(self.chain)
        child.digests = list(self.digests)
        child.running = self.running
        child.shares_tail = self.shares_tail
        child.admitted_length = self.admitted_length
        return child

    @property
    def choices(self) -> list[int]:
        """The choices it stands for: its own and, before they are split off, its siblings'."""
        return [i for i in range(self.index, self.index + 1 + self.forks) if i not in self.dropped]

    def take(self, token: int) -> FinishReason | None:
        """Append a generated token; why the sequence ends with it, where it does."""
        request, tokens = self.request, self.tokens
        tokens.append(token)
        if token in request.stop_ids and len(tokens) - self.prompt_length >= request.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(tokens) >= self.limit else None

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length

    def __repr__(self) -> str:
        return f"Sequence({self.request.id}/{self.index}, {self.computed}/{len(self.tokens)})"
