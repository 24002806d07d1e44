"""An experiment: the file that describes it, the runs that it takes, and taking them, so that they can be resumed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from armillary.deployment import Deployment, checked
from armillary.deployment.document import read
from armillary.deployment.load import read_contents, rooted
from armillary.errors import ArmillaryError, Code
from armillary.measure.presets import check_spec
from armillary.measure.report import write_text
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan.design import Design, Kind, make_design
from armillary.plan.factors import Factor, Point, Value, check_path, laid_over, takes_fractions

Response = Callable[[Point, int], Mapping[str, float]]
"""What is measured: a point and a seed -> name of a figure -> its value. Runs with equal seeds get equal arrivals."""

VERSION = 1


class FactorRange(BaseModel):
    """A factor with more than its levels to say."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    levels: tuple[Value, ...] = Field(description="From low to high.")
    scale: Literal["linear", "log"] = Field(
        default="linear", description="log: the middle of two numbers is the root of their product."
    )


class AssumedCost(BaseModel):
    """A machine of one's own assumption."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    step_s: float = Field(ge=0, description="Seconds of a step.")
    per_sequence_s: float = Field(default=0.0, ge=0, description="More for each sequence in it.")
    between_s: float = Field(default=0.0, ge=0, description="Between two steps.")
    exponential: bool = Field(default=False, description="Draw a step's seconds around their mean.")

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if self.step_s + self.per_sequence_s <= 0:
            raise ValueError("step_s or per_sequence_s must be above 0, given 0 for both")
        return self


class Experiment(BaseModel):
    """A designed experiment, as its file describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    title: str = Field(default="", description="Heads the page.")
    target: Literal["twin", "engine"] = Field(
        default="twin",
        description="What runs: the twin under a virtual clock, or `armillary serve` with a load test for each run.",
    )
    deployment: dict[str, Any] = Field(
        default_factory=dict, description="The deployment that the factors change, as in its own file."
    )
    workload: dict[str, Any] = Field(default_factory=dict, description="The workload, with the fields of `bench`.")
    cost: AssumedCost | None = Field(
        default=None,
        description="Seconds of the twin's steps. Unset: as `armillary simulate` predicts them for the deployment.",
    )
    factors: dict[str, tuple[Value, ...] | FactorRange] = Field(
        min_length=1, description="Path of a setting -> its levels."
    )
    design: Kind = Field(default="fractional", description="Which combinations are run.")
    resolution: int = Field(default=4, ge=3, description="Of a fractional design.")
    points: int | None = Field(default=None, ge=3, description="Of a Latin hypercube. Unset: ten for each factor.")
    replicates: int = Field(
        default=2, ge=1, le=100, description="Repetitions of the whole design; each is a block with its own arrivals."
    )
    slo: str | None = Field(default=None, description="Service level for goodput, such as `ttft p95 500ms`.")
    responses: tuple[str, ...] = Field(default=("ttft_p95",), min_length=1, description="What to explain.")
    seed: int = Field(default=0, ge=0, description="Of the order of runs and of the arrivals.")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if "seed" in self.workload or "workload.seed" in self.factors:
            raise ValueError("workload.seed must be left to the experiment, which gives each block its own; set `seed`")
        if self.target == "engine" and self.cost is not None:
            raise ValueError("cost must be left out with `target: engine`: what it costs is measured")
        idle = "fleet." if self.target == "engine" else "server."
        for path in self.factors:
            if path.startswith(idle):
                one = "the real engine is one server" if self.target == "engine" else "the twin has no HTTP server"
                raise ValueError(f"factors must be something that the target has, given {path}: {one}")
        if self.slo is None and (needs := {"good_rate", "good_share"} & set(self.responses)):
            raise ValueError(f"slo must be given for {', '.join(sorted(needs))}")
        return self

    def service_level(self) -> Slo:
        """What good requests keep; everything where none is stated."""
        return Slo() if self.slo is None else Slo.parse(self.slo)

    def factor_list(self) -> list[Factor]:
        """The factors in the file's order."""
        found = []
        for path, given in self.factors.items():
            levels, scale = (given.levels, given.scale) if isinstance(given, FactorRange) else (given, "linear")
            numbers = all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)
            if takes_fractions(check_path(path, roots())) and numbers:
                levels = tuple(float(level) for level in levels)  # so that there is something between 0 and 1
            found.append(Factor(path, tuple(levels), scale))
        return found

    def make_design(self) -> Design:
        """The design over the factors."""
        return make_design(
            self.design, self.factor_list(), resolution=self.resolution, points=self.points, seed=self.seed
        )


