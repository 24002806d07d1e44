"""The report of an experiment: JSON for programs, one HTML file for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from armillary.errors import ArmillaryError, Code
from armillary.measure.document import card, document, embedded
from armillary.measure.plain import plain
from armillary.measure.report import write_text
from armillary.plan import pictures
from armillary.plan.answers import Answer, answer, describe
from armillary.plan.design import Design, model_terms
from armillary.plan.effects import Analysis, analyse
from armillary.plan.experiment import Experiment, Observations
from armillary.plan.figures import figure


@dataclass(frozen=True)
class Findings:
    """Everything that an experiment found."""

    experiment: Experiment
    design: Design
    observed: Observations
    analyses: tuple[Analysis, ...]
    answers: tuple[Answer, ...]
    source: Sequence[str]

    @property
    def about(self) -> list[str]:
        """The design and where the figures come from, in sentences."""
        return [*describe(self.design, self.observed.factors, len(self.observed.rows)), *self.source]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "experiment": self.experiment.model_dump(mode="json"),
            "design": {
                "kind": self.design.kind,
                "settings": len(self.design.rows),
                "runs": len(self.observed.rows),
                "resolution": self.design.resolution,
                "said": self.about,
            },
            "responses": [
                {
                    **asdict(told),
                    "logarithmic": found.log,
                    "intervals_by": found.by,
                    "effects": [{**asdict(effect), "matters": effect.matters} for effect in found.effects],
                    "anova": [asdict(source) for source in found.anova],
                    "explained": found.explained,
                    "degrees_of_freedom": found.freedom,
                    "sigma": found.sigma,
                    "checks": [{**asdict(check), "passed": check.passed} for check in found.checks],
                }
                for found, told in zip(self.analyses, self.answers, strict=True)
            ],
        }


def find(experiment: Experiment, design: Design, observed: Observations, source: Sequence[str] = ()) -> Findings:
    """Analyse every response that the experiment asks for.

    Args:
        source: where the figures come from, in sentences.
    """
    terms = model_terms(design)
    names = [name for name in experiment.responses if np.ptp(observed.values[name]) > 0]
    constant = [
        f"{figure(name).title} was {figure(name).shown(observed.values[name][0])} in every run: nothing here moves it."
        for name in experiment.responses
        if name not in names
    ]
    analyses = tuple(analyse(observed, name, terms, figure(name).log) for name in names)
    answers = tuple(answer(found, observed) for found in analyses)
    return Findings(experiment, design, observed, analyses, answers, [*source, *constant])


def save_page(findings: Findings, path: Path) -> None:
    """Write the page of `findings`."""
    try:
        write_text(path, page(findings))
    except OSError as error:
        raise ArmillaryError(Code.INVALID_REQUEST, f"html must be a file that can be written, so: {error}") from None


def page(findings: Findings) -> str:
    """The findings as one HTML file."""
    title = escape(findings.experiment.title or "Which settings matter")
    parts = [f"<h1>{title}</h1>", *(f'<p class="soft">{escape(line)}</p>' for line in findings.about)]
    for analysis, told in zip(findings.analyses, findings.answers, strict=True):
        parts.append(f"<h2>{escape(figure(analysis.response).title)}</h2>")
        parts.append('<div class="cards">' + "".join(_cards(analysis, told, findings)) + "</div>")
    settings = json.dumps(findings.experiment.model_dump(mode="json"), indent=2)
    parts.append(f"<details><summary>Experiment</summary><pre>{escape(settings)}</pre></details>")
    data = json.dumps(plain(findings.as_dict()))
    parts.append(f'<script type="application/json" id="findings">{embedded(data)}</script>')
    return document(title, "".join(parts))


def _cards(analysis: Analysis, told: Answer, findings: Findings) -> list[str]:
    factors = findings.observed.factors
    return [
        card("What matters", _list(told.matters or ("Nothing tried was found to matter.",)) + _list(told.rest)),
        card("Advice, and how far to trust it", _list(told.advice) + _list(told.trust)),
        card(
            "Effects by size", pictures.pareto(analysis) + "<small>Bars: from low to high level; lines: 95 %.</small>"
        ),
        card("Main effects", pictures.main_effects(analysis, factors)),
        card("Interactions", pictures.interactions(analysis, factors)),
        card("Response surface", pictures.surface(analysis, factors)),
        card("Analysis of variance", _anova(analysis)),
        card(
            "Residuals", pictures.residuals(analysis) + _list(tuple(f"{c.about}: {c.verdict}" for c in analysis.checks))
        ),
    ]


def _list(lines: tuple[str, ...]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _anova(analysis: Analysis) -> str:
    if not analysis.anova:
        return '<p class="empty">Every run was spent on an effect: nothing is left to compare them with.</p>'
    rows = "".join(
        f"<tr><td>{escape(pictures.short(source.label))}</td><td>{source.squares:.4g}</td><td>{source.freedom}</td>"
        f"<td>{_cell(source.f, 3)}</td><td>{_cell(source.p, 2)}</td></tr>"
        for source in analysis.anova
    )
    head = "".join(f"<th>{name}</th>" for name in ("", "squares", "df", "F", "p"))
    return f"<table><tr>{head}</tr>{rows}</table>"


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}g}"
