"""Claims: published results, each with a measurement of ours that could refute it.

A claim is one file in the folder `claims/` of a clone that defines `CLAIM`. Its rule for the verdict is written
down before anything is measured. This module finds, runs and prints claims; what they measure is in the files.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from armillary.errors import ArmillaryError, Code
from armillary.measure.bench import machine
from armillary.measure.report import Report, write_text
from armillary.measure.statistics import Spread

Verdict = Literal["holds", "refuted", "not measured"]
RESULTS = "results.json"


@dataclass(frozen=True)
class Finding:
    """What one measurement found.

    Attributes:
        holds: whether the claim's rule is met.
        result: one sentence with the figures that decide.
        figures: every figure with its spread over the repeats.
        notes: what a reader must know to judge the figures.
    """

    holds: bool
    result: str
    figures: Mapping[str, Spread]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Trial:
    """How a claim is to be measured.

    Attributes:
        repeats: rounds, interleaved over what is compared.
        seed: of workloads.
        progress: called with what is being done.
    """

    repeats: int = 5
    seed: int = 0
    progress: Callable[[str], None] = field(default=lambda text: None)

    def step(self, name: str, turn: int) -> None:
        """Progress of `interleaved`."""
        self.progress(f"{name}, round {turn + 1} of {self.repeats}")


@dataclass(frozen=True)
class Claim:
    """A published result that a measurement could refute.

    Attributes:
        name: of the file, and on the command line.
        title, venue: the entry in the literature.
        published: what it reports.
        compared: what is measured here, against what, on which workload.
        rule: when the claim holds, in figures; fixed before measuring.
        measure: does it.
    """

    name: str
    title: str
    venue: str
    published: str
    compared: str
    rule: str
    measure: Callable[[Trial], Finding]


class ClaimResult(BaseModel):
    """A claim and what came of measuring it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    title: str
    venue: str
    published: str
    compared: str
    rule: str
    verdict: Verdict
    result: str
    figures: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    seconds: float
    repeats: int
    machine: dict[str, Any]
    measured: str = Field(description="UTC, to the second.")


def claims_folder(start: Path | None = None) -> Path:
    """The folder `claims/` of the clone: in `start` (the working directory by default), else beside `src/`.

    Raises NOT_FOUND where the package is installed without its repository: claims are not in the wheel.
    """
    places = [(start or Path.cwd()) / "claims", Path(__file__).resolve().parents[3] / "claims"]
    for place in places:
        if (place / "__init__.py").is_file():
            return place
    raise ArmillaryError(
        Code.NOT_FOUND,
        "claims must be run from a clone of the repository, whose folder claims/ holds them (an installed wheel has "
        f"none), given {places[0].parent}",
    )


