"""The report as one HTML file that needs nothing else: style, plots and data are inside it."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from armillary.measure import series
from armillary.measure.document import card, document, embedded
from armillary.measure.plots import Axis, Line, chart
from armillary.measure.report import Report, write_text
from armillary.measure.table import facts, interval, milliseconds, rows


def html(report: Report) -> str:
    """The whole page."""
    title = escape(report.title or "Load test")
    target = ", ".join(f"{key} {value}" for key, value in report.target.items() if value not in (None, ""))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.summary.notes)
    settings = {"target": report.target, "workload": report.workload, "machine": report.machine}
    body = (
        f'<h1>{title}</h1><p class="soft">{escape(target)}</p>'
        f'<p class="soft">{report.started:%Y-%m-%d %H:%M:%S %Z}</p>{notes}'
        f'<div class="cards">{_latencies(report)}{_facts(report)}</div>'
        f'<div class="cards">{"".join(_plots(report))}</div>'
        f"<details><summary>Settings</summary><pre>{escape(json.dumps(settings, indent=2))}</pre></details>"
        f'<script type="application/json" id="report">{embedded(report.model_dump_json())}</script>'
    )
    return document(title, body)


def save_page(report: Report, path: str | Path) -> None:
    """Write the page of `report` to `path`."""
    write_text(Path(path), html(report))


def _latencies(report: Report) -> str:
    head = "".join(f"<th>{column}</th>" for column in ("", "mean", "p50", "p90", "p95", "p99", "max"))
    body = []
    for name, found in rows(report):
        if found is None:
            body.append(f"<tr><td>{escape(name)}</td>" + "<td>–</td>" * 6 + "</tr>")
            continue
        cells = "".join(
            f"<td>{milliseconds(q.value)}<br><small>{interval(q)}</small></td>"
            for q in (found.p50, found.p90, found.p95, found.p99)
        )
        body.append(
            f"<tr><td>{escape(name)}</td><td>{milliseconds(found.mean)}</td>{cells}"
            f"<td>{milliseconds(found.maximum)}</td></tr>"
        )
    return card(
        "Latencies, milliseconds",
        f"<table><tr>{head}</tr>{''.join(body)}</table><small>Below each percentile its 95 % interval. "
        "Latencies count from when a request was due.</small>",
    )


def _facts(report: Report) -> str:
    lines = "".join(f'<tr><th>{escape(k)}</th><td class="wide">{escape(v)}</td></tr>' for k, v in facts(report))
    return card("Summary", f"<table>{lines}</table>")


def _plots(report: Report) -> list[str]:
    good = [record for record in report.records if record.ok]
    duration = report.summary.duration
    curves: tuple[tuple[str, list[float | None]], ...] = (
        ("TTFT", [record.ttft for record in good]),
        ("TPOT", [record.tpot for record in good]),
        ("ITL", [gap for record in good for gap in record.gaps]),
        ("end-to-end", [record.e2e for record in good]),
    )
    cdf = [
        Line(
            name,
            [(v * 1e3, share) for v, share in series.cumulative([v for v in values if v is not None])],
            colour,
            True,
        )
        for colour, (name, values) in enumerate(curves, start=1)
    ]
    first = sorted((record.due, record.ttft * 1e3) for record in good if record.ttft is not None)

    def gaps(level: float) -> series.Points:
        return [(t, gap * 1e3) for t, gap in series.gaps_over_time(report.records, duration, level)]

    seconds = Axis("seconds since the start")
    return [
        card("Latency, cumulative", chart(cdf, Axis("milliseconds", log=True), Axis("share of sample", top=1.0))),
        card(
            "Inter-token gaps over time",
            chart(
                [Line("median", gaps(0.5), 1), Line("99th percentile", gaps(0.99), 2)], seconds, Axis("milliseconds")
            ),
        ),
        card(
            "Throughput over time",
            chart([Line("output tokens/s", series.throughput(report.records, duration), 3)], seconds, Axis("tokens/s")),
        ),
        card("Time to first token, by due time", chart([Line("TTFT", first, 1)], seconds, Axis("milliseconds"))),
        card(
            "Outstanding requests",
            chart(
                [Line("sent, not yet answered", series.outstanding(report.records, duration), 4, True)],
                seconds,
                Axis("requests"),
            ),
        ),
    ]
