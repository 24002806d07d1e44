"""What `/metrics` shows. The names are a promise: dashboards are built on them, and a test pins them.

Each server has its own registry, so that two in one process do not add up. Counters and gauges of the engine
are read when somebody looks; only the histograms cost anything while requests run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from armillary.core.stats import SchedulerStats
from armillary.runtime.worker import WorkerStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
FINISHES = ("stop", "length", "cancelled", "error", "refused")
"""How a request can end. `refused` ones never reached the engine's queue."""


disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series beside each, that nobody reads


class ServerMetrics:
    """The numbers of one server.

    Args:
        look: the engine's state now; None while there is no engine.
        ready: whether requests are accepted now.
        stalled: seconds since the engine's last progress.
    """

    def __init__(
        self, look: Callable[[], WorkerStats | None], ready: Callable[[], bool], stalled: Callable[[], float]
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(look, ready, stalled))
        self.requests = Counter(
            "armillary_requests",
            "Generation requests answered, by endpoint and by how they ended",
            ("endpoint", "finish_reason"),
            registry=self.registry,
        )
        self.responses = Counter(
            "armillary_http_responses", "Responses of any endpoint, by status", ("status",), registry=self.registry
        )
        self.prompt_tokens = Counter(
            "armillary_prompt_tokens", "Prompt tokens of finished requests", registry=self.registry
        )
        self.completion_tokens = Counter(
            "armillary_completion_tokens", "Tokens returned to clients", registry=self.registry
        )
        self.slow_readers = Counter(
            "armillary_slow_readers", "Streams cut because their client stopped reading", registry=self.registry
        )
        self.time_to_first_token = self._seconds(
            "armillary_time_to_first_token_seconds", "From a request's arrival to its first token"
        )
        self.inter_token = self._seconds("armillary_inter_token_seconds", "Between consecutive tokens of one choice")
        self.request_time = self._seconds("armillary_request_seconds", "From a request's arrival to its last token")
        self.queue_time = self._seconds("armillary_queue_seconds", "From submission to admission by the scheduler")
        self.step_time = self._seconds("armillary_step_seconds", "Duration of an engine step")
        for endpoint in ("chat", "completions"):
            for finish in FINISHES:
                self.requests.labels(endpoint, finish)

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, buckets=SECONDS, registry=self.registry)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(
        self, look: Callable[[], WorkerStats | None], ready: Callable[[], bool], stalled: Callable[[], float]
    ) -> None:
        self._look, self._ready, self._stalled = look, ready, stalled

    def collect(self) -> Iterable[Metric]:
        state = self._look() or WorkerStats(SchedulerStats(), 0, 0, 0, 0, 0)
        counted = state.counters
        yield GaugeMetricFamily("armillary_sequences_running", "Sequences that hold KV blocks", state.running)
        yield GaugeMetricFamily("armillary_sequences_waiting", "Sequences in the queue", state.waiting)
        yield GaugeMetricFamily("armillary_kv_blocks", "KV blocks in the pool", state.kv_blocks)
        yield GaugeMetricFamily("armillary_kv_blocks_used", "KV blocks held by sequences", state.kv_blocks_used)
        yield GaugeMetricFamily("armillary_ready", "1 while new requests are accepted", float(self._ready()))
        yield GaugeMetricFamily(
            "armillary_stalled_seconds", "Seconds since the last finished step, while there is work", self._stalled()
        )
        counters = (
            ("armillary_steps", "Engine steps", counted.steps),
            ("armillary_computed_tokens", "Token positions computed, recomputation included", counted.computed_tokens),
            ("armillary_generated_tokens", "Tokens sampled", counted.generated_tokens),
            ("armillary_prefix_query_tokens", "Known tokens at admission", counted.prefix_query_tokens),
            ("armillary_prefix_hit_tokens", "Known tokens that the prefix index supplied", counted.prefix_hit_tokens),
            ("armillary_preemptions", "Sequences that had to give their blocks back", counted.preemptions),
            ("armillary_block_copies", "Blocks copied because a sibling shared them", counted.copies),
        )
        for name, what, value in counters:
            yield CounterMetricFamily(name, what, value)
        finished = CounterMetricFamily("armillary_sequences_finished", "Sequences ended", labels=("finish_reason",))
        for reason, count in counted.finished.items():
            finished.add_metric((reason.value,), count)
        yield finished
