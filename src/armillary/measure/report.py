"""The report of a run: everything that the table and the page show, saved as JSON and read back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from armillary.errors import ArmillaryError, Code
from armillary.measure.place import written
from armillary.measure.record import RequestRecord
from armillary.measure.summary import Summary

VERSION = 1


class Report(BaseModel):
    """One run of the load client."""

    model_config = ConfigDict(extra="forbid")

    armillary_report: int = VERSION
    title: str = ""
    started: datetime
    target: dict[str, Any] = Field(description="Server, model and endpoint; never the key.")
    workload: dict[str, Any] = Field(description="What the workload was drawn from, and its size.")
    machine: dict[str, Any] = Field(default_factory=dict, description="Where the client ran.")
    calibration: dict[str, float] = Field(default_factory=dict)
    summary: Summary
    records: list[RequestRecord]

    @staticmethod
    def now() -> datetime:
        """The present moment, with its zone."""
        return datetime.now(UTC)

    def save(self, path: str | Path) -> None:
        """Write as JSON, under a temporary name first."""
        write_text(Path(path), self.model_dump_json() + "\n")

    @staticmethod
    def load(path: str | Path) -> Report:
        """Read what `save` wrote."""
        try:
            return Report.model_validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"report must be a JSON file written by a bench run, given {str(path)!r}, so: {error}",
            ) from error


def write_text(path: Path, text: str) -> None:
    """Write `text`, all of it or nothing."""
    with written(path) as file:
        file.write(text)
