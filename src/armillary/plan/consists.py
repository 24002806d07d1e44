"""What the time of requests consists of, and what queueing theory says of it beside a simulation."""

from __future__ import annotations

from math import inf

import numpy as np

from armillary.plan.estimate import Mix, Theory
from armillary.twin.cost import Scaled
from armillary.twin.deployed import Deployed
from armillary.twin.forecast import Forecast
from armillary.twin.work import StepWork


def shares(deployed: Deployed, found: Forecast) -> dict[str, float]:
    """Of the time to first token of the slow ones (90th to 99th percentile), what it consists of."""
    run = found.replications[0].result.requests
    ttft = run.ttft
    known = ttft[~np.isnan(ttft)]
    if not len(known):
        return {}
    low, high = np.quantile(known, [0.9, 0.99])
    slow = np.flatnonzero((ttft >= low) & (ttft <= high))
    cost, config = deployed.kinds[0].cost, deployed.kinds[0].config
    computing = reading = total = 0.0
    for row in slow.tolist():
        start, end = int(run.cached_tokens[row]), int(run.prompt_tokens[row])
        reading += cost.request_s(end) + cost.first_s
        while start < end:
            count = min(end - start, config.max_chunk_tokens or config.max_step_tokens)
            computing += cost.step_s(StepWork(1, count, 1, start + count, count * start + count * (count + 1) // 2))
            start += count
        total += float(ttft[row])
    total = max(total, computing + reading, 1e-12)
    return {
        "waiting": 1 - (computing + reading) / total,
        "computing its prompt": computing / total,
        "reading and tokenizing": reading / total,
    }


def analytic(deployed: Deployed, found: Forecast, rate: float) -> tuple[float, float]:
    """Mean time to the end: by queueing theory, from mean lengths and what was found in the cache, and simulated."""
    first, kind = found.replications[0], deployed.kinds[0]
    run = first.result.requests
    prompt, output = float(run.prompt_tokens.mean()), float(run.output_tokens.mean())
    mix = Mix(prompt, max(1.0, output), max(1.0, prompt - float(run.cached_tokens.mean())))
    theory = Theory(kind.config, Scaled(kind.cost, first.factor), mix)
    simulated = run.e2e[~np.isnan(run.e2e)]
    return theory.at(rate / deployed.fleet.count).e2e_s, float(simulated.mean()) if len(simulated) else inf
