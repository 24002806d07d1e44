"""What `/metrics` shows. The names are a promise: dashboards are built on them, and a test pins them.

Each server has its own registry, so that two in one process do not add up. Counters and gauges of the engines
are read when somebody looks; only the histograms cost anything while requests run. Everything about a model has
the label `model`; it is empty for requests that ended before anybody knew which one they wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from armillary.runtime.worker import WorkerStats
from armillary.version import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
TOKENS = tuple(2.0**power for power in range(18))
FINISHES = ("stop", "length", "cancelled", "error", "refused", "deadline")
"""How a request can end. `refused` ones never reached the engine's queue; `deadline` ones had no more time."""
LEAVINGS = ("received", "queued", "prefill", "decode")
"""Where a request can be when its client leaves it: being read, in the queue, in its prompt, in its answer."""
STEP_KINDS = ("prefill", "decode", "mixed")
"""Whether a step computes prompts, newest tokens, or both."""
GRAMMAR_PARTS = ("mask", "wait", "follow")
"""Computing masks while the model computes, waiting for them, and looking for forced tokens. The last two lengthen a
step."""


disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series beside each, that nobody reads


@dataclass(frozen=True, slots=True)
class EngineState:
    """What is read of one engine when somebody looks.

    Attributes:
        kept: blocks that nobody holds and whose prefix can be found again.
        progress_s: seconds since the engine's last progress, while it has work.
    """

    stats: WorkerStats
    kept: int = 0
    progress_s: float = 0.0


