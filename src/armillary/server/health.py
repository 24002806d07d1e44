"""`/health` for whoever restarts processes, `/ready` for whoever routes requests, `/metrics` for whoever looks on."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from armillary.errors import ArmillaryError, Code
from armillary.server.errors import error_response
from armillary.server.metrics import CONTENT_TYPE
from armillary.server.service import Phase, Service

PROBES = ["GET", "HEAD"]


def add_health(app: FastAPI, service: Service) -> None:
    """Add the three endpoints; none of them ever asks for a key."""

    @app.api_route("/health", methods=PROBES)
    async def health() -> Response:
        """200 while the engine makes progress, draining included; 503 while loading, stalled or dead."""
        return _answer(service, _ill(service))

    @app.api_route("/ready", methods=PROBES)
    async def ready() -> Response:
        """200 while new requests are accepted."""
        trouble = _ill(service)
        if trouble is None and service.phase is not Phase.READY:
            trouble = f"the server is {service.phase}"
        return _answer(service, trouble)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})


def _ill(service: Service) -> str | None:
    if service.phase in (Phase.LOADING, Phase.FAILED):
        return f"the server is {service.phase}"
    if service.served is not None and service.served.worker.failure is not None:
        return f"the engine died: {service.served.worker.failure}"
    stalled = service.stalled()
    if stalled is not None:
        return f"the engine has work and has finished no step for {stalled:.1f} seconds"
    return None


def _answer(service: Service, trouble: str | None) -> Response:
    if trouble is None:
        return Response(f'{{"status":"{service.phase}"}}', media_type="application/json")
    return error_response(ArmillaryError(Code.UNAVAILABLE, trouble), 1)
