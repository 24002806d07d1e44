"""From bytes on the wire to a checked body, or an `ArmillaryError` that names the field at fault.

The size is limited while reading, not after it. Parsing refuses NaN, infinities, lone surrogates, deep
nesting and numbers of thousands of digits, so that nothing behind this file has to.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.types import Receive

from armillary.errors import ArmillaryError, Code

Body = TypeVar("Body", bound=BaseModel)

MAX_DEPTH = 200
"""Levels at which the parser stops, as soon as it meets one more. A test holds this to be what it does."""
QUOTED = 80
"""Characters of a client's value that an error message repeats."""

_FORMS = frozenset(("str", "constrained-str", "int", "constrained-int", "float", "bool", "none"))
_BOUNDS = frozenset(("string_too_short", "string_too_long", "greater_than_equal", "less_than_equal"))


class Disconnected(Exception):
    """The client went away before its request was complete."""


class BodyBudget:
    """Bytes of all bodies that are being read or parsed, so that many large ones together cannot take the memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[Callable[[int], None]]:
        """Yields what takes more bytes for one body; they are given back at the end.

        The function raises `ArmillaryError` QUEUE_FULL where the budget is spent.
        """
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self.held + count > self.limit:
                message = f"request bodies in work must be at most {self.limit} bytes together, given {self.held}"
                raise ArmillaryError(Code.QUEUE_FULL, f"{message} and {count} more; try again later")
            mine += count
            self.held += count

        try:
            yield take
        finally:
            self.held -= mine


async def read_body(
    receive: Receive, headers: Mapping[str, str], limit: int, timeout_s: float, take: Callable[[int], None]
) -> bytes:
    """Read a request's body of at most `limit` bytes within `timeout_s` seconds.

    Args:
        take: told of every byte before it is kept; may refuse.

    Raises:
        ArmillaryError: TOO_LARGE as soon as the declared or the received size passes the limit;
            INVALID_REQUEST when the body does not arrive in time; whatever `take` raises.
        Disconnected: the client went away.
    """
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit, f"{declared[:20]} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part = message.get("body", b"")
                if len(body) + len(part) > limit:
                    raise _too_large(limit, "more")
                take(len(part))
                body += part
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"the body must arrive within {timeout_s:g} seconds, given {len(body)} bytes by then"
        ) from None


async def discard_body(receive: Receive, limit: int, timeout_s: float) -> None:
    """Swallow the rest of a refused body, up to a bound, so that the client gets to read the answer.

    Closing a socket with unread data resets the connection, and the reset overtakes the answer.
    """
    seen = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while seen <= limit:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


def parse_body(model: type[Body], raw: bytes) -> Body:
    """Parse and check one JSON body.

    Raises:
        ArmillaryError: INVALID_REQUEST, with `param` naming the field.
    """
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        if "recursion limit" in str(error):
            raise ArmillaryError(
                Code.INVALID_REQUEST, f"the body must be nested at most {MAX_DEPTH} levels deep, given more"
            ) from None
        raise ArmillaryError(Code.INVALID_REQUEST, f"the body must be valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArmillaryError(Code.INVALID_REQUEST, f"the body must be a JSON object, given {type(value).__name__}")
    return check_body(model, value)


def check_body(model: type[Body], value: Mapping[str, Any]) -> Body:
    """Check a body that is parsed already.

    Raises:
        ArmillaryError: INVALID_REQUEST, with `param` naming the field.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(model, error.errors(include_url=False, include_context=True)) from None


def invalid_query(errors: Iterable[Any]) -> ArmillaryError:
    """What to answer where the framework finds a query wrong: the same words as for a body, and nothing of the code."""
    within: list[Any] = [{**error, "loc": error["loc"][1:]} for error in errors]
    return _invalid(BaseModel, within)


def _too_large(limit: int, given: str) -> ArmillaryError:
    return ArmillaryError(Code.TOO_LARGE, f"the body must be at most {limit} bytes, given {given}")


