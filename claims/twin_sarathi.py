"""Prompts in chunks under a limit on the time between tokens, in the twin of the paper's models and GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from armillary.core.config import SchedulerConfig
from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, ratios
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.twin.analytic import AnalyticCost
from armillary.twin.gaps import gap_quantile
from armillary.twin.simulate import simulate
from claims import analytic_distserve, analytic_sarathi
from claims.published import calibration, cost_of, prompt
from claims.rates import Rates, lognormal

RUNNING = 128
REQUESTS = 96
WAIT_S = 2.0
"""Most that the median request may wait before its prompt is computed: the paper's limit on queueing."""
STRICT, RELAXED = "strict", "relaxed"
CHUNKS = {STRICT: 512, RELAXED: 2048}
"""The paper's token budgets."""
SWEEP = (1.0, 2.0, 5.0, 10.0)
"""Limits as multiples of the strict one; the paper's relaxed one is the fivefold."""
NEEDED, KEPT = 1.5, 0.9


@dataclass(frozen=True)
class Case:
    """A model on GPUs with requests of some lengths.

    Attributes:
        strict: seconds that 99 % of the times between tokens must keep.
        published: capacity with chunks over that of vLLM and of Orca at the strict limit.
        hosted: whether steps take at least what the paper's host needed for them.
    """

    model: str
    tensor: int
    lengths: str
    prompts: str
    outputs: str
    context: int
    strict: float
    published: str
    hosted: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}, {self.lengths}" + (", slow host" if self.hosted else "")

    @property
    def cost(self) -> AnalyticCost:
        """What its steps take."""
        return analytic_sarathi.HostBound() if self.hosted else cost_of(self.model, "a100-80", self.tensor)

    def limit(self, which: str) -> float:
        """The paper's relaxed limits are five times the strict ones."""
        return self.strict * (5.0 if which == RELAXED else 1.0)


CHAT = ("chat", lognormal(1730, 5696, 8192), lognormal(415, 834, 4096), 8192)
PAPERS = ("papers", lognormal(7059, 12985, 16000), lognormal(208, 371, 2048), 16384)
CASES = (
    Case("Mistral 7B", 1, *CHAT, strict=0.1, published="2.15 and 2.78"),
    Case("Mistral 7B", 1, *PAPERS, strict=0.1, published="1.97 and 1.82"),
    Case("Yi 34B", 2, *CHAT, strict=0.2, published="2.44 and 4.00"),
)
SLOW_HOST = Case("Yi 34B", 2, *CHAT, strict=0.2, published="2.44 and 4.00", hosted=True)
"""Shown besides; not in the rule, which is older."""


@dataclass(frozen=True)
class Seen:
    """What clients saw of a run.

    Attributes:
        gap_s: the 99th percentile of the times between tokens.
        wait_s: the median time to first token, less what the prompt takes alone in one step.
    """

    gap_s: float
    wait_s: float

    def keeps(self, limit: float) -> bool:
        return self.gap_s <= limit and self.wait_s <= WAIT_S


def scheduler(case: Case, cost: AnalyticCost, chunk: int | None) -> SchedulerConfig:
    """Steps of at most `chunk` tokens; None: every prompt enters one step whole, as soon as it has room in memory."""
    return SchedulerConfig(
        num_blocks=cost.kv_tokens // 16, max_context=case.context, max_running=RUNNING, max_waiting=10**6,
        max_step_tokens=chunk or case.context, whole_prompts=chunk is None, prefix_cache=False,
    )  # fmt: skip


def serve(case: Case, cost: AnalyticCost, chunk: int | None, requests: int, seed: int, rate: float) -> Seen:
    """Serve the case's requests at a rate. Equal seeds mean equal requests, only closer together."""
    spec = WorkloadSpec(
        requests=requests, rate=rate, prompt_length=case.prompts, output_length=case.outputs,
        context_limit=case.context, seed=seed,
    )  # fmt: skip
    result = simulate(scheduler(case, cost, chunk), synthesise(spec), cost)
    found = result.requests
    alone = np.array([cost.step_s(prompt(int(n))) + cost.request_s(int(n)) for n in found.prompt_tokens])
    return Seen(gap_quantile([result.steps.gaps], 0.99), float(np.median(found.ttft - alone)))


def capacities(case: Case, cost: AnalyticCost, requests: int, seed: int) -> dict[tuple[str, float], float]:
    """(policy, limit) -> requests per second, for every limit of the sweep; policies are `CHUNKS` and whole prompts."""
    mean = synthesise(WorkloadSpec(requests=512, prompt_length=case.prompts, context_limit=case.context)).columns
    top = 4.0 / float(np.mean([cost.step_s(prompt(int(n))) for n in mean.prompt_tokens]))
    found = {}
    policies: dict[str, int | None] = {"whole": None, **CHUNKS}
    for policy, chunk in policies.items():
        rates = Rates(partial(serve, case, cost, chunk, requests, seed), top, octaves=7)
        for share in SWEEP:
            found[policy, share] = rates.capacity(partial(_keeps, share * case.strict))
    return found


def _keeps(limit: float, seen: Seen) -> bool:
    return seen.keeps(limit)


