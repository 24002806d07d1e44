"""The plan as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from html import escape

from armillary.measure.document import card, document, embedded
from armillary.measure.plain import plain
from armillary.plan.frontier import frontier
from armillary.plan.planner import Answer
from armillary.plan.verdict import as_dict, forecast_title, gain, sentences
from armillary.twin.forecast_table import rows


def page(found: Answer) -> str:
    """The whole page."""
    title = f"{found.question.deployment.model.path} on {found.question.hardware}"
    told = "".join(f"<h2>{escape(head)}</h2><p>{escape(text)}</p>" for head, text in sentences(found))
    table = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td><td>{escape(span)}</td></tr>"
        for name, value, span in rows(found.found)
    )
    effects = "".join(
        f"<tr><td>{escape(e.name)}</td><td>{gain(e)}</td><td>{e.ttft_p95 - 1:+.0%}</td>"
        f"<td>{e.tpot_p95 - 1:+.0%}</td><td>{e.cost - 1:+.0%}</td></tr>"
        for e in found.effects
    )
    title_of_table = f"{forecast_title(found).capitalize()}, with 95 % intervals"
    body = (
        f"<h1>{escape(title)}</h1>{told}"
        f'<div class="cards">{card(title_of_table, f"<table>{table}</table>")}'
        f"{card('Designs: what they serve, and what they cost', frontier(found))}"
        + card(
            "What if",
            f"<table><tr><th></th><th>rate</th><th>p95 TTFT</th><th>p95 TPOT</th><th>cost</th></tr>{effects}</table>",
        )
        + f'</div><script type="application/json" id="plan">{embedded(json.dumps(plain(as_dict(found))))}</script>'
    )
    return document(title, body)