def load_claims(folder: Path | None = None) -> dict[str, Claim]:
    """Every claim in the folder by name, in the order of their names. A file without `CLAIM` is not a claim."""
    folder = (folder or claims_folder()).resolve()
    root = str(folder.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    found: dict[str, Claim] = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem == "__init__" or "CLAIM = " not in path.read_text(encoding="utf-8"):
            continue
        claim = getattr(importlib.import_module(f"{folder.name}.{path.stem}"), "CLAIM", None)
        if not isinstance(claim, Claim) or claim.name != path.stem:
            raise ArmillaryError(
                Code.INVALID_REQUEST, f"{path.name} must define CLAIM, a Claim named {path.stem!r}, given {claim!r}"
            )
        found[claim.name] = claim
    return found


def choose(claims: Mapping[str, Claim], names: Sequence[str]) -> list[Claim]:
    """The named claims, each once; all of them where none is named.

    Args:
        names: or patterns as a shell's (`twin_*`). A hyphen stands for an underscore.
    """
    found = {name: fnmatch.filter(claims, name.replace("-", "_")) for name in names}
    unknown = [name for name, matches in found.items() if not matches]
    if unknown:
        raise ArmillaryError(
            Code.NOT_FOUND,
            f"claim must be one of {', '.join(claims)}, given {', '.join(unknown)}; a pattern such as 'twin_*' names "
            "several",
            param="name",
        )
    chosen = dict.fromkeys(chain.from_iterable(found.values())) if names else claims
    return [claims[name] for name in chosen]


def run_claim(claim: Claim, trial: Trial | None = None) -> ClaimResult:
    """Measure one claim. A measurement that fails is a verdict of its own, with the error as its result."""
    trial = trial or Trial()
    began = time.perf_counter()
    verdict: Verdict
    try:
        finding = claim.measure(trial)
    except Exception as error:
        trial.progress(traceback.format_exc())
        finding = Finding(False, f"{type(error).__name__}: {error}", {})
        verdict = "not measured"
    else:
        verdict = "holds" if finding.holds else "refuted"
    return ClaimResult(
        name=claim.name,
        title=claim.title,
        venue=claim.venue,
        published=claim.published,
        compared=claim.compared,
        rule=claim.rule,
        verdict=verdict,
        result=finding.result,
        figures={name: spread.as_json() for name, spread in finding.figures.items()},
        notes=list(finding.notes),
        seconds=round(time.perf_counter() - began, 1),
        repeats=trial.repeats,
        machine=machine(),
        measured=f"{Report.now():%Y-%m-%d %H:%M:%S}",
    )


def markdown(results: Sequence[ClaimResult]) -> str:
    """The page of claims, as `docs/claims.md` holds it."""
    lines = [
        "# Claims",
        "",
        "<!-- Generated by `armillary claims --write`. Change the files in claims/ and run it again. -->",
        "",
        "Each claim is a published result that a measurement on the bundled model, or a simulation that says so, could "
        "refute. The rule for the "
        "verdict is fixed in the claim's file before anything is measured. Figures are medians over the repeats, with "
        "the lowest and the highest; what is compared runs in turns, so that both see the same machine. Seconds are "
        "processor time of a one-threaded engine, idle time left out, so that a busy machine changes them little; only "
        "the time that a measurement took is by the wall.",
        "",
        "| claim | literature | verdict | result |",
        "|---|---|---|---|",
    ]
    lines += [f"| [{r.name}](#{r.name}) | {r.title}, {r.venue} | **{r.verdict}** | {r.result} |" for r in results]
    for r in results:
        lines += [
            "",
            f"## {r.name}",
            "",
            f"{r.title}. {r.venue}.",
            "",
            f"- **Published:** {r.published}",
            f"- **Compared:** {r.compared}",
            f"- **Rule:** {r.rule}",
            f"- **Verdict:** **{r.verdict}**. {r.result}",
            "",
            "| figure | median | lowest | highest |",
            "|---|---|---|---|",
        ]
        lines += [f"| {k} | {v['median']:.4g} | {v['low']:.4g} | {v['high']:.4g} |" for k, v in r.figures.items()]
        lines += ["", *(f"- {note}" for note in r.notes)]
        m = r.machine
        lines += [
            "",
            f"Measured {r.measured} UTC in {r.seconds:g} s, {r.repeats} repeats, on {m['system']} {m['architecture']} "
            f"with {m['processors']} processors and {m['memory_gib']} GiB.",
        ]
    return "\n".join(lines) + "\n"


def write_page(results: Sequence[ClaimResult], folder: Path | None = None) -> Path:
    """Keep `results` in `claims/results.json` and write the page of all that is kept into the clone's `docs/claims.md`.

    Results of claims that were not measured this time stay; those of claims that no longer exist go. Returns where
    the page is.
    """
    folder = folder or claims_folder()
    store = folder / RESULTS
    kept = {result.name: result for result in read_results(store)} | {result.name: result for result in results}
    merged = [kept[name] for name in sorted(kept) if (folder / f"{name}.py").is_file()]
    write_text(store, json.dumps([result.model_dump() for result in merged], indent=1) + "\n")
    page = folder.parent / "docs" / "claims.md"
    write_text(page, markdown(merged))
    return page


def read_results(store: Path) -> list[ClaimResult]:
    """The results that were kept; none where there is no such file."""
    if not store.is_file():
        return []
    try:
        return [ClaimResult.model_validate(row) for row in json.loads(store.read_bytes())]
    except ValueError as error:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"kept results must be what `armillary claims --write` wrote, given {store}: {error}"
        ) from error
