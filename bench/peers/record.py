"""What was measured, kept after every measurement, so that a run that is cut off goes on where it was."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from armillary.measure.report import write_text

from .environments import processors

FORMAT = 1
HEAD = 8
"""Generated tokens of each request that are kept, to see whether engines compute the same."""


@dataclass(frozen=True)
class Cell:
    """What is measured several times."""

    shape: str
    precision: str
    workload: str
    engine: str
    scale: float


@dataclass(frozen=True)
class Record:
    """One measurement, or why there is none.

    Attributes:
        rate: tokens per second as the workload counts them; None with an error.
        seconds: that this took.
        load_seconds: from the start of the process until it could run; of the process that measured this.
        peak: bytes of main memory, at most, during the run.
        limits: of the machine, measured just before.
        limit: the rate that they allow.
        heads: the first generated tokens of each request.
        facts: what the engine says of itself.
        load_average: of the machine, when it began.
    """

    cell: Cell
    repeat: int
    error: str | None = None
    rate: float | None = None
    seconds: float = 0.0
    load_seconds: float = 0.0
    peak: int = 0
    limits: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    heads: list[list[int]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    load_average: float = 0.0


def machine() -> dict[str, Any]:
    """Where this runs; results of two machines are never mixed."""
    return {"processor": _processor(), "system": platform.platform(terse=True), "cpus": len(processors())}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    except OSError:
        names = {}
    units = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
             if flag in names.get("flags", "").split()]  # fmt: skip
    return " ".join([names.get("model name", platform.processor() or platform.machine()), *units])


def read(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """The machine and the records of a file, of whatever machine.

    Raises ValueError: for a file of something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        records = [Record(**{**entry, "cell": Cell(**entry["cell"])}) for entry in found["records"]]
        return dict(found["machine"]), records
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold results of this bench, given {error}; begin anew with --fresh") from None


class Results:
    """A file of records, which is gone on with.

    Raises ValueError: for a file of another machine, or of something else.
    """

    def __init__(self, path: Path, threads: int, fresh: bool = False) -> None:
        self.path = path
        self.machine = {**machine(), "threads": threads}
        self.records: list[Record] = []
        if fresh or not path.exists():
            return
        other, self.records = read(path)
        if other != self.machine:
            raise ValueError(
                f"{path} must hold results of this machine with {threads} threads, given {other}; "
                "name another file with --out, or begin anew with --fresh"
            )

    def add(self, record: Record) -> None:
        """Keep `record` instead of any earlier one of the same cell and repeat."""
        self.records = [r for r in self.records if (r.cell, r.repeat) != (record.cell, record.repeat)] + [record]
        found = {"format": FORMAT, "machine": self.machine, "records": [asdict(r) for r in self.records]}
        write_text(self.path, json.dumps(found, indent=1) + "\n")

    def has(self, cell: Cell, repeat: int) -> bool:
        """Whether this was measured; what failed was not."""
        return any(r.cell == cell and r.repeat == repeat and r.error is None for r in self.records)
