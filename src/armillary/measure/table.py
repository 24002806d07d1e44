"""The report as a table in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from armillary.measure.report import Report
from armillary.measure.statistics import Distribution, Quantile
from armillary.measure.summary import ObjectiveFigures


def milliseconds(seconds: float) -> str:
    """Three digits or so, in milliseconds; from ten seconds on in seconds, marked so."""
    value = seconds * 1e3
    if value >= 10_000:
        return f"{seconds:,.1f}s" if seconds < 100 else f"{seconds:,.0f}s"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def interval(found: Quantile) -> str:
    """From where to where; a side that the sample cannot bound is open."""
    low = "0" if found.low is None else milliseconds(found.low)
    return f"from {low}" if found.high is None else f"{low}–{milliseconds(found.high)}"


def rows(report: Report) -> list[tuple[str, Distribution | None]]:
    """The latencies that a report shows, in its order."""
    summary = report.summary
    return [
        ("TTFT", summary.ttft),
        ("TPOT", summary.tpot),
        ("ITL", summary.itl),
        ("max gap", summary.worst_gap),
        ("e2e", summary.e2e),
    ]


def facts(report: Report) -> list[tuple[str, str]]:
    """The figures besides latencies, as label and value."""
    summary = report.summary
    goodput = summary.goodput
    offered = "closed loop or all at once" if summary.offered_rate is None else f"{summary.offered_rate:.2f} requests/s"
    return [
        ("requests", f"{summary.requests} ({', '.join(f'{n} {name}' for name, n in summary.outcomes.items())})"),
        ("offered", offered),
        ("achieved", f"{summary.request_rate:.2f} requests/s over {summary.duration:.1f} s"),
        ("output", f"{summary.output_rate:,.1f} tokens/s ({summary.output_tokens:,} tokens)"),
        (
            "prompt",
            f"{summary.prompt_rate:,.1f} tokens/s ({summary.prompt_tokens:,}, {summary.cached_tokens:,} cached)",
        ),
        ("most outstanding", str(summary.peak_outstanding)),
        ("service level", goodput.slo),
        *((_named(found), _reached(found)) for found in goodput.objectives),
        (
            "goodput",
            f"{goodput.requests_per_s:.2f} requests/s, {goodput.tokens_per_s:,.1f} tokens/s "
            f"({goodput.share:.1%} of all requests)",
        ),
        ("steady state", summary.steadiness.text),
        *((law.name, law.text) for law in summary.laws),
    ]


def _named(found: ObjectiveFigures) -> str:
    return f"{found.slo_class}: {found.objective}" if found.slo_class else found.objective


def _reached(found: ObjectiveFigures) -> str:
    if found.value is None:
        value = "too many failed to say"
    else:
        value = milliseconds(found.value)
        value += "" if value.endswith("s") else " ms"
    return f"{'met' if found.met else 'missed'}: {value}, {found.share:.1%} within the limit"


def render(report: Report) -> RenderableType:
    """The tables and notes of `report`."""
    latencies = Table(
        title=report.title or None,
        title_justify="left",
        caption="milliseconds; 95 % intervals below; max gap: of each request",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for column in ("", "mean", "p50", "p90", "p95", "p99", "max"):
        latencies.add_column(column, justify="left" if not column else "right")
    for name, values in rows(report):
        if values is None:
            latencies.add_row(name, *["–"] * 6)
            continue
        latencies.add_row(
            name,
            milliseconds(values.mean),
            *(_with_interval(q) for q in (values.p50, values.p90, values.p95, values.p99)),
            milliseconds(values.maximum),
        )
    figures = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    figures.add_column(style="bold")
    figures.add_column()
    for label, value in facts(report):
        figures.add_row(label, value)
    notes = [Text(f"! {note}", style="yellow") for note in report.summary.notes]
    return Group(latencies, figures, *notes)


def _with_interval(found: Quantile) -> str:
    return f"{milliseconds(found.value)}\n[dim]{interval(found)}[/dim]"


def show(report: Report, console: Console | None = None) -> None:
    """Print `report`."""
    (console or Console()).print(render(report))