def _invalid(model: type[BaseModel], errors: list[ErrorDetails]) -> ArmillaryError:
    """The first problem in OpenAI's words: which field, what was given, what would work."""
    first, where = _clearest(errors)
    path = [part for part in where if not _is_form(part)]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    forms = dict.fromkeys(
        str(part) for error in errors for part in error["loc"] if _is_form(part) and not _is_tag(part)
    )
    kind = first["type"]
    if kind == "extra_forbidden":
        known = f"; it knows {', '.join(sorted(model.model_fields))}" if len(path) == 1 else ""
        message = f"{param} is not an option of this endpoint{known}"
    elif kind == "missing":
        message = f"{param} is required"
    elif kind == "value_error":
        message = str(first["ctx"]["error"])
        if path:
            message = f"{param} {message}"
        elif message.split()[0] in model.model_fields:  # a rule over several fields names the one at fault first
            param = message.split()[0]
    elif kind in ("too_short", "too_long"):
        message = f"{param} {_count(first)}"
    elif forms and _is_form(where[-1]):
        tried = " or ".join(_form(form) for form in forms)
        beside = [error["loc"][len(where) - 1] for error in errors if len(error["loc"]) >= len(where)]
        if not all(_is_form(part) for part in beside):  # the name of a model
            tried += " or an object"
        message = f"{param} must be {tried}, given {_quote(first['input'])}"
    else:
        says = re.sub(r"^\w+ should ", "must ", first["msg"])
        says = re.sub(r"a valid (string|list|number|boolean|integer)\b", r"a \1", says).replace(
            "a integer", "an integer"
        )
        says = re.sub(r", unable to parse .*", "", says)
        says = re.sub(r"a valid dictionary( or instance of \w+)?", "an object", says)
        message = f"{param} {says}, given {_quote(first['input'])}"
    return ArmillaryError(Code.INVALID_REQUEST, message, param or None)


def _clearest(errors: list[ErrorDetails]) -> tuple[ErrorDetails, tuple[int | str, ...]]:
    """The problem to tell of, and its path. An object that may also be a word is judged as an object.

    Where a value has the right form and breaks a bound of it (an empty text), that is the problem, not the other forms.
    """
    first = errors[0]
    place = first["loc"][:-1]
    if first["loc"] and _is_form(first["loc"][-1]) and isinstance(first["input"], dict):
        within = [
            error for error in errors if error["loc"][: len(place)] == place and len(error["loc"]) > len(place) + 1
        ]
        # Members of the union whose own `type` is not the one that was given are not meant, if any other is.
        unmeant = {error["loc"][len(place)] for error in within if error["loc"][len(place) + 1 :] == ("type",)}
        for error in sorted(within, key=lambda error: error["loc"][len(place)] in unmeant):
            return error, (*place, *error["loc"][len(place) + 1 :])
    if first["loc"] and _is_form(first["loc"][-1]):
        for error in errors:
            loc = error["loc"]
            if error["type"] in _BOUNDS and loc[: len(place)] == place:
                return error, loc[:-1] if _is_form(loc[-1]) else loc
    return first, first["loc"]


def _count(error: ErrorDetails) -> str:
    """How many items a list must have, and how many it has."""
    least = error["type"] == "too_short"
    limit, given = error["ctx"]["min_length" if least else "max_length"], len(error["input"])
    items = "item" if limit == 1 else "items"
    return f"must have at {'least' if least else 'most'} {limit} {items}, given {given or 'none'}"


def _form(form: str) -> str:
    """A member of a union in words."""
    words = form.removeprefix("literal[").removesuffix("]").replace("','", "', '")
    return words if form.startswith("literal[") else form.replace("constrained-", "")


def _is_form(part: int | str) -> bool:
    """Whether pydantic means a member of a union by this part of a path, not a field."""
    return isinstance(part, str) and (part in _FORMS or "[" in part)


def _is_tag(part: int | str) -> bool:
    """Whether this part of a path names the member of a union that was chosen by its tag."""
    return isinstance(part, str) and part.startswith("[")


def _quote(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of hundreds of digits"
    text = repr(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of {len(value)}"
    return text if len(text) <= QUOTED else text[:QUOTED] + "…"
