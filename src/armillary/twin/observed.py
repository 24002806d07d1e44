"""A workload from what a server did: its journal, as the file that `bench`, `simulate` and `plan` read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from armillary.core.prefix import block_digest, root_digest
from armillary.errors import ArmillaryError, Code
from armillary.measure.item import WorkItem
from armillary.measure.workload import Workload

BLOCK = 16
"""Tokens of which beginnings are compared."""


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    prompt: tuple[int, ...]
    digests: tuple[bytes, ...]
    deadline: float | None
    priority: int


def observed(lines: Iterable[str], last: float | None = None) -> Workload:
    """The requests of a journal: when they came, how long they were, how long their answers were, how they began alike.

    A request that asked for several answers is one for each; one that never ended, or failed, is left out.

    Args:
        lines: of one life of an engine (`read_journal`).
        last: take only what came in so many seconds before the last line; None for all.

    Raises ArmillaryError: INVALID_REQUEST where no request is left.
    """
    asked: dict[str, _Seen] = {}
    made: Counter[tuple[str, int]] = Counter()
    ended: dict[tuple[str, int], str] = {}
    now = 0.0
    for line in lines:
        record = json.loads(line)
        now = max(now, record.get("until", record.get("at", 0.0)))
        if "submit" in record:
            prompt = tuple(record["prompt"])
            due = record["deadline"]
            asked[record["submit"]] = _Seen(
                record["at"],
                prompt,
                _digests(prompt, record["identity"]),
                None if due is None or due <= record["at"] else due - record["at"],
                record["priority"],
            )
        elif "step" in record:
            made.update((name, index) for name, index, _ in record["tokens"])
            ended.update(((name, index), finish) for name, index, finish in record["ended"])
    start = -inf if last is None else now - last
    kept = [
        (asked[name], name, index, made[name, index])
        for (name, index), finish in ended.items()
        if name in asked and made[name, index] and finish in ("stop", "length") and asked[name].at >= start
    ]
    if not kept:
        raise ArmillaryError(
            Code.INVALID_REQUEST, "a journal must hold at least one request that was answered, given none", "journal"
        )
    kept.sort(key=lambda one: (one[0].at, one[1], one[2]))
    shared = Counter(digest for seen, *_ in kept for digest in seen.digests)
    began = kept[0][0].at
    return Workload(
        [
            WorkItem(
                id=str(row),
                arrival=seen.at - began,
                prompt_tokens=len(seen.prompt),
                output_tokens=tokens,
                prefix=_runs(seen.digests, shared),
                deadline=seen.deadline,
                priority=seen.priority,
            )
            for row, (seen, _, _, tokens) in enumerate(kept)
        ],
        origin={"observed": len(kept)},
    )


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
