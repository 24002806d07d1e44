"""What every engine is asked to do: the same token ids, greedy, ignoring the end of text, to fixed lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

SHARED = 512
FIRST_ID = 300
"""Token ids below are bytes and control tokens in the tokenizers of `shapes.py`; none is ever in a prompt."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt in token ids, and how many tokens are generated after it."""

    prompt: tuple[int, ...]
    output: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are handed over together.

    Attributes:
        running: how many may run at the same time.
        shared: leading tokens that all prompts have in common.
        unit: what its speed counts: `decode` tokens after the first, `output` tokens, or `prompt` tokens.
    """

    name: str
    requests: tuple[Request, ...]
    running: int
    shared: int
    unit: str

    @property
    def tokens(self) -> int:
        """How many tokens its speed counts."""
        if self.unit == "prompt":
            return sum(len(request.prompt) for request in self.requests)
        return sum(request.output - (self.unit == "decode") for request in self.requests)

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return max(len(request.prompt) + request.output for request in self.requests)

    @property
    def positions(self) -> int:
        """Most positions of all that run at a time."""
        lengths = sorted((len(request.prompt) + request.output for request in self.requests), reverse=True)
        return sum(lengths[: self.running])


TITLES = {
    "A": "one stream, 128 in, 128 out (decode tokens/s)",
    "B": "sixteen streams, 256 in, 128 out (output tokens/s)",
    "C": "64 requests, 32 to 512 in, 16 to 256 out, at most 32 running (output tokens/s)",
    "D": "32 requests, 512 shared and 32 of their own in, 32 out (output tokens/s)",
    "P": "one prompt of 2,048 (prompt tokens/s)",
}


def make(name: str, vocab: int, repeat: int = 0, scale: float = 1.0) -> Workload:
    """The workload called `name`.

    Args:
        vocab: token ids are below it.
        repeat: other ids each time, so that no engine can have kept anything from the time before; the same lengths.
        scale: lengths are multiplied by it; those of a single request by its square root, because they are the cheapest
            and the first to get too short. How many requests there are is not, because the size of a batch is what
            tells the workloads apart; nor is a shared prefix, because short ones are not worth sharing.
    """
    ids = Random(f"{name} {repeat}")
    lengths = Random(name)

    def scaled(length: int, factor: float = scale) -> int:
        return max(2, round(length * factor))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(ids.randrange(FIRST_ID, vocab) for _ in range(count))

    def alike(count: int, prompt: int, output: int) -> tuple[Request, ...]:
        return tuple(Request(tokens(scaled(prompt)), scaled(output)) for _ in range(count))

    def mixed() -> tuple[Request, ...]:
        pairs = [(lengths.randint(32, 512), lengths.randint(16, 256)) for _ in range(64)]
        return tuple(Request(tokens(scaled(prompt)), scaled(output)) for prompt, output in pairs)

    def prefixed() -> tuple[Request, ...]:
        prefix = tokens(SHARED)
        return tuple(Request(prefix + tokens(scaled(32)), scaled(32)) for _ in range(32))

    single = math.sqrt(scale)
    known: dict[str, Callable[[], Workload]] = {
        "A": lambda: Workload("A", (Request(tokens(scaled(128, single)), scaled(128, single)),), 1, 0, "decode"),
        "B": lambda: Workload("B", alike(16, 256, 128), 16, 0, "output"),
        "C": lambda: Workload("C", mixed(), 32, 0, "output"),
        "D": lambda: Workload("D", prefixed(), 32, SHARED, "output"),
        "P": lambda: Workload("P", (Request(tokens(scaled(2048, single)), 1),), 1, 0, "prompt"),
    }
    return known[name]()


def warm_up(vocab: int) -> Workload:
    """A few tokens of two requests, before anything is timed."""
    ids = Random("warm-up")
    prompts = [tuple(ids.randrange(FIRST_ID, vocab) for _ in range(16)) for _ in range(2)]
    return Workload("warm-up", tuple(Request(prompt, 4) for prompt in prompts), 2, 0, "output")
