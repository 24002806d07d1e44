"""Prefix sharing: KV of a common beginning computed once, against computing it for every request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import numpy as np

from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, interleaved, ratios
from claims.subject import Job, Run, Seen, Subject

PREFIX, OWN, OUTPUT = 384, 16, 8
REQUESTS = 16
USERS = 2
NEEDED = 1.5
SAVED = 0.9
CONTROL_LIMIT = 1.15


def few_at_once(waiting: Sequence[Job], alive: Sequence[Seen]) -> int:
    """Few requests at once, so that TTFT is the time to compute a prompt and not the time in a queue."""
    return max(0, USERS - len(alive))


def median_ttft(run: Run) -> float:
    """Median over the requests that come after the first ones, whose prefix nobody has computed before."""
    return median(seen.ttft for seen in run.seen[USERS:])


def measure(trial: Trial) -> Finding:
    subjects = {
        name: Subject(
            max_running=USERS, max_step_tokens=1024, kv_blocks=2048, max_context=1024, prefix_cache=name == "on"
        )
        for name in ("on", "off")
    }
    rng = np.random.default_rng(trial.seed)
    maker = subjects["on"]

    def shared() -> list[Job]:
        prefix = tuple(rng.integers(0, maker.vocab_size, size=PREFIX).tolist())
        own = maker.jobs(rng, [OWN] * REQUESTS, [OUTPUT] * REQUESTS)
        return [Job(prefix + job.prompt, job.output) for job in own]

    def apart() -> list[Job]:
        return maker.jobs(rng, [PREFIX + OWN] * REQUESTS, [OUTPUT] * REQUESTS)

    for subject in subjects.values():
        subject.run(apart()[:4], few_at_once)  # warm-up

    def take_turn(subject: Subject, turns: Iterator[list[Job]]) -> Run:
        return subject.run(next(turns), few_at_once)

    def compare(make: Callable[[], list[Job]]) -> dict[str, list[Run]]:
        # Every round has prompts of its own, so that no round profits from the one before.
        rounds = [make() for _ in range(trial.repeats)]
        turns = {name: iter(rounds) for name in subjects}
        return interleaved(
            {name: partial(take_turn, subject, turns[name]) for name, subject in subjects.items()},
            trial.repeats,
            trial.step,
        )

    with_prefix, without = compare(shared), compare(apart)
    ttft = {
        name: {which: [median_ttft(run) for run in each] for which, each in runs.items()}
        for name, runs in (("shared", with_prefix), ("apart", without))
    }
    faster = ratios(ttft["shared"]["off"], ttft["shared"]["on"])
    overhead = ratios(ttft["apart"]["on"], ttft["apart"]["off"])
    computed = {name: Spread(tuple(float(run.computed_tokens) for run in each)) for name, each in with_prefix.items()}
    possible = (REQUESTS - 1) * PREFIX
    saved = Spread(
        tuple((off - on) / possible for off, on in zip(computed["off"].values, computed["on"].values, strict=True))
    )
    same = all(
        a.outputs == b.outputs for each in (with_prefix, without) for a, b in zip(each["on"], each["off"], strict=True)
    )
    return Finding(
        holds=(
            faster.median >= NEEDED
            and faster.low > 1.0
            and saved.low >= SAVED
            and overhead.median <= CONTROL_LIMIT
            and same
        ),
        result=(
            f"median TTFT is {faster:.2f} times shorter and {saved.median:.1%} of the repeated prefix tokens are "
            f"not computed; where prompts share nothing, TTFT is {overhead:.2f} times that without the cache"
        ),
        figures={
            "TTFT, cache off over on, shared prefix": faster,
            "TTFT, cache on over off, nothing shared": overhead,
            "TTFT, cache on, ms": Spread(tuple(value * 1e3 for value in ttft["shared"]["on"])),
            "TTFT, cache off, ms": Spread(tuple(value * 1e3 for value in ttft["shared"]["off"])),
            "computed tokens, cache on": computed["on"],
            "computed tokens, cache off": computed["off"],
            "share of repeated prefix tokens not computed": saved,
        },
        notes=[f"Generated tokens {'are the same' if same else 'DIFFER'} with the cache on and off."],
    )


CLAIM = Claim(
    name="prefix_sharing",
    title="SGLang: Efficient Execution of Structured Language Model Programs (RadixAttention)",
    venue="NeurIPS 2024",
    published=(
        "Keeping the KV of prompts and reusing it wherever a later prompt begins the same saves the computation of "
        "the common part, with up to 6.4 times the throughput on workloads full of shared beginnings, and costs "
        "next to nothing where nothing is shared."
    ),
    compared=(
        f"{REQUESTS} requests, {USERS} at a time, whose prompts share {PREFIX} tokens and go on for {OWN} of their "
        "own: the engine with its prefix cache on against off, every round with a new prefix. Control: prompts of "
        "the same length that share nothing."
    ),
    rule=(
        f"Median TTFT without the cache over that with it has a median of at least {NEEDED:g} and is above 1 in "
        f"every repeat; at least {SAVED:.0%} of the repeated prefix tokens are not computed, in every repeat; where "
        f"nothing is shared the median of TTFT with the cache is at most {CONTROL_LIMIT:g} times that without; all "
        "generate the same tokens."
    ),
    measure=measure,
)
