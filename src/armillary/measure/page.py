"""The report as one HTML file that needs nothing else: style, plots and data are inside it."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from armillary.measure import series
from armillary.measure.plots import Axis, Line, chart
from armillary.measure.report import Report, write_text
from armillary.measure.table import facts, milliseconds, rows

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5d6978;--paper:#fbfbf9;--card:#fff;--rule:#e2e4e8;
--c1:#2f6fd0;--c2:#c7621a;--c3:#15887a;--c4:#8a4fc4}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#98a3b3;--paper:#14181e;--card:#1b2129;--rule:#323b47;
--c1:#7aa9f5;--c2:#eb9c5c;--c3:#4fc4b3;--c4:#bd92ec}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1360px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:24px;margin:0 0 2px}h2{font-size:16px;margin:0 0 8px}
p{margin:4px 0}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:16px;margin-top:18px}
section{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:14px 16px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left}td.wide{text-align:left;white-space:normal}
small{color:var(--soft)}.note{border-left:3px solid var(--c2);padding-left:10px;margin:8px 0}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}
svg path{fill:none;stroke-width:2;stroke-linejoin:round}.grid{stroke:var(--rule);stroke-width:1}
path.c1{stroke:var(--c1)}path.c2{stroke:var(--c2)}path.c3{stroke:var(--c3)}path.c4{stroke:var(--c4)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle}
i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}i.c4{background:var(--c4)}
details{margin-top:18px}pre{overflow-x:auto;font-size:12px}
"""


def html(report: Report) -> str:
    """The whole page."""
    title = escape(report.title or "Load test")
    target = ", ".join(f"{key} {value}" for key, value in report.target.items() if value not in (None, ""))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.summary.notes)
    settings = {"target": report.target, "workload": report.workload, "machine": report.machine}
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{title}</h1><p class="soft">{escape(target)}</p>'
        f'<p class="soft">{report.started:%Y-%m-%d %H:%M:%S %Z}</p>{notes}'
        f'<div class="cards">{_latencies(report)}{_facts(report)}</div>'
        f'<div class="cards">{"".join(_plots(report))}</div>'
        f"<details><summary>Settings</summary><pre>{escape(json.dumps(settings, indent=2))}</pre></details>"
        f'<script type="application/json" id="report">{_embedded(report)}</script>'
        "</main></body></html>\n"
    )


def save_page(report: Report, path: str | Path) -> None:
    """Write the page of `report` to `path`."""
    write_text(Path(path), html(report))


def _embedded(report: Report) -> str:
    # "</script>" inside a string of the data would end the element.
    return report.model_dump_json().replace("<", "\\u003c")


def _card(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _latencies(report: Report) -> str:
    head = "".join(f"<th>{column}</th>" for column in ("", "mean", "p50", "p90", "p95", "p99", "max"))
    body = []
    for name, found in rows(report):
        if found is None:
            body.append(f"<tr><td>{escape(name)}</td>" + "<td>–</td>" * 6 + "</tr>")
            continue
        cells = "".join(
            f"<td>{milliseconds(q.value)}<br><small>{milliseconds(q.low)}–{milliseconds(q.high)}</small></td>"
            for q in (found.p50, found.p90, found.p95, found.p99)
        )
        body.append(
            f"<tr><td>{escape(name)}</td><td>{milliseconds(found.mean)}</td>{cells}"
            f"<td>{milliseconds(found.maximum)}</td></tr>"
        )
    return _card(
        "Latencies, milliseconds",
        f"<table><tr>{head}</tr>{''.join(body)}</table><small>Below each percentile its 95 % bootstrap interval. "
        "Latencies count from when a request was due.</small>",
    )


def _facts(report: Report) -> str:
    lines = "".join(f'<tr><th>{escape(k)}</th><td class="wide">{escape(v)}</td></tr>' for k, v in facts(report))
    return _card("Summary", f"<table>{lines}</table>")


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
        _card("Latency, cumulative", chart(cdf, Axis("milliseconds", log=True), Axis("share of sample", top=1.0))),
        _card(
            "Inter-token gaps over time",
            chart(
                [Line("median", gaps(0.5), 1), Line("99th percentile", gaps(0.99), 2)], seconds, Axis("milliseconds")
            ),
        ),
        _card(
            "Throughput over time",
            chart([Line("output tokens/s", series.throughput(report.records, duration), 3)], seconds, Axis("tokens/s")),
        ),
        _card("Time to first token, by due time", chart([Line("TTFT", first, 1)], seconds, Axis("milliseconds"))),
        _card(
            "Outstanding requests",
            chart(
                [Line("sent, not yet answered", series.outstanding(report.records, duration), 4, True)],
                seconds,
                Axis("requests"),
            ),
        ),
    ]