def roots() -> dict[str, type[BaseModel]]:
    """What paths begin with: the groups of a deployment, and `workload`."""
    groups: dict[str, Any] = {name: field.annotation for name, field in Deployment.model_fields.items()}
    return groups | {"workload": WorkloadSpec}


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment's file. `deployment: FILE` is read from beside it, and paths in a deployment that begin with a
    dot are taken from the folder of the file that it stands in.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT, with every problem on a line of its own.
    """
    place = Path(path).expanduser()
    content = read(place).content
    deployment = content.get("deployment")
    if isinstance(deployment, str):
        content["deployment"] = read_contents(place.parent / deployment)
    elif isinstance(deployment, dict):
        content["deployment"] = rooted(deployment, place.parent)
    return checked(Experiment, content, as_flags=False)


def settle(experiment: Experiment, point: Mapping[str, Value]) -> tuple[Deployment, WorkloadSpec]:
    """The deployment and the workload of one run, checked."""
    over = {path: value for path, value in point.items() if not path.startswith("workload.")}
    work = {path.removeprefix("workload."): value for path, value in point.items() if path.startswith("workload.")}
    shown = ", ".join(f"{path} = {value}" for path, value in point.items())
    try:
        deployment = checked(Deployment, laid_over(experiment.deployment, over), as_flags=False)
        workload = checked(WorkloadSpec, {**experiment.workload, **work}, as_flags=False)
        check_spec(workload)
    except ArmillaryError as error:
        raise ArmillaryError(error.code, f"with {shown or 'no factor set'}: {error.message}", error.param) from None
    return deployment, workload


@dataclass(frozen=True)
class Run:
    """One run. Equal points of one block differ in their seed, else they would repeat each other to the bit."""

    row: int
    block: int
    seed: int
    point: Point


def plan_runs(experiment: Experiment, design: Design) -> list[Run]:
    """The runs in the order in which they are taken: block after block, shuffled within each."""
    factors = experiment.factor_list()
    found: list[Run] = []
    for block in range(experiment.replicates):
        seen: dict[bytes, int] = {}
        runs = []
        for row, coded in enumerate(design.rows):
            point = {f.path: f.decode(float(c)) for f, c in zip(factors, coded, strict=True)}
            copy = seen.get(coded.tobytes(), 0)
            seen[coded.tobytes()] = copy + 1
            runs.append(Run(row, block, experiment.seed * 1_000_003 + block * 1009 + copy, point))
        Random(f"{experiment.seed} {block}").shuffle(runs)
        found += runs
    return found


@dataclass(frozen=True)
class Observations:
    """What the runs gave, in the order in which they were taken.

    Attributes:
        rows: coded settings as they were run [runs, factors]: whole numbers and bounds move what a design asks for.
        blocks: block of each run [runs].
        values: response -> its values [runs].
    """

    factors: Sequence[Factor]
    rows: np.ndarray[Any, np.dtype[np.float64]]
    blocks: np.ndarray[Any, np.dtype[np.int64]]
    values: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]


def observe(factors: Sequence[Factor], runs: Sequence[Run], values: Sequence[Mapping[str, float]]) -> Observations:
    """Put runs and their figures together; figures that some run does not have are left out."""
    told = [name for name in values[0] if all(name in found for found in values)]
    return Observations(
        factors=factors,
        rows=np.array([[f.code(run.point[f.path]) for f in factors] for run in runs]),
        blocks=np.array([run.block for run in runs]),
        values={name: np.array([float(found[name]) for found in values]) for name in told},
    )


def take_runs(
    experiment: Experiment,
    runs: Sequence[Run],
    response: Response,
    record: Path | None = None,
    taken: Callable[[int], None] = lambda count: None,
) -> list[Mapping[str, float]]:
    """The figures of each run, in order.

    Args:
        record: JSONL file to which every run is written as soon as it is done; those that it holds are not taken
            again. None: nothing is kept.
        taken: is told how many runs are done.

    Raises:
        ArmillaryError: INVALID_REQUEST where `record` is of another experiment, or where a run gave no figure; the runs
            before it are kept.
    """
    digest = _digest(experiment)
    done = _read_record(record, digest, len(runs)) if record is not None else {}
    found: list[Mapping[str, float]] = []
    for index, run in enumerate(runs):
        if index not in done:
            figures = {name: float(value) for name, value in response(run.point, run.seed).items()}
            missing = [name for name in experiment.responses if not math.isfinite(figures.get(name, math.nan))]
            if missing:
                raise _wrong(
                    f"every run must give {', '.join(missing)}, given none with "
                    f"{', '.join(f'{path} = {value}' for path, value in run.point.items())}; figures it gave: "
                    f"{', '.join(name for name, value in figures.items() if math.isfinite(value))}"
                )
            done[index] = figures
            if record is not None:
                _append(record, {"run": index, "point": run.point, "seed": run.seed, "figures": figures})
        found.append(done[index])
        taken(index + 1)
    return found


def _digest(experiment: Experiment) -> str:
    told = experiment.model_dump(mode="json", exclude={"title", "responses"})
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _read_record(path: Path, digest: str, count: int) -> dict[int, dict[str, float]]:
    """The runs that a record holds; it is begun where there is none."""
    try:
        if not path.exists():
            write_text(path, json.dumps({"armillary_experiment": VERSION, "digest": digest}) + "\n")
            return {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"{path} must be a file that runs can be kept in, so: {error}") from None
    done: dict[int, dict[str, float]] = {}
    try:
        header = json.loads(lines[0])
        if header["armillary_experiment"] != VERSION or header["digest"] != digest:
            raise _wrong(
                f"{path} must hold runs of this experiment, given those of another (or of this one before its file was "
                "changed), so move it away or name another with --runs"
            )
        for line in lines[1:]:
            if not line.endswith("\n"):
                break  # a run that was being written when the machine stopped
            entry = json.loads(line)
            if 0 <= entry["run"] < count:
                done[entry["run"]] = {
                    str(name): float("nan" if v is None else v) for name, v in entry["figures"].items()
                }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _wrong(f"{path} must be a record of runs, given something else, so: {error}") from None
    if lines and not lines[-1].endswith("\n"):
        write_text(path, "".join(lines[:-1]))
    return done


def _append(path: Path, entry: dict[str, Any]) -> None:
    figures = {name: value if math.isfinite(value) else None for name, value in entry["figures"].items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**entry, "figures": figures}) + "\n")


def _wrong(message: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, message)
