"""What engine and server are loaded with while they are measured: users, each with one request after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from random import Random

from armillary.measure.workload import WorkItem, Workload
from armillary.twin.cost import CostModel
from armillary.twin.work import StepWork

MOST_THOUGHT_S = 0.05
"""Longest pause of a user between two requests, so that the ends of some and the beginnings of others lie apart."""
LEAST_CONTEXT = 32
TYPICAL = 32
"""Requests that say how long those of a crowd take."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests with prompts of `shortest` to `longest` tokens, as often short as long, and a median of `answer`."""

    shortest: int
    longest: int
    answer: int

    def lengths(self, rng: Random, context: int) -> tuple[int, int]:
        """Tokens of a prompt and an answer, no more than `context` together."""
        longest = max(2, min(context // 2, self.longest))
        shortest = min(self.shortest, max(2, longest // 2))
        prompt = min(longest, round(exp(rng.uniform(log(shortest), log(longest)))))
        return prompt, min(max(2, int(rng.lognormvariate(log(self.answer), 0.6))), context // 4)


MIXED = Kind(8, 1024, 25)
PROMPTS = Kind(512, 2048, 25)
"""Their steps are large without many requests entering."""
ANSWERS = Kind(8, 256, 160)
"""Their steps are many sequences' next tokens, each with a context of some length."""
BRIEF = Kind(8, 64, 25)
"""Many of them enter and end in a second."""
KINDS = (MIXED, PROMPTS, ANSWERS, BRIEF)


class Crowd:
    """So many users of an engine whose steps cost about so much.

    Args:
        context: most positions of a sequence.
        seconds: for which they are to ask. Where one request of each would take longer, requests are shorter.
        kind: what they ask for.
        request_s: what each request costs beside the engine.
    """

    def __init__(
        self,
        users: int,
        cost: CostModel,
        context: int,
        seconds: float,
        kind: Kind = MIXED,
        request_s: float = 0.0,
    ) -> None:
        self.users = users
        self._kind = kind
        self._request_s = request_s
        self.seconds = seconds
        self._cost = cost
        while context > LEAST_CONTEXT and self._each_s(context) > seconds:
            context //= 2
        self.context = context

    def _each_s(self, context: int) -> float:
        """Seconds in which each user gets one answer, on average."""
        rng = Random(0)
        return sum(self._answer_s(*self._kind.lengths(rng, context)) for _ in range(TYPICAL)) / TYPICAL

    def _answer_s(self, prompt: int, output: int) -> float:
        """While one prompt is computed all wait; the next tokens of all are computed together."""
        users, cost = self.users, self._cost
        step = StepWork(users, users, users, users * (prompt + output), users * (prompt + output))
        seconds = users * (self._request_s + cost.step_s(StepWork(1, prompt, 1, prompt, prompt * (prompt + 1) // 2)))
        return seconds + output * (cost.step_s(step) + cost.between_s(step))

    def requests(self, seed: int) -> Iterator[tuple[int, int]]:
        """Tokens of prompts and answers without end."""
        rng = Random(seed)
        while True:
            yield self._kind.lengths(rng, self.context)

    def strangers(self, seed: int, rate: float) -> Workload:
        """Requests of the same kind that come by chance, `rate` a second on average (Poisson), for as long; one at
        least."""
        rng = Random(seed)
        items: list[WorkItem] = []
        at = min(rng.expovariate(rate), self.seconds)
        for prompt, output in self.requests(seed):
            if items and at > self.seconds:
                break
            name = f"{seed}-strangers-{len(items)}"
            items.append(WorkItem(id=name, arrival=at, prompt_tokens=prompt, output_tokens=output))
            at += rng.expovariate(rate)
        return Workload(tuple(items))

    def workload(self, seed: int) -> Workload:
        """A closed loop of as many requests as are thought to take that long, one of each user at least."""
        items: list[WorkItem] = []
        rng = Random(seed)
        spent = 0.0
        for prompt, output in self.requests(seed):
            if len(items) >= self.users and spent >= self.users * self.seconds:
                break
            name, think = f"{seed}-{self.users}-{len(items)}", rng.uniform(0.0, MOST_THOUGHT_S)
            items.append(WorkItem(id=name, prompt_tokens=prompt, output_tokens=output, think=think))
            spent += self._answer_s(prompt, output)
        return Workload(tuple(items), users=self.users)
