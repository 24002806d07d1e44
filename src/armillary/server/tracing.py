"""OpenTelemetry spans, one per request with its phases below it, by the semantic conventions for generative AI.

A span is made when its request is over, from the times that were taken anyhow, so that tracing costs a request
nothing while it runs; a thread of the SDK sends them. The caller's `traceparent` is continued. The packages are an
extra of this one, and are loaded only where an endpoint is configured. Spans hold neither prompts nor answers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from armillary.core.timeline import TimePhase
from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code
from armillary.runtime.sampling import SamplingParams
from armillary.server.requests import RequestLog
from armillary.server.tally import Tally
from armillary.server.timeline import timeline_of
from armillary.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AttributeValue

log = logging.getLogger("armillary.server")

PROVIDER = "armillary"
OPERATIONS = {"completions": "text_completion", "responses": "chat", "messages": "chat"}
"""What an endpoint's operation is called where it is not called like the endpoint."""
SAMPLING = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed")
"""Fields of `SamplingParams` that have an attribute of the same name."""
CLOSE_MS = 3000
"""Most time that the end of a server may wait for a collector that does not answer."""


@contextmanager
def traced(settings: ServerSettings, requests: RequestLog) -> Iterator[None]:
    """Trace requests while inside, where the settings have an endpoint.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT where the packages are missing.
    """
    if settings.otlp_endpoint is None:
        yield
        return
    tracing = Tracing.to(settings.otlp_endpoint, settings.host, settings.port)
    requests.on_end.append(tracing.over)
    try:
        yield
    finally:
        tracing.close()


class Tracing:
    """Makes spans of requests that are over.

    Args:
        processor: takes them.
        address, port: where this server is reached.
    """

    def __init__(self, processor: SpanProcessor, address: str, port: int) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = {"service.version": __version__}
        if "OTEL_SERVICE_NAME" not in os.environ:
            resource["service.name"] = "armillary"
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer: Tracer = self._provider.get_tracer("armillary", __version__)
        self._server: dict[str, AttributeValue] = {"server.address": address, "server.port": port}

    @classmethod
    def to(cls, endpoint: str, address: str, port: int) -> Tracing:
        """Send spans to a collector over OTLP and HTTP; the SDK's own variables (`OTEL_…`) apply besides.

        Args:
            endpoint: URL of the collector; `/v1/traces` is added where it has no path.

        Raises:
            ArmillaryError: INVALID_DEPLOYMENT where the packages are missing.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"server.otlp_endpoint must be unset unless OpenTelemetry is installed, given {endpoint}, so install "
                f"it (pip install 'armillary[otel]') or leave the endpoint out; what is missing: {error.name}",
                "otlp_endpoint",
            ) from None
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + "/v1/traces"
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), address, port)

    def over(self, tally: Tally) -> None:
        """Make the spans of a request that is over."""
        try:
            self._trace(tally)
        except Exception:
            log.exception("no span could be made of request %s", tally.request_id)

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        self._provider.force_flush(CLOSE_MS)
        self._provider.shutdown()

    def _trace(self, tally: Tally) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        operation = OPERATIONS.get(tally.endpoint, tally.endpoint)
        parent = TraceContextTextMapPropagator().extract(tally.trace)
        span = self._tracer.start_span(
            f"{operation} {tally.model}" if tally.model else operation,
            parent,
            SpanKind.SERVER,
            {"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDER, **self._server},
            start_time=_unix_ns(tally, tally.arrived),
        )
        if span.is_recording():
            span.set_attributes(_attributes(tally))
            if tally.ended == "error":
                span.set_status(Status(StatusCode.ERROR, tally.error))
            if tally.first_at is not None:
                span.add_event("first_token", timestamp=_unix_ns(tally, tally.first_at))
            self._phases(tally, set_span_in_context(span, parent))
        end = tally.arrived + tally.wall_s
        span.end(_unix_ns(tally, end))

    def _phases(self, tally: Tally, context: Context) -> None:
        """Child spans: in the queue, until the first token, until the last."""
        admitted = None if tally.queued_s is None or tally.submitted_at is None else tally.submitted_at + tally.queued_s
        end = tally.arrived + tally.wall_s
        for name, start, stop in (
            ("queued", tally.submitted_at, admitted or end),
            ("prefill", admitted, tally.first_at or end),
            ("decode", tally.first_at, end),
        ):
            if start is not None:
                child = self._tracer.start_span(name, context, start_time=_unix_ns(tally, start))
                child.end(_unix_ns(tally, max(start, stop)))


def _attributes(tally: Tally) -> dict[str, AttributeValue]:
    """What the conventions have names for, and the phases of the timeline under ours; without what is unknown."""
    known: dict[str, AttributeValue | None] = {
        "armillary.request.id": tally.request_id,
        "armillary.finish_reason": tally.ended,
        "error.type": tally.error,
        "gen_ai.request.model": tally.model or None,
        "gen_ai.response.model": tally.model or None,
        "gen_ai.response.id": tally.id,
        "gen_ai.request.stream": tally.stream,
    }
    if tally.asks:
        known |= {
            "gen_ai.request.max_tokens": tally.asks[0].max_tokens,
            "gen_ai.request.choice.count": len(tally.tokens) if len(tally.tokens) != 1 else None,
            "gen_ai.usage.input_tokens": tally.prompt_tokens,
            "gen_ai.usage.output_tokens": sum(tally.tokens),
            "gen_ai.usage.cache_read.input_tokens": tally.cached_tokens,
        }
        timeline = timeline_of(tally)
        finishes = [choice["finish_reason"] for choice in timeline["choices"]]
        known["gen_ai.response.finish_reasons"] = [finish for finish in finishes if finish is not None] or None
        for phase in TimePhase:
            known[f"armillary.phase.{phase}_s"] = timeline["phases_ns"][phase] / 1e9 or None
    if tally.stream:
        known["gen_ai.response.time_to_first_chunk"] = tally.ttft_s
    if isinstance(tally.sampling, SamplingParams):
        for name in SAMPLING:
            known[f"gen_ai.request.{name}"] = getattr(tally.sampling, name)
    return {key: value for key, value in known.items() if value is not None}


def _unix_ns(tally: Tally, at: float) -> int:
    """Nanoseconds of Unix time at a monotonic moment."""
    return round((tally.created + at - tally.arrived) * 1e9)
