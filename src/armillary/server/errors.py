"""How an error looks over HTTP: the one map from `Code` to a status, and OpenAI's error shape.

Deterministic failures are 4xx, or carry `x-should-retry: false`, because the `openai` client sends a 5xx
request three times in all. Passing ones carry `Retry-After`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from armillary.errors import ArmillaryError, Code


@dataclass(frozen=True, slots=True)
class Look:
    """What one code becomes: the HTTP status, OpenAI's `type`, and whether trying again can help."""

    status: int
    type: str
    retry: bool = False


LOOKS: dict[Code, Look] = {
    Code.INVALID_REQUEST: Look(400, "invalid_request_error"),
    Code.CONTEXT_LENGTH: Look(400, "invalid_request_error"),
    Code.CANNOT_FIT: Look(400, "invalid_request_error"),
    Code.TOO_LARGE: Look(413, "invalid_request_error"),
    Code.UNAUTHORIZED: Look(401, "authentication_error"),
    Code.MODEL_NOT_FOUND: Look(404, "invalid_request_error"),
    Code.NOT_FOUND: Look(404, "invalid_request_error"),
    Code.METHOD_NOT_ALLOWED: Look(405, "invalid_request_error"),
    Code.QUEUE_FULL: Look(429, "rate_limit_error", retry=True),
    Code.UNAVAILABLE: Look(503, "service_unavailable_error", retry=True),
    Code.ENGINE_FAILED: Look(500, "server_error"),
    Code.INVALID_DEPLOYMENT: Look(500, "server_error"),
    Code.INVALID_CHECKPOINT: Look(500, "server_error"),
    Code.UNSUPPORTED_MODEL: Look(500, "server_error"),
    Code.MEMORY: Look(500, "server_error"),
    Code.UNREACHABLE: Look(500, "server_error"),
}
"""Every code has a look; a test holds this table complete."""

DEFAULT_LOOK = Look(500, "server_error")


def error_body(error: ArmillaryError) -> dict[str, Any]:
    """OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""
    look = LOOKS.get(error.code, DEFAULT_LOOK)
    return {
        "error": {
            "message": _sayable(error.message),
            "type": look.type,
            "param": None if error.param is None else _sayable(error.param),
            "code": error.code.value,
        }
    }


def error_response(error: ArmillaryError, retry_after: int = 1) -> Response:
    """Render an error.

    Args:
        retry_after: whole seconds after which a refused but valid request may be tried again; sent only
            where trying again can help.
    """
    look = LOOKS.get(error.code, DEFAULT_LOOK)
    headers = {}
    if look.retry:
        headers["retry-after"] = str(max(1, retry_after))
    elif look.status >= 500:
        headers["x-should-retry"] = "false"
    if look.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(to_json(error_body(error)), look.status, headers, "application/json")


def _sayable(text: str) -> str:
    """A message quotes what the client sent, and that may hold half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
