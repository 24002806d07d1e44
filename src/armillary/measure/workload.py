"""The workload: which requests come when. One JSONL format, for the load client and for the simulator.

Each line is one request (`WorkItem`). A first line that holds the key `armillary_workload` is the header: the
format's version, the number of users where the loop is closed, and the specification it was drawn from. A file without
header is an open loop, so recorded traces with at least `prompt_tokens` and `output_tokens` read as they are.

    {"armillary_workload": 1, "users": null, "origin": {"rate": 4.0, "seed": 0}}
    {"id": "0", "arrival": 0.21, "prompt_tokens": 128, "output_tokens": 64, "prefix": "p3", "prefix_tokens": 96}

Open loop: a request is due at `arrival`, whatever the server does. Requests of one `session` are turns of one
conversation: a turn is due at its arrival or `think` seconds after the turn before it ended, whichever is later.
Closed loop (`users` = N): N users take the lines in order; each sends its next request `think` seconds after
its last one ended; `arrival` and `session` must be absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from armillary.errors import ArmillaryError, Code

VERSION = 1


class WorkItem(BaseModel):
    """One request of a workload. Times are seconds from the workload's start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="Unique in the workload; the line's number where a file gives none.")
    arrival: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="When the request is due, for an open loop."
    )
    prompt_tokens: int = Field(ge=1, description="Length of the prompt, its shared prefix included.")
    output_tokens: int = Field(ge=1, description="How many tokens to generate.")
    prefix: str | None = Field(default=None, description="Requests with the same prefix id begin alike.")
    prefix_tokens: int = Field(default=0, ge=0, description="How many leading prompt tokens the prefix is.")
    session: str | None = Field(default=None, description="Turns of one conversation, sent one after another.")
    think: float = Field(default=0.0, ge=0, description="Seconds between the end of the turn before and this one.")
    deadline: float | None = Field(
        default=None, gt=0, description="Seconds after it was due by which the last token is wanted."
    )
    priority: int = Field(default=0, description="Smaller is served first, where the server orders by priority.")
    prompt: str | None = Field(default=None, description="The prompt itself; made up from the lengths where absent.")
    token_ids: tuple[int, ...] | None = Field(default=None, description="The prompt as token ids.")


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they are due (open loop) or taken (closed loop)."""

    items: tuple[WorkItem, ...]
    users: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    """The specification that the workload was drawn from, for the record."""

    def __post_init__(self) -> None:
        if not self.items:
            raise _invalid("a workload must hold at least one request, given none")
        if self.users is not None and self.users < 1:
            raise _invalid(f"users must be at least 1, given {self.users}")
        seen: set[str] = set()
        last = 0.0
        for item in self.items:
            if item.id in seen:
                raise _invalid(f"request ids must be unique, given {item.id!r} twice")
            seen.add(item.id)
            if item.prefix_tokens > item.prompt_tokens:
                raise _invalid(
                    f"prefix_tokens must be at most prompt_tokens ({item.prompt_tokens}), given {item.prefix_tokens} "
                    f"in request {item.id!r}"
                )
            if (item.prefix is None) != (item.prefix_tokens == 0):
                raise _invalid(f"prefix and prefix_tokens must be given together, request {item.id!r} has only one")
            if item.token_ids is not None and len(item.token_ids) != item.prompt_tokens:
                raise _invalid(
                    f"token_ids must hold prompt_tokens = {item.prompt_tokens} ids, given {len(item.token_ids)} "
                    f"in request {item.id!r}"
                )
            if self.users is not None:
                if item.arrival is not None or item.session is not None:
                    raise _invalid(
                        "a closed loop's requests must have neither arrival nor session, "
                        f"given request {item.id!r} with one"
                    )
                continue
            if item.arrival is None:
                raise _invalid(f"an open loop's requests must have an arrival, request {item.id!r} has none")
            if item.arrival < last:
                raise _invalid(f"arrivals must not decrease, given {item.arrival} after {last} in request {item.id!r}")
            last = item.arrival

    def __len__(self) -> int:
        return len(self.items)

    @property
    def duration(self) -> float:
        """Seconds until the last arrival; 0 for a closed loop."""
        return self.items[-1].arrival or 0.0

    @property
    def offered_rate(self) -> float | None:
        """Requests per second that an open loop asks for; None for a closed loop or where all come at once."""
        return len(self.items) / self.duration if self.users is None and self.duration > 0 else None

    def lines(self) -> Iterator[str]:
        """The JSONL form, header first."""
        yield json.dumps({"armillary_workload": VERSION, "users": self.users, "origin": self.origin})
        for item in self.items:
            yield item.model_dump_json(exclude_defaults=True)

    def write(self, path: str | Path) -> None:
        """Write the JSONL form, under a temporary name first."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(line + "\n" for line in self.lines()), encoding="utf-8")
        os.replace(temporary, target)

    @staticmethod
    def read(path: str | Path) -> Workload:
        """Read a JSONL workload; a line that does not fit is an error that names it."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArmillaryError(
                Code.NOT_FOUND, f"workload must be a readable JSONL file, given {str(path)!r}, so: {error}"
            ) from error
        users: int | None = None
        origin: dict[str, Any] = {}
        items: list[WorkItem] = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _invalid(f"{path}:{number} must be one JSON object, so: {error}") from error
            if not isinstance(row, dict):
                raise _invalid(f"{path}:{number} must be one JSON object, given {type(row).__name__}")
            if "armillary_workload" in row:
                if row["armillary_workload"] != VERSION or items:
                    raise _invalid(
                        f"{path}:{number} must be a header of version {VERSION} before the first request, "
                        f"given version {row['armillary_workload']!r}"
                    )
                users, origin = row.get("users"), row.get("origin") or {}
                continue
            row.setdefault("id", str(len(items)))
            if users is None:
                row.setdefault("arrival", items[-1].arrival if items else 0.0)
            try:
                items.append(WorkItem.model_validate(row))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise _invalid(f"{path}:{number}: {where}: {first['msg']}, given {first.get('input')!r}") from error
        return Workload(tuple(items), users, origin)


def _invalid(message: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, message, param="workload")
