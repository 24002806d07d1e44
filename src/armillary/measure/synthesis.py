"""Draws a workload from a specification and a seed."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic.types import PositiveInt

from armillary.errors import ArmillaryError, Code
from armillary.measure import arrivals, lengths
from armillary.measure.workload import WorkItem, Workload

Share = Annotated[float, Field(ge=0, le=1)]


class WorkloadSpec(BaseModel):
    """What a synthetic workload is like. Equal specifications give equal workloads, on any machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: PositiveInt = Field(default=100, description="How many requests.")
    arrivals: str = Field(
        default="poisson", description="Gaps between arrivals of an open loop: poisson, gamma or constant."
    )
    rate: float = Field(
        default=float("inf"), gt=0, description="Requests per second of an open loop; inf: all at once."
    )
    cv: float = Field(default=1.0, gt=0, description="Coefficient of variation of the gaps, for gamma arrivals.")
    users: PositiveInt | None = Field(
        default=None,
        description="Closed loop: this many users, each sending its next request after the last one ended.",
    )
    think: float = Field(default=0.0, ge=0, description="Closed loop: mean think time in seconds (exponential).")
    prompt_length: str = Field(
        default="128",
        description="Prompt tokens besides a shared prefix: N, uniform:A,B, lognormal:MEAN,CV[,MAX] or trace:FILE.",
    )
    output_length: str = Field(default="32", description="Tokens to generate; forms as for prompt_length.")
    prefixes: int = Field(default=0, ge=0, description="How many different shared prefixes there are; 0: none.")
    prefix_length: int = Field(default=0, ge=0, description="Tokens of each shared prefix, before the prompt's own.")
    prefix_share: Share = Field(default=1.0, description="Share of the requests that begin with a shared prefix.")
    prefix_zipf: float = Field(
        default=0.0, ge=0, description="Popularity of the k-th prefix is proportional to 1/k^s; 0: all alike."
    )
    deadline: float | None = Field(default=None, gt=0, description="Deadline of every request, in seconds.")
    seed: int = Field(default=0, ge=0, description="Seed of everything drawn.")


def synthesise(spec: WorkloadSpec) -> Workload:
    """The workload that `spec` and its seed determine.

    Arrivals, lengths, prefixes and think times come from streams of their own, so that changing one leaves
    the others as they were. Where prompt and output lengths name the same trace, they are drawn as pairs.
    """
    if (spec.prefixes > 0) != (spec.prefix_length > 0):
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "prefixes and prefix_length must both be 0 or both be above 0, "
            f"given {spec.prefixes} and {spec.prefix_length}",
            param="prefixes",
        )
    count = spec.requests
    when_rng, size_rng, prefix_rng, think_rng = (np.random.default_rng([spec.seed, stream]) for stream in range(4))
    own, output = _lengths(spec, size_rng)
    popularity = zipf(spec.prefixes, spec.prefix_zipf) if spec.prefixes else None
    carries = prefix_rng.random(count) < spec.prefix_share
    chosen = prefix_rng.choice(spec.prefixes, size=count, p=popularity) if spec.prefixes else None
    if spec.users is None:
        times = arrivals.arrival_times(spec.arrivals, spec.rate, spec.cv, count, when_rng)
        thinks = np.zeros(count)
    else:
        times = None
        thinks = think_rng.exponential(spec.think, size=count) if spec.think > 0 else np.zeros(count)
    items = []
    for i in range(count):
        shared = chosen is not None and bool(carries[i])
        items.append(
            WorkItem(
                id=str(i),
                arrival=None if times is None else float(times[i]),
                prompt_tokens=int(own[i]) + (spec.prefix_length if shared else 0),
                output_tokens=int(output[i]),
                prefix=f"p{int(chosen[i])}" if shared and chosen is not None else None,
                prefix_tokens=spec.prefix_length if shared else 0,
                think=float(thinks[i]),
                deadline=spec.deadline,
            )
        )
    origin = spec.model_dump(mode="json", exclude_defaults=True)
    return Workload(tuple(items), spec.users, origin | {"seed": spec.seed})


def _lengths(spec: WorkloadSpec, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if spec.prompt_length == spec.output_length and spec.prompt_length.startswith("trace:"):
        # One draw for both keeps the correlation of prompt and output lengths that the trace has.
        pairs = np.asarray(lengths.read_trace(spec.prompt_length.removeprefix("trace:")), dtype=np.int64)
        picked = pairs[rng.integers(0, len(pairs), size=spec.requests)]
        return picked[:, 0], picked[:, 1]
    own = lengths.parse_lengths(spec.prompt_length, "prompt_tokens").draw(spec.requests, rng)
    return own, lengths.parse_lengths(spec.output_length, "output_tokens").draw(spec.requests, rng)


def zipf(count: int, exponent: float) -> NDArray[np.float64]:
    """Probabilities proportional to 1/k^exponent for k = 1..count."""
    weights = 1.0 / np.arange(1, count + 1, dtype=np.float64) ** exponent
    return np.asarray(weights / weights.sum())