class ServerMetrics:
    """The numbers of one server.

    Args:
        look: the engines' states now, by model.
        ready: whether requests are accepted now.
        in_flight: generation requests that are not over.
    """

    def __init__(
        self,
        look: Callable[[], dict[str, EngineState]],
        ready: Callable[[], bool],
        in_flight: Callable[[], int] = lambda: 0,
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_ServerCollector(look, ready, in_flight))
        self.requests = self._counter(
            "armillary_requests",
            "Generation requests that ended, by endpoint and by how",
            ("model", "endpoint", "finish_reason"),
        )
        self.rejected = self._counter(
            "armillary_rejected", "Requests refused, by the limit that did or else by code", ("model", "reason")
        )
        self.errors = self._counter(
            "armillary_errors", "Generation requests that failed through no fault of theirs, by code", ("model", "code")
        )
        self.cancellations = self._counter(
            "armillary_cancellations",
            "Generation requests left by their clients, by where they were (received, queued, prefill, decode)",
            ("model", "state"),
        )
        self.responses = self._counter("armillary_http_responses", "Responses of any endpoint, by status", ("status",))
        self.prompt_tokens = self._counter("armillary_prompt_tokens", "Prompt tokens of answered requests", ("model",))
        self.completion_tokens = self._counter("armillary_completion_tokens", "Tokens returned to clients", ("model",))
        self.slow_readers = Counter(
            "armillary_slow_readers", "Streams cut because their client stopped reading", registry=self.registry
        )
        self.time_to_first_token = self._seconds(
            "armillary_time_to_first_token_seconds", "From a request's arrival to its first token"
        )
        self.inter_token = self._seconds("armillary_inter_token_seconds", "Between consecutive tokens of one choice")
        self.request_time = self._seconds("armillary_request_seconds", "From a request's arrival to its last token")
        self.queue_time = self._seconds("armillary_queue_seconds", "From submission to admission by the scheduler")
        self.step_time = self._seconds("armillary_step_seconds", "Duration of an engine step", ("model", "kind"))
        self.step_tokens = self._tokens("armillary_step_tokens", "Tokens computed in one step", ("model", "kind"))
        self.grammar_time = self._seconds(
            "armillary_grammar_seconds",
            "What grammars cost one step: mask (beside the model), wait and follow (on top of it)",
            ("model", "part"),
        )
        self.prompt_length = self._tokens("armillary_request_prompt_tokens", "Prompt tokens of an answered request")
        self.completion_length = self._tokens(
            "armillary_request_completion_tokens", "Tokens returned to one request, all its choices"
        )

    def _counter(self, name: str, what: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def _seconds(self, name: str, what: str, labels: tuple[str, ...] = ("model",)) -> Histogram:
        return Histogram(name, what, labels, buckets=SECONDS, registry=self.registry)

    def _tokens(self, name: str, what: str, labels: tuple[str, ...] = ("model",)) -> Histogram:
        return Histogram(name, what, labels, buckets=TOKENS, registry=self.registry)

    def expect(self, model: str) -> None:
        """Show zeros for a model from its loading on: a rate over a series that has just appeared is no rate."""
        for endpoint in ("chat", "completions"):
            for finish in FINISHES:
                self.requests.labels(model, endpoint, finish)
        for leaving in LEAVINGS:
            self.cancellations.labels(model, leaving)
        for kind in STEP_KINDS:
            self.step_time.labels(model, kind)
            self.step_tokens.labels(model, kind)
        for part in GRAMMAR_PARTS:
            self.grammar_time.labels(model, part)
        for histogram in (
            self.time_to_first_token, self.inter_token, self.request_time, self.queue_time, self.prompt_length,
            self.completion_length,
        ):  # fmt: skip
            histogram.labels(model)
        self.prompt_tokens.labels(model)
        self.completion_tokens.labels(model)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


GAUGES: tuple[tuple[str, str, Callable[[EngineState], float]], ...] = (
    ("armillary_sequences_running", "Sequences that hold KV blocks", lambda s: s.stats.running),
    ("armillary_sequences_waiting", "Sequences in the queue", lambda s: s.stats.waiting),
    ("armillary_kv_blocks", "KV blocks in the pool", lambda s: s.stats.kv_blocks),
    ("armillary_kv_blocks_used", "KV blocks held by sequences", lambda s: s.stats.kv_blocks_used),
    ("armillary_kv_blocks_cached", "KV blocks that nobody holds and whose prefix can be found again", lambda s: s.kept),
    (
        "armillary_kv_blocks_free",
        "KV blocks with nothing worth keeping",
        lambda s: s.stats.kv_blocks - s.stats.kv_blocks_used - s.kept,
    ),
    (
        "armillary_stalled_seconds",
        "Seconds since the last finished step, while there is work",
        lambda s: s.progress_s,
    ),
)
COUNTERS: tuple[tuple[str, str, Callable[[EngineState], float]], ...] = (
    ("armillary_steps", "Engine steps", lambda s: s.stats.counters.steps),
    (
        "armillary_computed_tokens",
        "Token positions computed, recomputation included",
        lambda s: s.stats.counters.computed_tokens,
    ),
    ("armillary_generated_tokens", "Tokens sampled", lambda s: s.stats.counters.generated_tokens),
    ("armillary_prefix_query_tokens", "Known tokens at admission", lambda s: s.stats.counters.prefix_query_tokens),
    (
        "armillary_prefix_hit_tokens",
        "Known tokens that the prefix index supplied",
        lambda s: s.stats.counters.prefix_hit_tokens,
    ),
    ("armillary_evictions", "Blocks whose prefix was given up for another use", lambda s: s.stats.counters.evictions),
    ("armillary_preemptions", "Sequences that had to give their blocks back", lambda s: s.stats.counters.preemptions),
    ("armillary_block_copies", "Blocks copied because a sibling shared them", lambda s: s.stats.counters.copies),
    (
        "armillary_forced_tokens",
        "Tokens that needed no step, because a grammar allowed no other",
        lambda s: s.stats.counters.forced_tokens,
    ),
)


class _ServerCollector(Collector):
    """Reads the engines when somebody looks."""

    def __init__(
        self, look: Callable[[], dict[str, EngineState]], ready: Callable[[], bool], in_flight: Callable[[], int]
    ) -> None:
        self._look, self._ready, self._in_flight = look, ready, in_flight

    def collect(self) -> Iterable[Metric]:
        states = self._look()
        yield GaugeMetricFamily("armillary_ready", "1 while new requests are accepted", float(self._ready()))
        yield GaugeMetricFamily(
            "armillary_requests_in_flight", "Generation requests that are not over", self._in_flight()
        )
        build = GaugeMetricFamily("armillary_build_info", "1; the version is in the label", labels=("version",))
        build.add_metric((__version__,), 1)
        yield build
        for name, what, read in GAUGES:
            gauge = GaugeMetricFamily(name, what, labels=("model",))
            for model, state in states.items():
                gauge.add_metric((model,), read(state))
            yield gauge
        for name, what, read in COUNTERS:
            counter = CounterMetricFamily(name, what, labels=("model",))
            for model, state in states.items():
                counter.add_metric((model,), read(state))
            yield counter
        finished = CounterMetricFamily(
            "armillary_sequences_finished", "Sequences ended", labels=("model", "finish_reason")
        )
        for model, state in states.items():
            for reason, count in state.stats.counters.finished.items():
                finished.add_metric((model, reason.value), count)
        yield finished
