"""Draws a workload from a specification and a seed."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic.types import PositiveInt

from armillary.errors import ArmillaryError, Code
from armillary.measure.arrivals import parse_arrivals
from armillary.measure.classes import parse_classes
from armillary.measure.columns import Columns
from armillary.measure.item import MOST_TOKENS
from armillary.measure.lengths import draw, draw_pairs, parse_lengths
from armillary.measure.traces import read_trace
from armillary.measure.workload import Workload

Share = Annotated[float, Field(ge=0, le=1)]
Whole = NDArray[np.int64]
MOST_TURNS = 1_000_000
"""That are drawn for a hundredth of as many requests: conversations are drawn whole."""


class WorkloadSpec(BaseModel):
    """What a workload is like. Equal specifications give equal workloads, on any machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)  # rates may be infinite

    workload: str | None = Field(
        default=None,
        description="What to start from: a preset (chat, rag, agent, batch), or a file to replay: JSONL, a journal, "
        "Azure's CSV or Mooncake's JSONL.",
    )
    requests: PositiveInt = Field(default=100, description="How many requests; of a file the first so many.")
    arrivals: str = Field(
        default="poisson",
        description="When requests of an open loop come: poisson, constant, gamma:CV, mmpp:BURST,SHARE,SECONDS, "
        "diurnal:SWING[,SECONDS] or profile:FILE[,SECONDS].",
    )
    rate: float = Field(
        default=float("inf"),
        gt=0,
        description="Requests per second of an open loop on average; inf: all at once. A file is replayed faster or "
        "slower to reach it.",
    )
    speed: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Of a file: so many times as fast as it was recorded; think times stay.",
    )
    volume: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Of a file: so many times its requests in the same time, by leaving out or by copies.",
    )
    users: PositiveInt | None = Field(
        default=None,
        description="Closed loop: this many users, each sending its next request after the last one ended.",
    )
    think: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Mean seconds (exponential) that a user thinks before a request or a further turn.",
    )
    turns: str = Field(default="1", description="Requests of a conversation; forms as for prompt_length.")
    prompt_length: str = Field(
        default="128",
        description="Prompt tokens of a request's own, besides shared prefix and history: N, uniform:A,B, "
        "geometric:MEAN, lognormal:MEAN,CV[,MAX] or trace:FILE.",
    )
    output_length: str = Field(default="32", description="Tokens to generate; forms as for prompt_length.")
    correlation: float | None = Field(
        default=None, gt=-1, lt=1, description="Rank correlation of a request's own prompt length and output length."
    )
    context_limit: PositiveInt | None = Field(
        default=None,
        description="Most tokens of prompt and answer together: conversations end before, single requests are cut.",
    )
    prefixes: int = Field(
        default=0, ge=0, le=MOST_TOKENS, description="How many different shared prefixes there are; 0: none."
    )
    prefix_length: int = Field(
        default=0, ge=0, le=MOST_TOKENS, description="Tokens of each shared prefix, before the prompt's own."
    )
    prefix_share: Share = Field(default=1.0, description="Share of the conversations that begin with a shared prefix.")
    prefix_zipf: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Popularity of the k-th prefix is proportional to 1/k^s; 0: all alike.",
    )
    slo_classes: str = Field(
        default="",
        description="Classes of conversations with service levels of their own, as "
        "'quick 0.7: ttft p95 300ms; slow 0.3: e2e p95 60s'.",
    )
    deadline: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Deadline of every request, in seconds."
    )
    seed: int = Field(default=0, ge=0, description="Seed of everything drawn.")


