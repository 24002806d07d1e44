"""What a search will probably ask next, so that processors that have nothing to do can begin with it.

A search follows from its answers. So another one is begun anew, which gets the known answers at once and guesses in the
place of others: what it asks first that is not known is what the real one will ask, as far as the guesses are right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Generic, TypeVar

from armillary.errors import ArmillaryError
from armillary.plan.search import Question, Search

D = TypeVar("D", bound=Hashable)


class Outlook(Generic[D]):
    """Knows the answers of a search so far, and searches on without any simulation.

    Args:
        designs, expected, price, same: as of the search.
    """

    def __init__(
        self,
        designs: Sequence[D],
        expected: Callable[[D], float],
        price: Callable[[D], float],
        same: Callable[[Question[D], D], bool] = lambda question, other: False,
    ) -> None:
        self._designs, self._expected, self._price, self._same = designs, expected, price, same
        self._answers: dict[Question[D], bool] = {}

    def told(self, question: Question[D], held: bool) -> None:
        """Take in an answer."""
        self._answers[question] = held

    def next(self, asked: Sequence[Question[D]], count: int) -> list[Question[D]]:
        """So many questions that will probably come after those that are being asked, the likeliest first; fewer where
        the search would end before."""
        found = self._path(asked, frozenset(), count)
        # Else the first answer is the other one: of one question, that is as likely as not.
        other = self._path(asked, {asked[0]}, 1) if len(asked) == 1 else []
        return list(dict.fromkeys([*found[:1], *other, *found[1:]]))[:count]

    def _path(self, asked: Sequence[Question[D]], missed: Collection[Question[D]], count: int) -> list[Question[D]]:
        """What is asked if those of `missed` miss and all else comes as guessed."""
        found: list[Question[D]] = []

        def answer(design: D, rate: float, seed: int) -> bool:
            question = (design, rate, seed)
            known = self._answers.get(question)
            if known is not None:
                return known
            if question not in asked and question not in found:
                if len(found) == count:
                    raise _EnoughError
                found.append(question)
            return question not in missed and self._guess(design, rate)

        try:
            Search(answer, self._price, same=self._same).run(self._designs, self._expected)
        except (_EnoughError, ArmillaryError):
            pass
        return found

    def _guess(self, design: D, rate: float) -> bool:
        """Whether the service level holds, by what is known of the design, or of others beside theory."""
        ratio = 0.0
        for (other, asked, _), held in self._answers.items():
            if other == design and held == (rate <= asked):
                return held
            if held:
                ratio = max(ratio, asked / self._expected(other))
        # Of one that holds somewhere, that it holds: such a simulation takes longest, and leaves most time to be used.
        return any(held for (other, _, _), held in self._answers.items() if other == design) or (
            rate <= ratio * self._expected(design)
        )


class _EnoughError(Exception):
    """As many questions as were wanted have been found."""
