"""What a server did, from its journal: as the workload that it was asked, and as what became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import inf, isfinite, nan

import numpy as np

from armillary.core.prefix import block_digest, root_digest
from armillary.errors import ArmillaryError, Code
from armillary.measure.item import WorkItem
from armillary.measure.journal import Life, Record, read_lines, refuse
from armillary.measure.outcomes import Outcomes
from armillary.measure.workload import Workload

BLOCK = 16
"""Tokens of which beginnings are compared."""
_WELL = frozenset({"stop", "length"})


@dataclass(slots=True)
class _Answer:
    """One choice of a request.

    Attributes:
        deadline: seconds from submission; None where there is none ahead.
    """

    at: float
    prompt: tuple[int, ...]
    identity: str
    priority: int
    deadline: float | None
    first: float = nan
    last: float = nan
    end: float = nan
    tokens: int = 0
    cached: int = 0
    finish: str | None = None
    gaps: list[float] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.tokens > 0 and self.finish in _WELL

    @staticmethod
    def of(record: Record) -> list[_Answer]:
        """Those that a submission asks for."""
        at, deadline, prompt = float(record["at"]), record["deadline"], tuple(map(int, record["prompt"]))
        if not prompt or not isfinite(at):
            raise ValueError("a submission must have a time and a prompt")
        ahead = None if deadline is None or deadline <= at else float(deadline) - at
        return [
            _Answer(at, prompt, str(record["identity"]), int(record["priority"]), ahead) for _ in range(record["n"])
        ]

    def told(self, at: float) -> None:
        """It got a token."""
        self.tokens += 1
        if self.tokens == 1:
            self.first = at
        elif at > self.last:  # several tokens of one step are there at once
            self.gaps.append(at - self.last)
        self.last = at


def observed(life: Life, last: float | None = None) -> Workload:
    """The requests of a journal: when they came, how long they were, how long their answers were, how they began alike.

    A request that asked for several answers is one for each; one that never ended, or failed, is left out.

    Args:
        last: take only what came in so many seconds before the last line; None for all.

    Raises ArmillaryError: INVALID_REQUEST where no request is left, and where a line is none of a journal.
    """
    answers, now = _answers(life)
    start = -inf if last is None else now - last
    kept = sorted((a for a in answers if a.ok and a.at >= start), key=lambda a: a.at)
    if not kept:
        raise ArmillaryError(
            Code.INVALID_REQUEST, "a journal must hold at least one request that was answered, given none", "journal"
        )
    digests = [_digests(a.prompt, a.identity) for a in kept]
    shared = Counter(digest for each in digests for digest in each)
    began = kept[0].at
    return Workload(
        [
            WorkItem(
                id=str(row),
                arrival=answer.at - began,
                prompt_tokens=len(answer.prompt),
                output_tokens=answer.tokens,
                prefix=_runs(digests[row], shared),
                deadline=answer.deadline,
                priority=answer.priority,
            )
            for row, answer in enumerate(kept)
        ],
        origin={"observed": len(kept)},
    )


def lived(life: Life) -> tuple[Outcomes, float]:
    """What became of the requests of a journal that have ended, and the seconds from the first to the last line.

    A request is due when the engine took it over: what passed before, with reading and tokenizing, is not known here.

    Raises ArmillaryError: as `observed`.
    """
    answers, now = _answers(life)
    ended = sorted((a for a in answers if a.finish is not None), key=lambda a: a.at)
    if not ended:
        raise ArmillaryError(
            Code.INVALID_REQUEST, "a journal must hold at least one request that has ended, given none", "journal"
        )
    began = ended[0].at
    kept = [answer.gaps if answer.ok else [] for answer in ended]
    run = Outcomes(
        due=np.array([a.at - began for a in ended]),
        first=np.array([a.first - began for a in ended]),
        end=np.array([a.end - began for a in ended]),
        prompt_tokens=np.array([len(a.prompt) for a in ended], dtype=np.int64),
        output_tokens=np.array([a.tokens for a in ended], dtype=np.int64),
        cached_tokens=np.array([a.cached for a in ended], dtype=np.int64),
        ok=np.array([a.ok for a in ended], dtype=np.bool_),
        deadline=np.array([nan if a.deadline is None else a.deadline for a in ended]),
        gaps=np.array([gap for gaps in kept for gap in gaps], dtype=np.float64),
        gap_counts=np.array([len(gaps) for gaps in kept], dtype=np.int64),
    )
    return run, now - began


def _answers(life: Life) -> tuple[list[_Answer], float]:
    """Every choice of every request, in the order of submission, and the time of the last line."""
    answers: list[_Answer] = []
    going: dict[str, list[_Answer]] = {}
    now = 0.0
    for number, record in enumerate(read_lines(life.lines, life.first), start=life.first):
        try:
            now = max(now, record.get("until") or record.get("at") or now)
            if "submit" in record:
                # A name may be used again once its request has ended.
                going[record["submit"]] = _Answer.of(record)
                answers += going[record["submit"]]
            elif "step" in record:
                for name, _, cached in record["admitted"]:
                    for answer in going[name]:
                        answer.cached = answer.cached if answer.tokens else cached
                for name, index, _ in record["tokens"]:
                    going[name][index].told(record["until"])
                for name, index, finish in record["ended"]:
                    _end(going[name][index], finish, record["until"])
            elif "cancel" in record:
                index = record["index"]
                for answer in going[record["cancel"]] if index is None else [going[record["cancel"]][index]]:
                    _end(answer, record["reason"], record["at"])
            elif "expire" in record:
                for name, index in record["expire"]:
                    _end(going[name][index], "deadline", record["at"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            refuse(number, f"{type(error).__name__}: {error}")
    return answers, now


def _end(answer: _Answer, finish: str, at: float) -> None:
    if answer.finish is None:
        # A stop string is found a while after the token that completed it.
        answer.finish, answer.end = finish, answer.last if finish == "stop" else at


def _digests(prompt: tuple[int, ...], identity: str) -> tuple[bytes, ...]:
    parent = root_digest(identity)
    found = []
    for first in range(0, len(prompt) // BLOCK * BLOCK, BLOCK):
        parent = block_digest(parent, prompt[first : first + BLOCK])
        found.append(parent)
    return tuple(found)


def _runs(digests: tuple[bytes, ...], shared: Counter[bytes]) -> tuple[tuple[str, int], ...]:
    """Leading blocks that other prompts have too, those that the same prompts have taken together."""
    runs: list[tuple[str, int]] = []
    last = 0
    for digest in digests:
        count = shared[digest]
        if count < 2:
            break
        if count == last:
            runs[-1] = (digest.hex(), runs[-1][1] + BLOCK)
        else:
            runs.append((digest.hex(), BLOCK))
        last = count
    return tuple(runs)