def synthesise(spec: WorkloadSpec) -> Workload:
    """The workload that `spec` and its seed determine; `spec.workload` is not looked at.

    Arrivals, lengths, prefixes, turns, think times and classes come from streams of their own, so that changing one
    leaves the others as they were. Where prompt and output lengths name the same trace, they are drawn as pairs.
    """
    _check(spec)
    streams = [np.random.default_rng([spec.seed, stream]) for stream in range(6)]
    when_rng, size_rng, prefix_rng, think_rng, turn_rng, class_rng = streams
    turns = _turns(spec, turn_rng, size_rng, prefix_rng)
    count, started = spec.requests, int(turns.session[-1]) + 1
    arrival = think = None
    if spec.users is None:
        starts = np.zeros(started)
        if math.isfinite(spec.rate):
            arrivals = parse_arrivals(spec.arrivals)
            with np.errstate(over="ignore", invalid="ignore"):  # at rates near 0, which the workload refuses
                starts = arrivals.times(started, spec.rate * started / count, when_rng)
        arrival = starts[turns.session]
    if spec.think > 0:
        think = think_rng.exponential(spec.think, size=count)
        if spec.users is None:
            think[~turns.later] = 0.0
    classes = parse_classes(spec.slo_classes)
    slo_class = None
    if classes:
        shares = np.array([share for _, share, _ in classes])
        slo_class = class_rng.choice(len(classes), size=started, p=shares / shares.sum())[turns.session]
    carries = (turns.prefix >= 0) & ~turns.later
    conversing = bool(turns.later.any())
    columns = Columns(
        prompt_tokens=turns.prompt,
        output_tokens=turns.output,
        arrival=arrival,
        think=think,
        session=turns.session if conversing else None,
        history=turns.history if conversing else None,
        shares=np.concatenate([[0], np.cumsum(carries)]) if carries.any() else None,
        run=turns.prefix[carries] if carries.any() else None,
        run_tokens=np.full(int(carries.sum()), spec.prefix_length) if carries.any() else None,
        deadline=None if spec.deadline is None else np.full(count, spec.deadline),
        slo_class=slo_class,
        slo_classes=tuple(name for name, _, _ in classes),
    )
    origin: dict[str, Any] = spec.model_dump(mode="json", exclude_defaults=True)
    return Workload(columns, spec.users, origin | {"seed": spec.seed}, {name: slo for name, _, slo in classes})


class _Turns(NamedTuple):
    """Requests, conversation after conversation."""

    session: Whole
    later: NDArray[np.bool_]
    """Whether it is not the first of its conversation."""
    prefix: Whole
    """Which shared prefix its conversation begins with; -1 for none."""
    history: Whole
    prompt: Whole
    output: Whole

    def where(self, kept: NDArray[np.bool_]) -> _Turns:
        """Some of the requests."""
        return _Turns(
            self.session[kept], self.later[kept], self.prefix[kept],
            self.history[kept], self.prompt[kept], self.output[kept],
        )  # fmt: skip


def _turns(
    spec: WorkloadSpec, turn_rng: np.random.Generator, size_rng: np.random.Generator, prefix_rng: np.random.Generator
) -> _Turns:
    """`spec.requests` requests in whole conversations, but for the last."""
    many = parse_lengths(spec.turns, "prompt_tokens")
    counts, prefixes = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    own, output = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    while True:
        new = draw(many, max(64, spec.requests // 4), turn_rng)
        if new.sum() > MOST_TURNS + 100 * spec.requests:
            raise _wrong("turns", f"turns must be fewer for {spec.requests} requests, given {spec.turns!r}")
        counts = np.concatenate([counts, new])
        prefixes = np.concatenate([prefixes, _prefixes(spec, len(new), prefix_rng)])
        more = _lengths(spec, int(new.sum()), size_rng)
        own, output = np.concatenate([own, more[0]]), np.concatenate([output, more[1]])
        found = _conversations(spec, counts, prefixes, own, output)
        if len(found.session) >= spec.requests:
            return found.where(np.arange(len(found.session)) < spec.requests)


def _conversations(spec: WorkloadSpec, counts: Whole, prefixes: Whole, own: Whole, output: Whole) -> _Turns:
    """Every prompt is what was said before and a part of its own; what outgrows the context is left out."""
    session = np.repeat(np.arange(len(counts)), counts)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])[session]
    later = np.arange(len(session)) > first
    prefix = prefixes[session]
    shared = np.where(prefix >= 0, spec.prefix_length, 0)
    if spec.context_limit is not None:
        output = np.minimum(output, spec.context_limit - np.where(later, 0, shared) - 1)
        own = np.where(later, own, np.minimum(own, spec.context_limit - shared - output))
    said = np.concatenate([[0], np.cumsum(own + output)])
    history = np.where(later, shared + said[:-1] - said[first], 0)
    prompt = np.where(later, history, shared) + own
    turns = _Turns(session, later, prefix, history, prompt, output)
    if spec.context_limit is None:
        return turns
    # A conversation only grows, so what is left out of one is its end.
    return turns.where(prompt + output <= spec.context_limit)


