"""The requests of a workload as columns, read as items: a million requests take a few dozen bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import repeat
from math import isnan, nan
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from armillary.measure.item import WorkItem

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
_TOGETHER = 1024
"""Rows whose numbers are made plain ones at a time, while a workload is read."""


@dataclass(frozen=True, eq=False)
class Columns(Sequence[WorkItem]):
    """One row a request. Names are kept once and rows hold their places; a column that nobody uses is None.

    Attributes:
        session, slo_class: places in `sessions` and `slo_classes`; -1 for none.
        shares: `(rows + 1)` places: the shared runs of row i are those from `shares[i]` to `shares[i + 1]` of `run`
            (places in `runs`) and `run_tokens`.
        sessions, runs, slo_classes, ids: names; None for numbered ones (`s0`, `p0`, and for ids the row's number).
        texts: row -> (prompt, token_ids), for the rows that bring their own.
    """

    prompt_tokens: Whole
    output_tokens: Whole
    arrival: Floats | None = None
    think: Floats | None = None
    session: Whole | None = None
    history: Whole | None = None
    shares: Whole | None = None
    run: Whole | None = None
    run_tokens: Whole | None = None
    deadline: Floats | None = None
    priority: Whole | None = None
    slo_class: Whole | None = None
    sessions: tuple[str, ...] | None = None
    runs: tuple[str, ...] | None = None
    slo_classes: tuple[str, ...] = ()
    ids: tuple[str, ...] | None = None
    texts: dict[int, tuple[str | None, tuple[int, ...] | None]] = field(default_factory=dict)

    @staticmethod
    def of(items: Sequence[WorkItem] | Iterator[WorkItem]) -> Columns:
        """The columns of `items`, which are read once."""
        if isinstance(items, Columns):
            return items
        counted = ("prompt_tokens", "output_tokens", "session", "history", "priority", "slo_class")
        whole = {name: array("q") for name in counted}
        real = {name: array("d") for name in ("arrival", "think", "deadline")}
        names: dict[str, dict[str, int]] = {"session": {}, "run": {}, "slo_class": {}}
        shares, run, run_tokens, ids = array("q", [0]), array("q"), array("q"), []
        texts: dict[int, tuple[str | None, tuple[int, ...] | None]] = {}
        for row, item in enumerate(items):
            for name, kept in (("prompt_tokens", item.prompt_tokens), ("output_tokens", item.output_tokens),
                               ("history", item.history), ("priority", item.priority)):  # fmt: skip
                whole[name].append(kept)
            for name, time in (("arrival", item.arrival), ("think", item.think), ("deadline", item.deadline)):
                real[name].append(np.nan if time is None else time)
            for name, word in (("session", item.session), ("slo_class", item.slo_class)):
                whole[name].append(-1 if word is None else names[name].setdefault(word, len(names[name])))
            for word, tokens in item.prefix:
                run.append(names["run"].setdefault(word, len(names["run"])))
                run_tokens.append(tokens)
            shares.append(len(run))
            ids.append(item.id)
            if item.prompt is not None or item.token_ids is not None:
                texts[row] = (item.prompt, item.token_ids)
        numbered = all(name == str(row) for row, name in enumerate(ids))
        return Columns(
            prompt_tokens=_whole(whole["prompt_tokens"]),
            output_tokens=_whole(whole["output_tokens"]),
            arrival=_real(real["arrival"], np.nan),
            think=_real(real["think"], 0.0),
            session=_whole(whole["session"]) if names["session"] else None,
            history=_whole(whole["history"]) if any(whole["history"]) else None,
            shares=_whole(shares) if run else None,
            run=_whole(run) if run else None,
            run_tokens=_whole(run_tokens) if run else None,
            deadline=_real(real["deadline"], np.nan),
            priority=_whole(whole["priority"]) if any(whole["priority"]) else None,
            slo_class=_whole(whole["slo_class"]) if names["slo_class"] else None,
            sessions=tuple(names["session"]),
            runs=tuple(names["run"]),
            slo_classes=tuple(names["slo_class"]),
            ids=None if numbered else tuple(ids),
            texts=texts,
        )

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @overload
    def __getitem__(self, place: int) -> WorkItem: ...
    @overload
    def __getitem__(self, place: slice) -> Columns: ...
    def __getitem__(self, place: int | slice) -> WorkItem | Columns:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return next(self._items(place % len(self), place % len(self) + 1))

    def __iter__(self) -> Iterator[WorkItem]:
        for first in range(0, len(self), _TOGETHER):
            yield from self._items(first, min(first + _TOGETHER, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Columns) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Columns) else False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def id(self, row: int) -> str:
        """The name of a row's request."""
        return str(row) if self.ids is None else self.ids[row]

    def session_name(self, code: int) -> str:
        """The name of a session."""
        return f"s{code}" if self.sessions is None else self.sessions[code]

    def prefix(self, row: int) -> tuple[tuple[str, int], ...]:
        """The shared runs that a row's prompt begins with."""
        if self.shares is None or self.run is None or self.run_tokens is None:
            return ()
        span = slice(int(self.shares[row]), int(self.shares[row + 1]))
        return tuple(
            (f"p{code}" if self.runs is None else self.runs[code], tokens)
            for code, tokens in zip(self.run[span].tolist(), self.run_tokens[span].tolist(), strict=True)
        )

    def prefix_tokens(self) -> Whole:
        """Of each row, how many leading tokens are shared runs."""
        if self.shares is None or self.run_tokens is None:
            return np.zeros(len(self), dtype=np.int64)
        upto = np.concatenate([[0], np.cumsum(self.run_tokens)])
        found: Whole = upto[self.shares[1:]] - upto[self.shares[:-1]]
        return found

    def turn_before(self) -> Whole:
        """Of each row, the row of the turn before it in its session; -1 where there is none."""
        before = np.full(len(self), -1, dtype=np.int64)
        if self.session is not None:
            order = np.argsort(self.session, kind="stable")
            same = (self.session[order[1:]] == self.session[order[:-1]]) & (self.session[order[1:]] >= 0)
            before[order[1:][same]] = order[:-1][same]
        return before

    def take(self, rows: Whole) -> Columns:
        """Some of the rows, in the given order. Requests keep their names."""
        taken: dict[str, object] = {"ids": tuple(self.id(int(row)) for row in rows)}
        for column in fields(self):
            values = getattr(self, column.name)
            if isinstance(values, np.ndarray) and len(values) == len(self) and column.name not in {"run", "run_tokens"}:
                taken[column.name] = values[rows]
        if self.shares is not None and self.run is not None and self.run_tokens is not None:
            counts = np.diff(self.shares)[rows]
            shares = np.concatenate([[0], np.cumsum(counts)])
            place = np.arange(shares[-1]) - np.repeat(shares[:-1], counts) + np.repeat(self.shares[rows], counts)
            taken |= {"shares": shares, "run": self.run[place], "run_tokens": self.run_tokens[place]}
        taken["texts"] = {new: self.texts[int(old)] for new, old in enumerate(rows) if int(old) in self.texts}
        return replace(self, **taken)  # type: ignore[arg-type]

    def _items(self, first: int, end: int) -> Iterator[WorkItem]:
        """The requests of some rows. A column's numbers are made plain ones all at once."""

        def plain(values: Floats | Whole | None, absent: object) -> Iterable[Any]:
            return repeat(absent) if values is None else values[first:end].tolist()

        columns = zip(
            range(first, end), plain(self.prompt_tokens, 0), plain(self.output_tokens, 0), plain(self.arrival, nan),
            plain(self.session, -1), plain(self.history, 0), plain(self.think, 0.0), plain(self.deadline, nan),
            plain(self.priority, 0), plain(self.slo_class, -1), strict=False,
        )  # fmt: skip
        for row, prompt_tokens, output_tokens, arrival, session, history, think, deadline, priority, own in columns:
            prompt, token_ids = self.texts.get(row, (None, None))
            yield WorkItem.of_columns(
                {
                    "id": self.id(row),
                    "arrival": None if isnan(arrival) else arrival,
                    "prompt_tokens": prompt_tokens,
                    "output_tokens": output_tokens,
                    "prefix": () if self.shares is None else self.prefix(row),
                    "session": None if session < 0 else self.session_name(session),
                    "history": history,
                    "think": think,
                    "deadline": None if isnan(deadline) else deadline,
                    "priority": priority,
                    "slo_class": None if own < 0 else self.slo_classes[own],
                    "prompt": prompt,
                    "token_ids": token_ids,
                }
            )


def _whole(values: array[int]) -> Whole:
    return np.array(values, dtype=np.int64)


def _real(values: array[float], absent: float) -> Floats | None:
    column = np.array(values, dtype=np.float64)
    unused = np.isnan(column) if np.isnan(absent) else column == absent
    return None if unused.all() else column
