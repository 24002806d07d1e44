"""Two journals, decision by decision: how many are equal, and where the first one differs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.measure.journal import Life, Record, read_journal, read_lines
from armillary.twin.replay import replay

DECISIONS = ("run", "admitted", "preempted", "copies", "free")
"""What the scheduler decides in a step. Of the rest, `at` and `until` are times and the others are what was found."""
BEFORE = 3
"""Steps before a divergence that are shown with it."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step in which two engines decided otherwise.

    Attributes:
        step: its number.
        lines: where it stands in each journal, from 1; None where a journal had ended.
        at: the time of the step in each.
        differs: the fields of the decision that are not equal, with the values of both.
        before: the decisions of the steps before it, which were equal; the last one last.
        running, waiting: requests in each state before the step, in the first journal.
        free: free KV blocks before the step; None before the first.
        requests: what the requests that the differing fields name asked for, by id.
    """

    step: int
    lines: tuple[int | None, int | None]
    at: tuple[float | None, float | None]
    differs: dict[str, tuple[Any, Any]]
    before: list[Record]
    running: list[str]
    waiting: list[str]
    free: int | None
    requests: dict[str, Record]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two journals agree.

    Attributes:
        steps: of the longer one.
        equal: steps of the same number in which both decided the same.
        identical: whether the journals are equal byte for byte.
        line: the first line that differs, from 1; None where they are identical.
        divergence: the first decision that differs; None where all are equal.
    """

    steps: int
    equal: int
    identical: bool
    line: int | None
    divergence: Divergence | None

    @property
    def share(self) -> float:
        """Equal decisions of all."""
        return self.equal / self.steps if self.steps else 1.0


def compare_files(first: Path, second: Path | None) -> list[Comparison]:
    """Compare the journals in two files, or the one in a file with that of a twin that lives it again.

    Returns:
        One comparison for each time that an engine began to write.

    Raises:
        ArmillaryError: NOT_FOUND, INVALID_REQUEST; the latter too where the files hold different numbers of lives.
    """
    lives = read_journal(first)
    others = (
        [Life(life.first, replay(life.lines, first=life.first)) for life in lives]
        if second is None
        else read_journal(second)
    )
    if len(lives) != len(others):
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"both journals must have been begun as often, given {len(lives)} and {len(others)} times",
            "other",
        )
    return [compare(a, b) for a, b in zip(lives, others, strict=True)]


def compare(first: Life, second: Life) -> Comparison:
    """Compare two journals of engines that were given the same.

    Raises:
        ArmillaryError: INVALID_REQUEST where a line cannot be read.
    """
    both = (read_lines(first.lines, first.first), read_lines(second.lines, second.first))
    steps = [{r["step"]: (i, r) for i, r in enumerate(records) if "step" in r} for records in both]
    numbers = sorted(steps[0].keys() | steps[1].keys())
    differing = [n for n in numbers if _decision(steps[0].get(n)) != _decision(steps[1].get(n))]
    lines = zip(first.lines, second.lines, strict=False)
    line = next((i for i, (a, b) in enumerate(lines) if a != b), min(len(first.lines), len(second.lines)))
    identical = first.lines == second.lines
    return Comparison(
        steps=len(numbers),
        equal=len(numbers) - len(differing),
        identical=identical,
        line=None if identical else first.first + line,
        divergence=_divergence(differing[0], steps, both[0], (first, second)) if differing else None,
    )


def _decision(found: tuple[int, Record] | None) -> dict[str, Any] | None:
    return None if found is None else {field: found[1].get(field) for field in DECISIONS}


def _divergence(
    number: int, steps: list[dict[int, tuple[int, Record]]], records: list[Record], lives: tuple[Life, Life]
) -> Divergence:
    found = [by_number.get(number) for by_number in steps]
    decisions = [_decision(f) or dict.fromkeys(DECISIONS) for f in found]
    differs = {f: (decisions[0][f], decisions[1][f]) for f in DECISIONS if decisions[0][f] != decisions[1][f]}
    here = found[0][0] if found[0] is not None else len(records)
    past = [r for r in records[:here] if "step" in r]
    asked = _alive(records[:here])
    running = {name for name, *_ in past[-1]["run"]} & asked.keys() if past else set()
    named = {
        entry[0]
        for values in differs.values()
        for value in values
        for entry in (value if isinstance(value, list) else ())
        if isinstance(entry, list) and isinstance(entry[0], str)
    }
    lines = [None if f is None else life.first + f[0] for f, life in zip(found, lives, strict=True)]
    times = [None if f is None else f[1]["at"] for f in found]
    return Divergence(
        step=number,
        lines=(lines[0], lines[1]),
        at=(times[0], times[1]),
        differs=differs,
        before=[{"step": r["step"], "at": r["at"], **{f: r[f] for f in DECISIONS}} for r in past[-BEFORE:]],
        running=sorted(running),
        waiting=[name for name in asked if name not in running],
        free=past[-1]["free"] if past else None,
        requests={name: _asked(asked[name]) for name in asked if name in named},
    )


def _alive(records: list[Record]) -> dict[str, Record]:
    """The submissions of the requests that have not ended, in order."""
    asked: dict[str, Record] = {}
    choices: dict[str, int] = {}
    for record in records:
        if "submit" in record:
            asked[record["submit"]] = record
            choices[record["submit"]] = record["n"]
        ended = [name for name, *_ in (*record.get("ended", ()), *record.get("expire", ()))]
        if "cancel" in record:
            ended += [record["cancel"]] * (choices.get(record["cancel"], 0) if record["index"] is None else 1)
        for name in ended:
            choices[name] = choices.get(name, 1) - 1
            if choices[name] <= 0:
                asked.pop(name, None)
    return asked


def _asked(record: Record) -> Record:
    """A submission without its tokens."""
    return {
        **{k: v for k, v in record.items() if k not in ("submit", "prompt")},
        "prompt_tokens": len(record["prompt"]),
    }


def tell(comparison: Comparison, names: tuple[str, str]) -> str:
    """A comparison in sentences.

    Args:
        names: what the two journals are called.
    """
    c = comparison
    text = f"{c.steps} steps; in {c.equal} of them both decided the same ({100 * c.share:.4g} %)."
    if c.identical:
        return text + " The journals are equal byte for byte."
    if c.divergence is None:
        return text + f" They differ in times or in what was found, first in line {c.line}."
    d = c.divergence
    where = " and ".join(
        f"{name} ended before it" if line is None or at is None else f"line {line} of {name}, at {at:.6f} s"
        for name, line, at in zip(names, d.lines, d.at, strict=True)
    )
    rows = [text, f"The first that differs is step {d.step} ({where}):"]
    for field, values in d.differs.items():
        rows += [f"  {field:<10} {name}: {json.dumps(value)}" for name, value in zip(names, values, strict=True)]
    rows += ["Before it:", *(f"  {json.dumps(step)}" for step in d.before)]
    rows += [f"  running: {' '.join(d.running) or '-'}", f"  waiting: {' '.join(d.waiting) or '-'}"]
    if d.free is not None:
        rows.append(f"  free blocks: {d.free}")
    rows += [f"  {name} asked for {json.dumps(asked)}" for name, asked in d.requests.items()]
    return "\n".join(rows)