def _prefixes(spec: WorkloadSpec, count: int, rng: np.random.Generator) -> Whole:
    """Which shared prefix each of `count` conversations begins with."""
    if not spec.prefixes:
        return np.full(count, -1, dtype=np.int64)
    carries = rng.random(count) < spec.prefix_share
    return np.where(carries, rng.choice(spec.prefixes, size=count, p=zipf(spec.prefixes, spec.prefix_zipf)), -1)


def _lengths(spec: WorkloadSpec, count: int, rng: np.random.Generator) -> tuple[Whole, Whole]:
    if (
        spec.correlation is None
        and spec.prompt_length == spec.output_length
        and spec.prompt_length.startswith("trace:")
    ):
        # One draw for both keeps the correlation of prompt and output lengths that the trace has.
        columns = read_trace(spec.prompt_length.removeprefix("trace:"))
        picked = rng.integers(0, len(columns), size=count)
        return columns.prompt_tokens[picked], columns.output_tokens[picked]
    own, output = parse_lengths(spec.prompt_length, "prompt_tokens"), parse_lengths(spec.output_length, "output_tokens")
    return draw_pairs(own, output, spec.correlation or 0.0, count, rng)


def check(spec: WorkloadSpec) -> None:
    """Refuse what contradicts itself, would change nothing or cannot be read, without drawing anything.

    Raises ArmillaryError: as `parse_arrivals`, `parse_lengths` and `parse_classes`; INVALID_REQUEST.
    """
    if spec.users is None and math.isfinite(spec.rate):
        parse_arrivals(spec.arrivals)
    parse_lengths(spec.turns, "prompt_tokens")
    parse_lengths(spec.prompt_length, "prompt_tokens")
    parse_lengths(spec.output_length, "output_tokens")
    parse_classes(spec.slo_classes)
    _check(spec)


def _check(spec: WorkloadSpec) -> None:
    """Refuse what contradicts itself or would change nothing."""
    given = spec.model_fields_set
    if (spec.prefixes > 0) != (spec.prefix_length > 0):
        raise _wrong(
            "prefixes", "prefixes and prefix_length must both be 0 or both be above 0, "
            f"given {spec.prefixes} and {spec.prefix_length}",
        )  # fmt: skip
    if not spec.prefixes:
        for name in sorted({"prefix_share", "prefix_zipf"} & given):
            raise _wrong(name, f"{name} must come with prefixes, given none")
    if spec.users is not None:
        for name in sorted({"arrivals", "rate"} & given):
            raise _wrong(name, f"{name} must be left out of a closed loop, given it and users")
    if spec.users is None and math.isinf(spec.rate) and "arrivals" in given:
        raise _wrong("arrivals", "arrivals must come with a rate, given none, so all requests come at once")
    if spec.think > 0 and spec.users is None and spec.turns == "1":
        raise _wrong("think", "think must come with users or with turns, given neither")
    for name in ("speed", "volume"):
        if getattr(spec, name) != 1:
            raise _wrong(name, f"{name} must come with a file to replay, given none")
    if spec.context_limit is not None and spec.context_limit < spec.prefix_length + 2:
        raise _wrong(
            "context_limit", f"context_limit must hold the prefix and two tokens ({spec.prefix_length + 2}), "
            f"given {spec.context_limit}",
        )  # fmt: skip


def _wrong(name: str, message: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, message, param=name)


def zipf(count: int, exponent: float) -> NDArray[np.float64]:
    """Probabilities proportional to 1/k^exponent for k = 1..count."""
    weights = 1.0 / np.arange(1, count + 1, dtype=np.float64) ** exponent
    return np.asarray(weights / weights.sum())
