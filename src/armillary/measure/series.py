"""Curves over time and cumulative curves, for plots."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from armillary.measure.record import RequestRecord

Points = list[tuple[float, float]]

_CURVE_POINTS = 200


def cumulative(values: Sequence[float]) -> Points:
    """(value, share of the sample that does not exceed it), thinned evenly in share, both ends kept."""
    if not values:
        return []
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    picked = np.unique(np.linspace(0, count - 1, min(count, _CURVE_POINTS)).astype(np.int64))
    return [(float(ordered[i]), (int(i) + 1) / count) for i in picked]


def bin_width(duration: float) -> float:
    """A round width (1, 2 or 5 times a power of ten) that cuts `duration` into 30 to 75 bins."""
    raw = max(duration, 1e-3) / 60
    scale = 10.0 ** math.floor(math.log10(raw))
    return next(scale * step for step in (1, 2, 5, 10) if scale * step >= raw * 0.8)


def token_times(record: RequestRecord) -> Points:
    """(when, how many tokens) for each arrival of text; tokens are spread evenly over the arrivals."""
    if record.first is None:
        return []
    times = record.first + np.concatenate([[0.0], np.cumsum(np.asarray(record.gaps, dtype=np.float64))])
    each = record.output_tokens / len(times)
    return [(float(when), each) for when in times]


def throughput(records: Sequence[RequestRecord], duration: float) -> Points:
    """(middle of the bin, output tokens per second in it). The last bin counts only the time the run lasted."""
    points = [point for record in records for point in token_times(record)]
    if not points:
        return []
    width = bin_width(duration)
    bins = max(1, math.ceil(duration / width - 1e-9))
    totals = np.zeros(bins)
    for when, tokens in points:
        totals[min(bins - 1, int(when / width))] += tokens
    spans = np.full(bins, width)
    spans[-1] = max(duration - width * (bins - 1), 1e-9)
    return [(width * (i + 0.5), float(totals[i] / spans[i])) for i in range(bins)]


def gaps_over_time(records: Sequence[RequestRecord], duration: float, level: float) -> Points:
    """(middle of the bin, the `level` quantile of the gaps that ended in it); bins without gaps are left out."""
    width = bin_width(duration)
    bins: dict[int, list[float]] = {}
    for record in records:
        if record.first is None:
            continue
        when = record.first
        for gap in record.gaps:
            when += gap
            bins.setdefault(int(when / width), []).append(gap)
    found = []
    for index in sorted(bins):
        ordered = sorted(bins[index])
        found.append((width * (index + 0.5), ordered[max(0, math.ceil(level * len(ordered)) - 1)]))
    return found


def outstanding(records: Sequence[RequestRecord], duration: float) -> Points:
    """(start of the bin, requests sent and not yet answered at that moment)."""
    width = bin_width(duration)
    sent = np.sort([record.sent for record in records])
    ended = np.sort([record.end for record in records if record.end is not None])
    moments = np.arange(0.0, duration + width, width)
    return [(float(t), float(np.searchsorted(sent, t, "right") - np.searchsorted(ended, t, "right"))) for t in moments]
