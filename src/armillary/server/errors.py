"""How an error looks over HTTP: the one map from `Code` to a status, and the shapes of OpenAI and of Anthropic.

Deterministic failures are 4xx, or carry `x-should-retry: false`, because the `openai` client sends a 5xx
request three times in all. Passing ones carry `Retry-After`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from pydantic_core import to_json
from starlette.responses import Response
from typing_extensions import TypedDict

from armillary.errors import ArmillaryError, Code, Refused

NO_HTTP = "the request must be HTTP/1.1, given something else"


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
    Code.FORBIDDEN: Look(403, "permission_error"),
    Code.MODEL_NOT_FOUND: Look(404, "invalid_request_error"),
    Code.NOT_FOUND: Look(404, "invalid_request_error"),
    Code.METHOD_NOT_ALLOWED: Look(405, "invalid_request_error"),
    Code.QUEUE_FULL: Look(429, "rate_limit_error", retry=True),
    Code.RATE_LIMIT: Look(429, "rate_limit_error", retry=True),
    Code.DEADLINE: Look(504, "timeout_error"),
    Code.TOO_SLOW: Look(408, "timeout_error", retry=True),
    Code.UNAVAILABLE: Look(503, "service_unavailable_error", retry=True),
    Code.ENGINE_FAILED: Look(500, "server_error"),
    # Of a model that somebody asks to be loaded.
    Code.INVALID_DEPLOYMENT: Look(400, "invalid_request_error"),
    Code.INVALID_CHECKPOINT: Look(400, "invalid_request_error"),
    Code.UNSUPPORTED_MODEL: Look(400, "invalid_request_error"),
    Code.MEMORY: Look(400, "invalid_request_error"),
    Code.UNREACHABLE: Look(502, "server_error"),
}
"""Every code has a look; a test holds this table complete."""

DEFAULT_LOOK = Look(500, "server_error")

LEAST_RETRY_S, MOST_RETRY_S = 0.1, 86400.0
"""No client is sent back at once, none for longer than a day. One of OpenAI's gives up where it is over 120 s."""

ANTHROPIC = "/v1/messages"
"""Paths that begin so speak Anthropic's dialect; all others OpenAI's."""
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Status -> Anthropic's `type`; any other status is an `api_error`."""


class ErrorDetail(TypedDict):
    """What went wrong. `code` is the stable word to match on, `param` the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(TypedDict):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class AnthropicDetail(TypedDict):
    """What went wrong, by one of Anthropic's types."""

    type: str
    message: str


class AnthropicError(TypedDict):
    """An error in Anthropic's shape."""

    type: str
    error: AnthropicDetail


def speaks_anthropic(path: str) -> bool:
    """Whether a path of the API has Anthropic's dialect."""
    return path == ANTHROPIC or path.startswith(ANTHROPIC + "/")


def error_body(error: ArmillaryError) -> OpenAIError:
    """The body of an error in OpenAI's shape."""
    look = LOOKS.get(error.code, DEFAULT_LOOK)
    return {
        "error": {
            "message": sayable(error.message),
            "type": look.type,
            "param": None if error.param is None else sayable(error.param),
            "code": error.code.value,
        }
    }


def anthropic_error_body(error: ArmillaryError) -> AnthropicError:
    """The body of an error in Anthropic's shape."""
    look = LOOKS.get(error.code, DEFAULT_LOOK)
    kind = ANTHROPIC_TYPES.get(look.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": sayable(error.message)}}


def error_response(error: ArmillaryError, retry_after: float = 1.0, path: str = "") -> Response:
    """Render an error.

    Args:
        retry_after: seconds after which a refused but valid request may be tried again, unless the refusal
            says so itself; sent only where trying again can help.
        path: what was asked, which says in what shape the client reads errors.
    """
    look = LOOKS.get(error.code, DEFAULT_LOOK)
    headers = {}
    if look.retry:
        own = error.retry_s if isinstance(error, Refused) else None
        least = LEAST_RETRY_S if look.status == 429 else 1.0
        seconds = min(MOST_RETRY_S, max(least, retry_after if own is None else own))
        headers["retry-after"] = str(ceil(seconds))
        headers["retry-after-ms"] = str(ceil(seconds * 1000))
    elif look.status >= 500:
        headers["x-should-retry"] = "false"
    if look.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = anthropic_error_body(error) if speaks_anthropic(path) else error_body(error)
    return Response(to_json(body), look.status, headers, "application/json")


def sayable(text: str) -> str:
    """A message quotes what the client sent, and that may hold half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