def gains(found: Mapping[tuple[str, float], Spread]) -> dict[str, Spread]:
    """At the paper's two limits, the capacity with the paper's chunks over that with whole prompts."""
    return {
        which: ratios(found[which, share].values, found["whole", share].values)
        for which, share in ((STRICT, 1.0), (RELAXED, 5.0))
    }


def holds(gain: Mapping[str, Spread]) -> bool:
    """The rule, for one case."""
    strict, relaxed = gain[STRICT], gain[RELAXED]
    return strict.median >= NEEDED and strict.low > 1.0 and KEPT <= relaxed.median < strict.median


def meeting(found: Mapping[tuple[str, float], Spread]) -> float | None:
    """The smallest share of the strict limit from which on whole prompts are as good as the better chunks."""
    for share in SWEEP:
        chunked = max(found[name, share].median for name in CHUNKS)
        if 0 < chunked <= found["whole", share].median:
            return share
    return None


def measure(trial: Trial) -> Finding:
    """Find every capacity."""
    figures: dict[str, Spread] = {}
    parts, verdicts, notes = [], [], []
    for case in (*CASES, SLOW_HOST):
        cost = case.cost
        runs = []
        for turn in range(trial.repeats):
            trial.step(case.name, turn)
            runs.append(capacities(case, cost, REQUESTS, trial.seed + turn))
        found = {key: Spread(tuple(run[key] for run in runs)) for key in runs[0]}
        gain = gains(found)
        if case in CASES:
            verdicts.append(holds(gain))
        parts.append(f"{case.name}: {gain[STRICT].median:.2g} at the strict and {gain[RELAXED].median:.2g} at the "
                     f"relaxed limit (published, strict: {case.published})")  # fmt: skip
        for which, spread in gain.items():
            limit = f"{1e3 * case.limit(which):g} ms"
            figures[f"{case.name}, p99 at most {limit}, chunks of {CHUNKS[which]} over whole prompts"] = spread
        for share in SWEEP:
            for policy in ("whole", *CHUNKS):
                name = f"chunks of {CHUNKS[policy]}" if policy in CHUNKS else "whole prompts"
                limit = f"{1e3 * share * case.strict:g} ms"
                figures[f"{case.name}, requests per second at {limit}, {name}"] = found[policy, share]
        equal = meeting(found)
        notes.append(
            f"{case.name}: whole prompts are as good as the better of the chunks "
            + ("at none of the limits." if equal is None else f"from {1e3 * equal * case.strict:g} ms on.")
        )
    return Finding(
        holds=all(verdicts),
        result="capacity with chunks over that with whole prompts: " + "; ".join(parts),
        figures=figures,
        notes=[
            "From simulation, of the data sheet of the A100. Its cost model was off for this very model family on "
            f"these GPUs by a {calibration(analytic_sarathi.figures(), analytic_sarathi.phase)} (analytic_sarathi) "
            f"and for OPT by a {calibration(analytic_distserve.figures(), analytic_distserve.phase)} "
            "(analytic_distserve). A model that is that much slower or faster throughout moves every limit and every "
            "capacity by as much, and no ratio: read the ratio at a limit that is larger or smaller by that share.",
            "Decoding took the paper's engine several times as long as its GPUs, which no data sheet knows. Slow host "
            "is a least time of a step and each of its sequences, fitted to the paper's figures of decoding: then the "
            f"cost model has a {calibration(analytic_sarathi.figures(SLOW_HOST.cost), analytic_sarathi.phase)}. It was "
            "added when analytic_sarathi, but no capacity, had been seen, and is not part of the rule.",
            *notes,
            "The policy without chunks is hybrid: running sequences get their token in the very step that computes a "
            "whole prompt, as Orca does. vLLM of that time computed prompts in steps of their own, which hold streams "
            "up for about as long; the core has no such policy, and none was written for this claim.",
            "Lengths are lognormal with the medians and 90th percentiles that the paper gives for its two data sets. "
            f"Capacities lie on a scale of rates 19 % apart; runs have {REQUESTS} requests, the paper's 2,048.",
        ],
    )


CLAIM = Claim(
    name="twin_sarathi",
    title="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
    venue="OSDI 2024",
    published=(
        "With prompts in chunks under a token budget, the rate that can be served within a limit on the 99th "
        "percentile of the time between tokens rises up to 2.6 times over vLLM's for Mistral 7B on one A100 and up to "
        "3.7 times for Yi 34B on two; less where the limit is relaxed."
    ),
    compared=(
        "Capacity in the twin of Mistral 7B on one and Yi 34B on two A100 80 GB: budgets of 512 (strict limits) and "
        "2048 tokens (relaxed ones) against whole prompts, Poisson arrivals with lengths as of the paper's data sets, "
        f"at most {RUNNING} running. Limits: the paper's, 0.1 and 0.5 s for Mistral, 0.2 and 1 s for Yi, with a median "
        f"wait of at most {WAIT_S:g} s. From a simulation, not from running it."
    ),
    rule=(
        "For every model and data set: at the strict limit chunks serve, in the median over the repeats, at least "
        f"{NEEDED:g} times the rate of whole prompts, and more in every repeat; at the relaxed limit they gain less "
        f"than that, and keep at least {KEPT:g} of it."
    ),
    measure=measure,
)
