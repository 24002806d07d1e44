"""How much waits, in all and for each owner, and how long it would take to work off."""

from __future__ import annotations

from armillary.core.order import Pace
from armillary.core.stats import SchedulerStats


class Share:
    """What waits: entries in the queue, the choices that they stand for, and the tokens that they know."""

    __slots__ = ("choices", "requests", "tokens")

    def __init__(self, requests: int = 0, choices: int = 0, tokens: int = 0) -> None:
        self.requests = requests
        self.choices = choices
        self.tokens = tokens

    def __add__(self, other: Share) -> Share:
        return Share(self.requests + other.requests, self.choices + other.choices, self.tokens + other.tokens)

    def __repr__(self) -> str:
        return f"Share({self.requests}, {self.choices}, {self.tokens})"

    def move(self, sign: int, choices: int, tokens: int) -> None:
        """One entry more (+1) or less (-1)."""
        self.requests += sign
        self.choices += sign * choices
        self.tokens += sign * tokens


class QueueLoad:
    """Running totals. Written by one thread; read by any, which may find them an entry apart."""

    def __init__(self) -> None:
        self.total = Share()
        self._owners: dict[str, Share] = {}

    def of(self, owner: str) -> Share:
        """One owner's share."""
        return self._owners.get(owner) or Share()

    def enter(self, owner: str, choices: int, tokens: int) -> None:
        self.total.move(1, choices, tokens)
        self._owners.setdefault(owner, Share()).move(1, choices, tokens)

    def leave(self, owner: str, choices: int, tokens: int) -> None:
        """What `enter` was told, taken back."""
        self.total.move(-1, choices, tokens)
        share = self._owners[owner]
        share.move(-1, choices, tokens)
        if not share.requests:
            del self._owners[owner]

    def owners(self) -> dict[str, Share]:
        """Who has anything waiting, and how much."""
        return dict(self._owners)


def seconds_to_work_off(waiting: Share, stats: SchedulerStats, pace: Pace) -> float | None:
    """Seconds until what waits is done at the present pace; None before there is a pace.

        (tokens that wait + choices that wait * mean length of the answers so far) / tokens per second

    Known tokens must be computed once, and each choice generates an answer, every token of which is computed
    too. Tokens per second are those of the last steps (`Pace`), prompts and answers together. The estimate
    is high where prefixes are cached, low where answers grow longer.
    """
    rate = pace.tokens_per_second
    if rate <= 0.0:
        return None
    ended = sum(stats.finished.values())
    answer = stats.generated_tokens / ended if ended else 0.0
    return (waiting.tokens + waiting.choices * answer) / rate
