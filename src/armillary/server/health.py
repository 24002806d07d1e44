"""`/health` for whoever restarts processes, `/ready` for whoever routes requests, `/metrics` for whoever looks on."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic_core import to_json
from starlette.responses import Response

from armillary.errors import ArmillaryError, Code
from armillary.server.answers import Health
from armillary.server.errors import error_response
from armillary.server.metrics import CONTENT_TYPE
from armillary.server.openapi import OPEN, described
from armillary.server.service import Phase, Service

PROBES = ["GET", "HEAD"]


def add_health(app: FastAPI, service: Service) -> None:
    """Add the three endpoints; none of them ever asks for a key."""

    @app.api_route("/health", methods=PROBES)
    @described(answer=Health, errors=OPEN)
    async def health() -> Response:
        """200 while the process lives and its engines make progress, loading and draining included; 503 if not."""
        return _answer(service, _ill(service))

    @app.api_route("/ready", methods=PROBES)
    @described(answer=Health, errors=OPEN)
    async def ready() -> Response:
        """200 while new requests are accepted: not during load and drain, and not while no model is awake."""
        return _answer(service, _ill(service) or service.trouble)

    @app.get("/metrics")
    @described(media="text/plain", errors=())
    async def metrics() -> Response:
        """All metrics, in Prometheus' text format."""
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})


def _ill(service: Service) -> str | None:
    """Why this process should be replaced by a new one; None where it should not."""
    failure = service.shelf.failure
    if failure is not None:
        return f"the engine died: {failure}"
    if service.phase is Phase.FAILED:
        return f"the server is {service.phase}"
    return service.stalled()


def _answer(service: Service, trouble: str | None) -> Response:
    if trouble is None:
        models = {place.name: place.state for place in service.shelf}
        return Response(to_json({"status": service.phase, "models": models}), media_type="application/json")
    return error_response(ArmillaryError(Code.UNAVAILABLE, trouble), 1)
