"""Prompts and answers on engines of their own against engines that do both, in the twin of the paper's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from armillary.core.config import SchedulerConfig
from armillary.deployment import FleetSettings, LinkSettings, ReplicaSettings
from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.twin.analytic import AnalyticCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan
from armillary.twin.shapes import BYTES
from claims import analytic_distserve
from claims.published import calibration, cost_of, prompt
from claims.rates import Rates

MODEL = "OPT-13B"
PROMPT, OUTPUT = 512, 64
CONTEXT = 2048
RUNNING = 128
PER_DEVICE = 100
"""Requests of a run, for each device."""
GOOD = 0.9
TTFT, TPOT = 0.4, 0.04
"""The limits of the paper's first figure, in seconds."""
LOOSE_TTFT = 0.8
TPOTS = (0.0225, 0.025, 0.0275, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08, 0.1, 0.2)
TTFTS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.8)
NVLINK = 0.7 * 300e9
"""Bytes per second between devices, as expected of the data sheet's link."""
LINKS = (NVLINK, 3.125e9, 0.5e9)
WON, LOST = 1.2, 1.05

Limits = tuple[float, float]
"""Most seconds to the first token, and on average for each further one."""


@dataclass(frozen=True)
class Design:
    """Engines of one device each.

    Attributes:
        prefill, decode: how many do only the one.
        both: how many do both.
        budget: tokens of a step of those that do both, or None for whole prompts; of prefill engines in any case.
    """

    prefill: int = 0
    decode: int = 0
    both: int = 0
    budget: int | None = 512
    link: float = NVLINK

    @property
    def devices(self) -> int:
        return self.prefill + self.decode + self.both

    @property
    def split(self) -> bool:
        return self.both == 0

    @property
    def fleet(self) -> FleetSettings:
        counts = {"prefill": self.prefill, "decode": self.decode, "both": self.both}
        return FleetSettings(
            replicas=tuple(ReplicaSettings(role=role, count=n) for role, n in counts.items() if n),  # type: ignore[arg-type]
            link=LinkSettings(bandwidth=int(self.link), latency_s=8e-6),
        )

    def scheduler(self, role: str, cost: AnalyticCost) -> SchedulerConfig:
        whole = role == "both" and self.budget is None
        budget = RUNNING if role == "decode" else CONTEXT if self.budget is None else self.budget
        return SchedulerConfig(
            num_blocks=cost.kv_tokens // 16, max_context=CONTEXT, max_running=RUNNING, max_waiting=10**6,
            max_step_tokens=budget, whole_prompts=whole, prefix_cache=False,
        )  # fmt: skip


SPLIT = (Design(1, 1), Design(2, 1))
SHARED = (Design(both=2, budget=256), Design(both=2, budget=None))


@dataclass(frozen=True)
class Seen:
    """What clients saw of a run, request by request."""

    ttft: NDArray[np.float64]
    tpot: NDArray[np.float64]

    def keeps(self, limits: Limits) -> bool:
        return float(np.mean((self.ttft <= limits[0]) & (self.tpot <= limits[1]))) >= GOOD


