"""Recorded traces: our own JSONL, a server's journal, the public Azure CSV files, and Mooncake's JSONL.

    Azure (2023 and 2024)    TIMESTAMP,ContextTokens,GeneratedTokens
    Mooncake                 {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}

Mooncake's `hash_ids` name blocks of 512 tokens, each id standing for its block and all before it; equal ids are equal
tokens, so each becomes a shared run.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code
from armillary.measure.columns import Columns
from armillary.measure.item import MOST_TOKENS
from armillary.measure.journal import BEGINS, read_journal
from armillary.measure.observed import observed
from armillary.measure.workload import TEXT, Workload

_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOONCAKE_BLOCK = 512


def read_workload(path: str | Path) -> Workload:
    """The workload in a file of any format known here; what cannot be read is an error that names the line.

    Of a journal, it is what was asked since its engine last started.
    """
    try:
        return _read(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArmillaryError(
            Code.NOT_FOUND,
            f"workload must be a preset or a readable file, given {str(path)!r}, so: {error}",
            "workload",
        ) from error


def _read(path: str | Path) -> Workload:
    with Path(path).open(encoding=TEXT) as file:
        head = next((line for line in file if line.strip()), "")
    if head.lower().startswith(_AZURE[0].lower()):
        return Workload(_azure(path), origin={"trace": Path(path).name, "format": "azure"})
    if '"input_length"' in head and '"armillary_workload"' not in head:
        return Workload(_mooncake(path), origin={"trace": Path(path).name, "format": "mooncake"})
    if head.startswith(BEGINS):
        found = observed(read_journal(path)[-1])
        return replace(found, origin={"trace": Path(path).name, "format": "journal"})
    return Workload.read(path)


def read_trace(path: str | Path) -> Columns:
    """The requests recorded in a file, for their lengths."""
    return read_workload(path).columns


def _azure(path: str | Path) -> Columns:
    when, prompt, output = array("d"), array("q"), array("q")
    with Path(path).open(encoding=TEXT, newline="") as file:
        rows = csv.reader(file)
        if tuple(name.strip() for name in next(rows)) != _AZURE:
            raise _bad(path, 1, f"must begin with {','.join(_AZURE)}")
        for number, row in enumerate(rows, start=2):
            if not row:
                continue
            try:
                stamp, context, generated = row
                moment, lengths = datetime.fromisoformat(stamp.strip()), (int(context), int(generated))
            except (ValueError, OverflowError) as error:
                raise _bad(path, number, f"must hold a time and two whole numbers, so: {error}") from error
            # Without a zone no clock was put forward or back in between, whatever this machine's does.
            when.append((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
            _add_lengths(path, number, lengths, prompt, output)
    return _columns(path, when, prompt, output)


def _mooncake(path: str | Path) -> Columns:
    when, prompt, output = array("d"), array("q"), array("q")
    shares, run, run_tokens = array("q", [0]), array("q"), array("q")
    codes: dict[int, int] = {}
    for number, row in _json_rows(path):
        try:
            seconds = float(row["timestamp"]) / 1e3
            lengths = _whole(row["input_length"]), _whole(row["output_length"])
            names = row.get("hash_ids", [])
            if not isinstance(names, list):
                raise TypeError(f"hash_ids must be a list, given {names!r}")
            hashes = [_whole(name) for name in names]
            if not isfinite(seconds):
                raise ValueError(f"timestamp must be finite, given {seconds}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _bad(
                path, number, f"must hold timestamp, input_length, output_length and hash_ids, so: {error}"
            ) from error
        when.append(seconds)
        _add_lengths(path, number, lengths, prompt, output)
        left = prompt[-1]
        for name in hashes:
            if left > 0:
                run.append(codes.setdefault(name, len(codes)))
                run_tokens.append(min(left, _MOONCAKE_BLOCK))
                left -= _MOONCAKE_BLOCK
        shares.append(len(run))
    order, columns = _order(when), _columns(path, when, prompt, output, sort=False)
    shared = Columns(
        columns.prompt_tokens, columns.output_tokens, columns.arrival,
        shares=np.array(shares), run=np.array(run), run_tokens=np.array(run_tokens), runs=tuple(f"h{n}" for n in codes),
    )  # fmt: skip
    return shared if order is None else shared.take(order)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or value != int(value):
        raise ValueError(f"whole numbers are wanted, given {value!r}")
    return int(value)


def _json_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with Path(path).open(encoding=TEXT) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _bad(path, number, f"must be one JSON object, so: {error}") from error
            if not isinstance(row, dict):
                raise _bad(path, number, f"must be one JSON object, given {type(row).__name__}")
            yield number, row


def _add_lengths(
    path: str | Path, number: int, lengths: tuple[int, int], prompt: array[int], output: array[int]
) -> None:
    # Traces hold a few requests that generated nothing; they computed their prompt all the same.
    if lengths[0] < 0 or lengths[1] < 0:
        raise _bad(path, number, f"must hold lengths of at least 0, given {lengths}")
    if max(lengths) > MOST_TOKENS:
        raise _bad(path, number, f"must hold lengths of at most {MOST_TOKENS} tokens, given {lengths}")
    prompt.append(max(1, lengths[0]))
    output.append(max(1, lengths[1]))


def _order(when: array[float]) -> NDArray[np.int64] | None:
    times = np.array(when)
    return np.argsort(times, kind="stable") if len(times) > 1 and (np.diff(times) < 0).any() else None


def _columns(
    path: str | Path, when: array[float], prompt: array[int], output: array[int], sort: bool = True
) -> Columns:
    if not when:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"a trace must hold at least one request, given {str(path)!r} with none", "workload"
        )
    times = np.array(when)
    columns = Columns(np.array(prompt), np.array(output), times - times.min())
    order = _order(when) if sort else None
    return columns if order is None else columns.take(order)


def _bad(path: str | Path, number: int, what: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, f"{path}:{number} {what}", param="workload")
