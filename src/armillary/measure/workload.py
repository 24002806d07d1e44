"""The workload: which requests come when. One JSONL format, for the load client, the server and the simulator.

Each line is one request (`WorkItem`). A first line that holds the key `armillary_workload` is the header: the
format's version, the number of users where the loop is closed, the service levels of the classes that requests may
name, and the specification it was drawn from. A file without header is an open loop, so recorded traces with at least
`prompt_tokens` and `output_tokens` read as they are.

    {"armillary_workload": 2, "users": null, "slo_classes": {"quick": "ttft p95 500ms"}, "origin": {"rate": 4.0}}
    {"id": "0", "arrival": 0.21, "prompt_tokens": 128, "output_tokens": 64, "prefix": [["p3", 96]],
     "slo_class": "quick"}    (in one line)

Open loop: a request is due at `arrival`, whatever the server does. Requests of one `session` are turns of one
conversation: a turn is due at its arrival or `think` seconds after the turn before ended, whichever is later.
Closed loop (`users` = N): N users take the conversations (requests without a session are conversations of one turn) in
order; each sends its next request `think` seconds after its last one ended. `arrival` must be absent, and the turns
of a conversation must stand one after another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from armillary.deployment.document import dotted
from armillary.deployment.explain import explain, known_keys
from armillary.deployment.faults import located
from armillary.errors import ArmillaryError, Code
from armillary.measure.columns import Columns
from armillary.measure.item import WorkItem
from armillary.measure.place import written
from armillary.measure.slo import Slo

__all__ = ["VERSION", "WorkItem", "Workload"]

VERSION = 2
TEXT = "utf-8-sig"
"""Of files that others wrote: some editors and spreadsheets begin them with a mark."""


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they are due (open loop) or taken (closed loop).

    Attributes:
        items: read as `WorkItem`s, kept as `Columns`, whatever sequence was given.
        users: of a closed loop.
        origin: the specification that the workload was drawn from, for the record.
        slo_classes: class -> its service level.
    """

    items: Sequence[WorkItem]
    users: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    slo_classes: Mapping[str, Slo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", Columns.of(self.items))
        if not len(self.items):
            raise _invalid("a workload must hold at least one request, given none")
        if self.users is not None and self.users < 1:
            raise _invalid(f"users must be at least 1, given {self.users}")
        _check_contents(self.columns)
        if self.users is None:
            _check_open(self.columns)
        else:
            _check_closed(self.columns)

    @property
    def columns(self) -> Columns:
        """The requests as columns."""
        return Columns.of(self.items)  # which they are since __post_init__

    def __len__(self) -> int:
        return len(self.items)

    @property
    def duration(self) -> float:
        """Seconds until the last arrival; 0 for a closed loop."""
        return 0.0 if self.columns.arrival is None else float(self.columns.arrival[-1])

    @property
    def offered_rate(self) -> float | None:
        """Requests per second that an open loop asks for; None for a closed loop or where all come at once."""
        return len(self.items) / self.duration if self.users is None and self.duration > 0 else None

    def lines(self) -> Iterator[str]:
        """The JSONL form, header first."""
        header: dict[str, Any] = {"armillary_workload": VERSION, "users": self.users, "origin": self.origin}
        if self.slo_classes:
            header["slo_classes"] = {name: str(slo) for name, slo in self.slo_classes.items()}
        yield json.dumps(header)
        for item in self.items:
            yield item.model_dump_json(exclude_defaults=True)

    def write(self, path: str | Path) -> None:
        """Write the JSONL form, all of it or nothing."""
        with written(Path(path)) as file:
            file.writelines(f"{line}\n" for line in self.lines())

    @staticmethod
    def read(path: str | Path) -> Workload:
        """Read a JSONL workload; a line that does not fit is an error that names it."""
        reader = _Reader(str(path))
        try:
            with Path(path).open(encoding=TEXT) as file:
                columns = Columns.of(reader.items(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ArmillaryError(
                Code.NOT_FOUND, f"workload must be a readable JSONL file, given {str(path)!r}, so: {error}"
            ) from error
        return Workload(columns, reader.users, reader.origin, reader.slo_classes)


class _Reader:
    """Reads lines one by one; what the header says stands in its attributes afterwards."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.users: int | None = None
        self.origin: dict[str, Any] = {}
        self.slo_classes: dict[str, Slo] = {}

    def items(self, lines: Iterator[str]) -> Iterator[WorkItem]:
        count, arrival = 0, 0.0
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = self._row(number, line)
            if "armillary_workload" in row:
                self._header(number, row, first=count == 0)
                continue
            row.setdefault("id", str(count))
            if self.users is None:
                row.setdefault("arrival", arrival)
            try:
                item = WorkItem.model_validate(row)
            except ValidationError as error:
                first = located(error, row)[0]
                key = first["loc"]
                told = explain(first, f"{self._path}:{number}: {dotted(key)}", known_keys(WorkItem, key))
                raise _invalid(told) from error
            count += 1
            arrival = item.arrival or 0.0
            yield item

    def _row(self, number: int, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _invalid(f"{self._path}:{number} must be one JSON object, so: {error}") from error
        if not isinstance(row, dict):
            raise _invalid(f"{self._path}:{number} must be one JSON object, given {type(row).__name__}")
        return row

    def _header(self, number: int, row: dict[str, Any], first: bool) -> None:
        where = f"{self._path}:{number}"
        if row["armillary_workload"] != VERSION or not first:
            raise _invalid(
                f"{where} must be a header of version {VERSION} before the first request, "
                f"given version {row['armillary_workload']!r}"
            )
        users, origin, classes = row.get("users"), row.get("origin") or {}, row.get("slo_classes") or {}
        if users is not None and (not isinstance(users, int) or isinstance(users, bool) or users < 1):
            raise _invalid(f"{where}: users must be a whole number of at least 1, given {users!r}")
        if not isinstance(origin, dict):
            raise _invalid(f"{where}: origin must be a JSON object, given {origin!r}")
        if not isinstance(classes, dict) or not all(isinstance(text, str) for text in classes.values()):
            raise _invalid(f"{where}: slo_classes must map names to service levels, given {classes!r}")
        self.users, self.origin = users, origin
        self.slo_classes = {name: Slo.parse(text) for name, text in classes.items()}


def _check_contents(columns: Columns) -> None:
    if columns.ids is not None and len(set(columns.ids)) < len(columns):
        seen: set[str] = set()
        twice = next(name for name in columns.ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _invalid(f"request ids must be unique, given {twice!r} twice")
    shared = columns.prefix_tokens()
    for row in _first(shared > columns.prompt_tokens):
        raise _invalid(
            f"a prefix must be at most prompt_tokens ({columns.prompt_tokens[row]}) long, given {shared[row]} tokens "
            f"in request {columns.id(row)!r}"
        )
    for row, (_, token_ids) in columns.texts.items():
        if token_ids is not None and len(token_ids) != columns.prompt_tokens[row]:
            raise _invalid(
                f"token_ids must hold prompt_tokens = {columns.prompt_tokens[row]} ids, given {len(token_ids)} "
                f"in request {columns.id(row)!r}"
            )
    if columns.history is not None:
        _check_history(columns, columns.history, shared)


def _check_history(columns: Columns, history: NDArray[np.int64], shared: NDArray[np.int64]) -> None:
    before = columns.turn_before()
    said = np.where(before >= 0, columns.prompt_tokens[before] + columns.output_tokens[before], 0)
    for row in _first(history > np.minimum(said, columns.prompt_tokens)):
        raise _invalid(
            f"history must be at most prompt_tokens ({columns.prompt_tokens[row]}) and the prompt and answer of the "
            f"session's turn before ({said[row]} tokens), given {history[row]} in request {columns.id(row)!r}"
        )
    for row in _first((history > 0) & (shared > 0)):
        raise _invalid(f"a prompt must begin with its history or with a prefix, request {columns.id(row)!r} has both")


def _check_open(columns: Columns) -> None:
    missing = [0] if columns.arrival is None else _first(np.isnan(columns.arrival))
    for row in missing:
        raise _invalid(f"an open loop's requests must have an arrival, request {columns.id(row)!r} has none")
    for row in [] if columns.arrival is None else _first(np.isinf(columns.arrival)):
        raise _invalid(
            f"requests must come in finite time, request {columns.id(row)!r} never does: raise rate or speed"
        )
    if columns.arrival is not None:
        for row in _first(np.diff(columns.arrival) < 0):
            raise _invalid(
                f"arrivals must not decrease, given {columns.arrival[row + 1]} after {columns.arrival[row]} "
                f"in request {columns.id(row + 1)!r}"
            )


def _check_closed(columns: Columns) -> None:
    if columns.arrival is not None:
        for row in _first(~np.isnan(columns.arrival)):
            raise _invalid(f"a closed loop's requests must have no arrival, given request {columns.id(row)!r} with one")
    before = columns.turn_before()
    for row in _first((before >= 0) & (before != np.arange(len(columns)) - 1)):
        raise _invalid(
            "a closed loop's conversations must have their turns one after another, "
            f"given request {columns.id(row)!r} apart from the turn before it"
        )


def _first(wrong: NDArray[np.bool_]) -> list[int]:
    """The first row that is wrong, if any is."""
    return [int(row) for row in np.flatnonzero(wrong)[:1]]


def _invalid(message: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, message, param="workload")
