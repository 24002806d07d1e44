"""The one enumeration of errors, free of any transport.

Every failure that a user can see carries a `Code`. HTTP dialects map the code to a status and a body,
the command line maps it to an exit code; nothing else decides how an error looks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """What went wrong, as a stable word that clients may match on."""

    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH = "context_length_exceeded"
    CANNOT_FIT = "cannot_fit"
    TOO_LARGE = "request_too_large"
    UNAUTHORIZED = "invalid_api_key"
    FORBIDDEN = "forbidden"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    QUEUE_FULL = "queue_full"
    RATE_LIMIT = "rate_limit_exceeded"
    DEADLINE = "deadline_exceeded"
    TOO_SLOW = "request_timeout"
    UNAVAILABLE = "unavailable"
    ENGINE_FAILED = "engine_failed"
    INVALID_DEPLOYMENT = "invalid_deployment"
    INVALID_CHECKPOINT = "invalid_checkpoint"
    UNSUPPORTED_MODEL = "unsupported_model"
    MEMORY = "memory_plan_impossible"
    UNREACHABLE = "unreachable"


class ArmillaryError(Exception):
    """A failure with a stable code.

    Args:
        code: what went wrong.
        message: what was wrong, the value given, and what would work.
        param: the request field or configuration key at fault, where there is one.
    """

    def __init__(self, code: Code, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are made anew of what `Exception` was given, which is the message alone.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class Refused(ArmillaryError):
    """A valid request that is one too many now, and may pass later.

    Args:
        reason: which limit, as a word that metrics count by.
        retry_s: seconds after which that limit lets the request pass; None where it depends on the queue.
    """

    def __init__(
        self, code: Code, reason: str, message: str, param: str | None = None, retry_s: float | None = None
    ) -> None:
        super().__init__(code, message, param)
        self.reason = reason
        self.retry_s = retry_s


def reason_of(error: ArmillaryError) -> str:
    """The word that metrics count a refusal by: its limit, where it is for one, or else its code."""
    return error.reason if isinstance(error, Refused) else error.code.value
