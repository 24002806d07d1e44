"""One table of everything that was measured: a row for each engine and precision, a column for each workload."""

from __future__ import annotations

from collections.abc import Sequence

from armillary.measure.statistics import Spread, ratios

from .environments import ENGINES
from .record import Cell, Record
from .workloads import TITLES

OURS = ("armillary", "armillary-float")


def render(records: Sequence[Record], machine: dict[str, object]) -> str:
    """Markdown: for each shape and scale the rates with their spread and share of the limit, then ours against the best
    other of the same round."""
    if not records:
        return "Nothing was measured.\n"
    parts = ["Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."]
    parts.append("\n".join(f"- {name}: {title}" for name, title in TITLES.items()))
    parts.append(
        "Rates are medians of rounds (least to greatest) with their share of what memory and multipliers allowed in "
        "the same minute, by the wall, or by processor time with one thread. Loading (median) is from the start of the "
        "process until it can run; peak memory is the process's greatest, files that it maps included."
    )
    for shape, scale in dict.fromkeys((r.cell.shape, r.cell.scale) for r in records):
        chosen = [r for r in records if (r.cell.shape, r.cell.scale) == (shape, scale)]
        note = "" if scale == 1 else f", every length times {scale:g}"
        parts.append(f"### {shape}{note}")
        parts.append(_rates(chosen))
        if compared := _ratios(chosen):
            parts.append(compared)
        parts.append(_notes(chosen))
    return "\n\n".join(part for part in parts if part) + "\n"


def _order(records: Sequence[Record]) -> tuple[list[str], list[str], list[str]]:
    """Precisions, engines and workloads in their usual order."""
    precisions = [p for p in ("bf16", "int8", "int4") if any(r.cell.precision == p for r in records)]
    engines = [e for e in ENGINES if any(r.cell.engine == e for r in records)]
    return precisions, engines, [w for w in TITLES if any(r.cell.workload == w for r in records)]


def _rates(records: Sequence[Record]) -> str:
    precisions, engines, workloads = _order(records)
    rows = [["precision", "engine", *workloads, "load s", "peak GB"]]
    for precision in precisions:
        limits = [_limit([r for r in records if (r.cell.precision, r.cell.workload) == (precision, w)])
                  for w in workloads]  # fmt: skip
        rows.append([precision, "*limit*", *limits, "", ""])
        for engine in engines:
            own = [r for r in records if (r.cell.precision, r.cell.engine) == (precision, engine)]
            if not own:
                continue
            good = [r for r in own if r.rate is not None]
            loads = f"{Spread(tuple(r.load_seconds for r in good)).median:.1f}" if good else "–"
            peaks = f"{max(r.peak for r in good) / 1e9:.2f}" if good else "–"
            cells = [_rate([r for r in own if r.cell.workload == w]) for w in workloads]
            rows.append([precision, engine, *cells, loads, peaks])
    return _grid(rows)


def _limit(records: Sequence[Record]) -> str:
    limits = tuple(r.limit for r in records if r.limit is not None)
    return _digits(Spread(limits).median) if limits else "–"


def _rate(records: Sequence[Record]) -> str:
    rates = Spread(tuple(r.rate for r in records if r.rate is not None))
    if not rates.values:
        return "–"
    shares = Spread(tuple(r.rate / r.limit for r in records if r.rate is not None and r.limit))
    return f"{_spread(rates)}, {shares.median:.0%}"


def _spread(found: Spread) -> str:
    """Three digits of a median, and of the extremes where there are several values."""
    median, low, high = (_digits(value) for value in (found.median, found.low, found.high))
    return median if len(found.values) == 1 else f"{median} ({low} to {high})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratios(records: Sequence[Record]) -> str:
    """Our rates as multiples of each other engine's, round by round; where the other has no such round, nothing."""
    precisions, engines, workloads = _order(records)
    rows = [["ratio", "precision", *workloads]]
    for ours in OURS:
        for other in engines:
            if other == ours or ours not in engines:
                continue
            for precision in precisions:
                cells = [_ratio(records, ours, other, precision, w) for w in workloads]
                if any(cells):
                    rows.append([f"{ours} / {other}", precision, *(cell or "–" for cell in cells)])
    return _grid(rows) if len(rows) > 1 else ""


def _ratio(records: Sequence[Record], ours: str, other: str, precision: str, workload: str) -> str:
    def rounds(engine: str) -> dict[int, float]:
        return {
            r.repeat: r.rate
            for r in records
            if (r.cell.engine, r.cell.precision, r.cell.workload) == (engine, precision, workload)
            and r.rate is not None
        }

    left, right = rounds(ours), rounds(other)
    both = sorted(left.keys() & right.keys())
    return _spread(ratios([left[i] for i in both], [right[i] for i in both])) if both else ""


def _notes(records: Sequence[Record]) -> str:
    """What each engine computed with, and what did not work."""
    lines = []
    for cell, facts in {(r.cell.engine, r.cell.precision): r.facts for r in records if r.facts}.items():
        what = ENGINES[cell[0]].load().about.precisions.get(cell[1], "") if cell[0] in ENGINES else ""
        known = "; ".join(f"{name}: {value}" for name, value in facts.items())
        lines.append(f"- {cell[0]}, {cell[1]} ({what}): {known}")
    failed: dict[tuple[str, str, str], list[str]] = {}
    for r in records:
        if r.error is not None:
            failed.setdefault((r.cell.engine, r.cell.precision, r.error), []).append(r.cell.workload)
    for (engine, precision, error), workloads in failed.items():
        words = " ".join(error.split())  # of one line, whatever an engine said
        lines.append(f"- {engine}, {precision}, {', '.join(dict.fromkeys(workloads))}: not measured, {words}")
    lines += _agreement(records)
    return "\n".join(lines)


def _agreement(records: Sequence[Record]) -> list[str]:
    """How many first tokens are those of the first engine that ran the same round."""
    lines = []
    precisions, engines, _ = _order(records)
    for precision in precisions:
        rounds: dict[tuple[str, int], dict[str, list[list[int]]]] = {}
        for r in records:
            if r.cell.precision == precision and r.heads:
                rounds.setdefault((r.cell.workload, r.repeat), {})[r.cell.engine] = r.heads
        for engine in engines[1:]:
            pairs = [(a[:1], b[:1]) for found in rounds.values() if engine in found and engines[0] in found
                     for a, b in zip(found[engines[0]], found[engine], strict=True)]  # fmt: skip
            if pairs:
                share = sum(a == b for a, b in pairs) / len(pairs)
                lines.append(f"- first tokens of {engine} that are those of {engines[0]}, {precision}: {share:.0%}")
    return lines


def _grid(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


__all__ = ["Cell", "render"]
