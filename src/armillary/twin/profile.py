"""What was measured on a machine, kept in a JSON file: times of steps, of what lies between them, of requests."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from importlib import resources
from math import log2
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from armillary.errors import ArmillaryError, Code
from armillary.measure.report import write_text
from armillary.twin.spread import Spread, spread_of
from armillary.twin.work import COUNTED, StepWork

logger = logging.getLogger(__name__)

VERSION: Literal[8] = 8
Phase = Literal["machine", "steps", "engine", "server"]
NEAR = 8
"""Parts of the time near a request that comes or goes, by whose number steps are unlike."""
LIKE = 4
"""Like steps without which a step's own share of their mean says nothing."""
PHASES: tuple[Phase, ...] = ("machine", "steps", "engine", "server")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


_Counts = Annotated[tuple[float, ...], Field(min_length=COUNTED, max_length=COUNTED)]


class Timed(_Part):
    """A designed step, repeated: seconds of computing it, without scheduling, each time."""

    work: tuple[int, int, int, int, int]
    seconds: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)

    @property
    def quartile_s(self) -> float:
        """Seconds that a quarter of the repeats stayed below: what else runs on a machine only ever adds."""
        return sorted(self.seconds)[len(self.seconds) // 4]


class Lived(_Part):
    """Steps as they came in an engine under load, alone or as the means of like ones.

    Attributes:
        work: of each as in `StepWork` without copies, a mean where several are one.
        step_s: seconds.
        between_s: seconds to the start of the next step, where that is known.
        count: how many it stands for.
        spread: how single ones lay around these means; None where that was not kept.
    """

    work: list[_Counts] = Field(default_factory=list)
    step_s: list[float] = Field(default_factory=list)
    between_s: list[float | None] = Field(default_factory=list)
    count: list[int] = Field(default_factory=list)
    spread: Spread | None = None

    def add(self, work: StepWork, step_s: float, between_s: float | None) -> None:
        """Note one step."""
        self.work.append(work[:COUNTED])
        self.step_s.append(round(step_s, 8))
        self.between_s.append(None if between_s is None else round(between_s, 8))
        self.count.append(1)

    def averaged(self, most: int) -> Lived:
        """At most so many, each the mean of like ones: equal steps take different times, and what a client waits for is
        the sum of many, so that all of them must count."""
        for parts in (4, 3, 2, 1):  # of an octave
            groups: dict[tuple[int, ...], list[int]] = {}
            for index, (sequences, tokens, _, context, _, *served) in enumerate(self.work):
                near, read, read_tokens, ended = served
                more, long = _part(tokens - sequences, parts), _part(context / sequences, 1)
                key = (
                    _part(sequences, parts),
                    more,
                    long,
                    round(near * NEAR),
                    int(read),
                    _part(read_tokens, 1),
                    int(ended),
                )
                groups.setdefault(key, []).append(index)
            if len(groups) <= most:
                break
        found = Lived(spread=self._spread(list(groups.values())))
        for chosen in sorted(groups.values(), key=len, reverse=True)[:most]:
            gaps = [gap for i in chosen if (gap := self.between_s[i]) is not None]
            columns = zip(*(self.work[i] for i in chosen), strict=True)
            found.work.append(tuple(round(fmean(column), 3) for column in columns))
            found.step_s.append(round(fmean(self.step_s[i] for i in chosen), 8))
            found.between_s.append(round(fmean(gaps), 8) if gaps else None)
            found.count.append(len(chosen))
        return found

    def _spread(self, groups: list[list[int]]) -> Spread | None:
        """How steps, with what passed until the next, lie around the mean of like ones."""
        ratios: dict[int, tuple[float, float]] = {}
        for group in groups:
            whole = {i: self.step_s[i] + gap for i in group if (gap := self.between_s[i]) is not None}
            if len(whole) >= LIKE:
                step, mean = fmean(self.step_s[i] for i in whole), fmean(whole.values())
                ratios |= {i: (step, seconds / mean) for i, seconds in whole.items()}
        return spread_of([ratios[i] for i in sorted(ratios)])


def _part(value: float, parts: int) -> int:
    """Which part of which octave a value lies in; few are told apart one by one."""
    return int(value) if value < 2 * parts else round(parts * log2(value))


class Profile(_Part):
    """A machine, a model on it, and what was measured.

    Attributes:
        model: name, digest of its config.json, weights, bytes.
        machine: processor, features, cores, memory.
        software: versions, and what computed.
        engine: the settings that bear on a step's time.
        bandwidth: bytes per second read from memory, best and median.
        peaks: element type -> operations per second in large products, best.
        steps: designed ones.
        lived: in an engine with nothing around it.
        served: in a server, loaded by clients on the same machine.
        requests: prompt tokens, seconds that a client waits for its first token beside the engine's own time, and by
            how many more that token was on its way to it than the last one.
        done: phases that are complete.
    """

    armillary_profile: Literal[8] = VERSION
    begun: str
    finished: str | None = None
    model: dict[str, Any]
    machine: dict[str, Any]
    software: dict[str, Any]
    engine: dict[str, Any]
    bandwidth: tuple[float, float] | None = None
    peaks: dict[str, float] = Field(default_factory=dict)
    steps: list[Timed] = Field(default_factory=list)
    lived: Lived = Field(default_factory=Lived)
    served: Lived = Field(default_factory=Lived)
    requests: list[tuple[int, float, float]] = Field(default_factory=list)
    done: list[Phase] = Field(default_factory=list)

    @property
    def key(self) -> str:
        """Equal for profiles of the same model on the same machine, software and settings."""
        return json_digest([self.model, self.machine, self.software, self.engine])

    @property
    def name(self) -> str:
        """For people: model and processor."""
        name = str(self.model.get("name")).rstrip("/").split("/")[-1]
        return f"{name} on {self.machine.get('cpu')}, {self.engine.get('dtype')}"

    def save(self, path: Path) -> None:
        """Write it under a temporary name, then rename."""
        write_text(path, self.model_dump_json(indent=None) + "\n")

    @staticmethod
    def load(path: Path) -> Profile:
        """Read what `save` wrote.

        Raises ArmillaryError: INVALID_REQUEST where the file is none.
        """
        try:
            return Profile.parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            if first is not None and first["loc"] == ("armillary_profile",):
                reason = f"it is of version {first['input']}, and this reads {VERSION}; run `armillary profile` again"
            else:
                reason = str(error).splitlines()[0] if first is None else f"{first['loc']}: {first['msg']}"
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"profile must be a file that `armillary profile` wrote, given {path}: {reason}",
                "profile",
            ) from error

    @staticmethod
    def parse(text: str) -> Profile:
        """The profile in a text. Raises pydantic's ValidationError."""
        return Profile.model_validate_json(text)


def profile_folder() -> Path:
    """Where profiles are kept: in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "armillary" / "profiles"


def stored_path(profile: Profile) -> Path:
    """Where a profile is kept unless somebody names a file."""
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in str(profile.model.get("name")).split("/")[-1])
    return profile_folder() / f"{name}-{profile.key}.json"


def stored_profiles(model: str | None = None) -> list[Profile]:
    """The complete profiles of this user, latest first; of one model by its digest."""
    found = []
    for path in sorted(profile_folder().glob("*.json")):
        try:
            profile = Profile.load(path)
        except ArmillaryError as error:  # of another version, or damaged: as good as none
            logger.warning("%s", error.message)
            continue
        if profile.finished and (model is None or profile.model.get("digest") == model):
            found.append(profile)
    return sorted(found, key=lambda profile: profile.finished or "", reverse=True)


def shipped_profile() -> Profile:
    """The profile of the bundled model that comes with the package, of the machine that it names."""
    text = resources.files("armillary.twin").joinpath("isles-profile.json").read_text(encoding="utf-8")
    return Profile.parse(text)


def json_digest(values: Any) -> str:
    """What tells contents of JSON apart, those of config.json for one: 64 bits of them, in hexadecimal."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
