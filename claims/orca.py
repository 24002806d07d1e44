"""Orca: scheduling at the level of iterations, against batches of whole requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, interleaved, ratios
from claims.subject import Gate, Job, Run, Seen, Subject, at_once, heavy_tailed

BATCH = 8
REQUESTS = 24
OUTPUT_MEAN, OUTPUT_CV, OUTPUT_MAX = 12, 1.5, 64
LATENCY_FACTOR = 2.0
"""As in the paper, whose headline is read off at twice the latency of execution alone."""
BISECTIONS = 3
SLOWEST, FASTEST = 1 / 8, 1.25
"""Rates tried, as shares of what the engine sustains when all requests come at once."""
NEEDED = 1.5
CONTROL_LIMIT = 1.25


def request_level(batch: int) -> Gate:
    """Hand over a batch, and no more until all of it has ended."""

    def gate(waiting: Sequence[Job], alive: Sequence[Seen]) -> int:
        return 0 if alive else min(batch, len(waiting))

    return gate


def normalised_latency(run: Run) -> float:
    """Median over requests of end-to-end seconds per generated token, Orca's measure of latency."""
    return float(median(seen.e2e / len(seen.tokens) for seen in run.seen))


def highest_rate(run_at: Callable[[float], Run], limit: float, low: float, high: float) -> float:
    """The highest rate in [low, high] at which normalised latency stays within `limit`.

    Bisects in logarithm, then interpolates between the two sides of the last bracket where both were measured.
    """
    below = above = 0.0
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        latency = normalised_latency(run_at(middle))
        if latency <= limit:
            low, below = middle, latency
        else:
            high, above = middle, latency
    share = math.log(limit / below) / math.log(above / below) if below and above else 0.5
    return float(low * (high / low) ** share)


@dataclass(frozen=True)
class Round:
    """One workload: jobs, and their arrivals at one request per second."""

    jobs: list[Job]
    arrivals: list[float]

    def at(self, rate: float) -> list[Job]:
        """The jobs, arriving at `rate` requests per second."""
        return [Job(job.prompt, job.output, at / rate) for job, at in zip(self.jobs, self.arrivals, strict=True)]


def measure(trial: Trial) -> Finding:
    subject = Subject(max_running=BATCH, max_step_tokens=512, kv_blocks=256, max_context=256, prefix_cache=False)
    gates = {"iteration-level": at_once, "request-level": request_level(BATCH)}
    rng = np.random.default_rng(trial.seed)

    def draw() -> Round:
        outputs = heavy_tailed(rng, REQUESTS, OUTPUT_MEAN, OUTPUT_CV, OUTPUT_MAX)
        jobs = subject.jobs(rng, rng.integers(8, 25, size=REQUESTS).tolist(), outputs)
        return Round(jobs, np.cumsum(rng.exponential(1.0, size=REQUESTS)).tolist())

    rounds = [draw() for _ in range(trial.repeats)]
    subject.run(rounds[0].jobs)  # warm-up
    alone = median(normalised_latency(subject.run([job])) for job in rounds[0].jobs[:BATCH])
    limit = LATENCY_FACTOR * alone
    saturated = REQUESTS / subject.run(rounds[0].jobs).duration
    bounds = (saturated * SLOWEST, saturated * FASTEST)

    def rates_under(gate: Gate) -> Callable[[], float]:
        turns = iter(rounds)

        def find() -> float:
            turn = next(turns)
            return highest_rate(lambda rate: subject.run(turn.at(rate), gate), limit, *bounds)

        return find

    rates = interleaved({name: rates_under(gate) for name, gate in gates.items()}, trial.repeats, trial.step)

    def all_at_once(constant: bool) -> dict[str, list[Run]]:
        def runs_under(gate: Gate) -> Callable[[], Run]:
            turns = iter(rounds)

            def once() -> Run:
                jobs = next(turns).jobs
                return subject.run([Job(j.prompt[:8], OUTPUT_MEAN if constant else j.output) for j in jobs], gate)

            return once

        return interleaved({name: runs_under(gate) for name, gate in gates.items()}, trial.repeats, trial.step)

    heavy, constant = all_at_once(False), all_at_once(True)

    def gain(runs: dict[str, list[Run]]) -> Spread:
        return ratios(*([run.output_rate for run in runs[name]] for name in gates))

    advantage, control = ratios(rates["iteration-level"], rates["request-level"]), gain(constant)
    same = all(a.outputs == b.outputs for a, b in zip(heavy["iteration-level"], heavy["request-level"], strict=True))
    return Finding(
        holds=advantage.median >= NEEDED and advantage.low > 1.0 and control.median <= CONTROL_LIMIT and same,
        result=(
            f"{advantage:.2f} times the request rate at equal median latency per token; all at once, "
            f"{gain(heavy):.2f} times the throughput with heavy-tailed outputs and {control:.2f} with constant ones"
        ),
        figures={
            "rate at equal latency, iteration- over request-level": advantage,
            "iteration-level, requests/s": Spread(tuple(rates["iteration-level"])),
            "request-level, requests/s": Spread(tuple(rates["request-level"])),
            "throughput all at once, heavy-tailed outputs, ratio": gain(heavy),
            "throughput all at once, constant outputs, ratio": control,
        },
        notes=[
            f"Latency limit {limit * 1e3:.2f} ms per token: {LATENCY_FACTOR:g} times that of a request alone.",
            "A finished request is delivered at once under both policies; the systems that Orca compares with "
            "deliver it with its batch and pad, so the published factor includes more than is measured here.",
            "Every round has a workload of its own, the same under both policies.",
            f"Generated tokens {'are the same' if same else 'DIFFER'} under both policies.",
        ],
    )


CLAIM = Claim(
    name="orca",
    title="Orca: A Distributed Serving System for Transformer-Based Generative Models",
    venue="OSDI 2022",
    published=(
        "Admitting and returning requests after every model iteration, instead of running each batch to its end, "
        "gives many times the throughput of request-level batching at the same latency (36.9 times on GPT-3 175B)."
    ),
    compared=(
        f"The same engine, at most {BATCH} sequences, {REQUESTS} Poisson arrivals with heavy-tailed output lengths "
        f"(lognormal, mean {OUTPUT_MEAN}, coefficient of variation {OUTPUT_CV:g}): admission between any two steps "
        "against a driver that hands over a batch and no more until all of it has ended. Found by bisection for "
        "each: the highest request rate at which the median latency per generated token stays within "
        f"{LATENCY_FACTOR:g} times that of a request alone. Control: all requests at once, with constant output "
        "lengths, where the idea should gain little."
    ),
    rule=(
        f"The ratio of rates has a median of at least {NEEDED:g} and is above 1 in every repeat; the control's "
        f"median is at most {CONTROL_LIMIT:g}; both policies generate the same tokens."
    ),
    measure=measure,
)