def serve(design: Design, cost: AnalyticCost, per_device: int, seed: int, rate: float) -> Seen:
    """Serve requests at a rate for each device."""
    spec = WorkloadSpec(
        requests=per_device * design.devices, rate=rate * design.devices, prompt_length=str(PROMPT),
        output_length=str(OUTPUT), seed=seed,
    )  # fmt: skip
    kv_bytes = int(cost.shape.kv_elements * BYTES[cost.kv_dtype])

    def build(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(design.scheduler(group.role, cost), cost, kv_bytes=kv_bytes)

    found = simulate_fleet(design.fleet, build, synthesise(spec), seed=seed).requests
    return Seen(found.ttft, found.tpot)


class Goodput:
    """The goodput of each device, for designs and limits, from as few runs as will do."""

    def __init__(self, cost: AnalyticCost, per_device: int, seed: int) -> None:
        self._serve: Callable[[Design, float], Seen] = lambda design, rate: serve(design, cost, per_device, seed, rate)
        self._top = 2.0 / cost.step_s(prompt(PROMPT))
        self._rates: dict[Design, Rates[Seen]] = {}

    def of(self, design: Design, limits: Limits) -> float:
        """Requests per second and device of which `GOOD` keep both limits."""
        if design not in self._rates:
            self._rates[design] = Rates(partial(self._serve, design), self._top, octaves=6)
        return self._rates[design].capacity(lambda seen: seen.keeps(limits))


def sweeps() -> list[Limits]:
    """All limits that are asked for."""
    return list(dict.fromkeys([(TTFT, t) for t in TPOTS] + [(t, TPOT) for t in TTFTS] + [(LOOSE_TTFT, TPOTS[-1])]))


Found = Mapping[tuple[str, Limits], Spread]
"""("split" or "shared", limits) -> goodput of a device with the best of the designs."""


def wins(found: Found, tpot: float) -> bool:
    """Whether splitting is clearly better at a limit per token."""
    split, shared = (found[name, (TTFT, tpot)] for name in ("split", "shared"))
    pairs = zip(split.values, shared.values, strict=True)
    return split.median >= WON * shared.median and all(a > b for a, b in pairs)


def loosest_win(found: Found) -> float | None:
    """The loosest limit per token at which splitting is clearly better."""
    return max((tpot for tpot in TPOTS if wins(found, tpot)), default=None)


def crossing(found: Found) -> float | None:
    """The limit per token from which on, up to the loosest, shared engines are at least as good."""
    first = None
    for tpot in reversed(TPOTS):
        if found["shared", (TTFT, tpot)].median < found["split", (TTFT, tpot)].median:
            break
        first = tpot
    return first


def holds(found: Found, slow: Spread) -> bool:
    """The rule; `slow` is the goodput of a split design's device with the slowest link at the loosest win."""
    at, meeting, loose = loosest_win(found), crossing(found), (LOOSE_TTFT, TPOTS[-1])
    return (
        at is not None
        and meeting is not None
        and found["shared", loose].median >= LOST * found["split", loose].median
        and slow.median < found["shared", (TTFT, at)].median
    )


def measure(trial: Trial) -> Finding:
    """Find the best goodput of each kind of design under every limit."""
    cost = cost_of(MODEL, "a100-80")
    seeds = [Goodput(cost, PER_DEVICE, trial.seed + turn) for turn in range(trial.repeats)]
    values: dict[tuple[str, Limits], list[float]] = {}
    for turn, goodput in enumerate(seeds):
        for name, designs in (("split", SPLIT), ("shared", SHARED)):
            trial.step(name, turn)
            for limits in sweeps():
                values.setdefault((name, limits), []).append(max(goodput.of(d, limits) for d in designs))
    found = {key: Spread(tuple(each)) for key, each in values.items()}
    at = loosest_win(found)
    limits = (TTFT, TPOT if at is None else at)
    links = {}
    for speed in LINKS:
        trial.progress(f"a link of {speed / 1e9:g} GB/s")
        linked = [replace(design, link=speed) for design in SPLIT]
        links[speed] = Spread(tuple(max(goodput.of(d, limits) for d in linked) for goodput in seeds))
    slow = [speed for speed in LINKS if links[speed].median < found["shared", limits].median]
    ratio = {
        "the paper's limits": (TTFT, TPOT),
        "the loosest limits": (LOOSE_TTFT, TPOTS[-1]),
    }
    told = [f"{_over(found, pair)} at {where}" for where, pair in ratio.items()]
    meeting = crossing(found)
    return Finding(
        holds=holds(found, links[LINKS[-1]]),
        result=(
            ("split engines clearly win nowhere" if at is None else f"split engines clearly win up to {1e3 * at:g} ms")
            + " per token"
            + ("" if at is None else f", where they serve {_over(found, limits)}")
            + (", and shared ones never" if meeting is None else f"; shared ones from {1e3 * meeting:g} ms on")
            + "; split over shared: "
            + ", ".join(told)
        ),
        figures=_figures(found)
        | {f"goodput, split, {_limits(limits)}, link of {speed / 1e9:g} GB/s": each for speed, each in links.items()},
        notes=[
            "From simulation, of the data sheet of the A100. Its cost model is off for this very model on this GPU by "
            f"a {calibration(analytic_distserve.figures(MODEL), analytic_distserve.phase)} (analytic_distserve). A "
            "model that is that much slower or faster throughout moves every limit and every rate by as much, and no "
            "ratio: read the ratio at limits that are larger or smaller by that share.",
            "Split engines lose to shared ones "
            + (f"with a link of {max(slow) / 1e9:g} GB/s or less" if slow else "at none of these links")
            + f" at {_limits(limits)}; a prompt's keys and values are {PROMPT * KV_BYTES / 1e6:.0f} MB.",
            "The paper's shared engines are those of 2023, without chunks and slowed by their host; here they are as "
            "good as this core: chunks of 256 or none, whichever serves more, two engines behind one router.",
            "The rule first took 2 s for the loosest limit to the first token; the first run showed that runs of "
            f"this length cannot tell who keeps that, so it is {LOOSE_TTFT:g} s now. No other figure had been seen.",
            "Each phase has the same kind of device here; parallelism of its own for each, which the paper's placement "
            "chooses as well, is left out.",
            f"Goodputs lie on a scale of rates that are 19 % apart; runs have {PER_DEVICE} requests for each device.",
        ],
    )


KV_BYTES = 2 * 40 * 5120 * 2
"""Of a position of OPT-13B in 16 bits."""


def _limits(limits: Limits) -> str:
    return f"{limits[0]:g} s and {1e3 * limits[1]:g} ms"


def _over(found: Found, limits: Limits) -> str:
    split, shared = (found[name, limits].median for name in ("split", "shared"))
    return f"{split / shared:.2g} times as much" if shared else "what shared ones cannot at all"


def _figures(found: Found) -> dict[str, Spread]:
    return {f"goodput, {name}, {_limits(limits)}": spread for (name, limits), spread in found.items()}


CLAIM = Claim(
    name="twin_distserve",
    title="DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving",
    venue="OSDI 2024",
    published=(
        "On A100 with prompts of 512 and answers of 64 tokens, a 13B model serves 1.6 requests per second and GPU "
        "within 0.4 s to the first token and 40 ms for each further one where a GPU does both, and 3.3 where two do "
        "prompts and one the rest; up to 7.4 times the rate within tight limits over systems of 2023."
    ),
    compared=(
        f"Goodput of a device in the twin of {MODEL} on A100 80 GB with the same lengths and Poisson arrivals: one or "
        "two engines for prompts and one for the rest, joined by NVLink, against two that do both behind one router, "
        "with chunks of 256 tokens or whole prompts; the better design of each kind under each limit. From a "
        "simulation, not from running it."
    ),
    rule=(
        f"Of the limits per token at {TTFT:g} s to the first one there are some at which split engines serve at least "
        f"{WON:g} times the rate of shared ones in the median and more in every repeat, and looser ones from which on "
        f"shared engines serve no less; at the loosest limits ({_limits((LOOSE_TTFT, TPOTS[-1]))}) shared engines "
        f"serve at least {LOST:g} times as much; with a link of {LINKS[-1] / 1e9:g} GB/s split ones lose there."
    ),
    measure=measure,
)
