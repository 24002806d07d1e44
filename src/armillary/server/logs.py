"""What the log says and how: a line for people, or one JSON object a line for programs.

Every line that is written on behalf of a request carries its id. Each request has one line of its own, when it is
over: what was asked of which model, how it ended, and how long the parts of it took. Neither prompts nor generated
text are ever logged.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any, Literal

from armillary.server.exchange import Exchange, current

LogFormat = Literal["human", "json"]
FIELDS = "fields"
"""Attribute of a log record that holds what its line says beside the message."""


def set_up(form: LogFormat, level: str) -> None:
    """Log to stderr, unless the program around has its own way of logging already."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else HumanLines())
    handler.addFilter(name_request)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
    logging.getLogger("armillary").setLevel(level.upper())


def name_request(record: logging.LogRecord) -> bool:
    """Note on whose behalf a line is written; a filter that lets everything pass."""
    exchange = current.get()
    fields = getattr(record, FIELDS, None) or {}
    if exchange is not None and exchange.request_id:
        fields = {"request_id": exchange.request_id, **fields}
    setattr(record, FIELDS, fields)
    return True


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, then what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class HumanLines(logging.Formatter):
    """Time, level, request, message, then `key=value` for what else is known."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, FIELDS, {}))
        request_id = fields.pop("request_id", None)
        shown = "".join(f" {key}={value}" for key, value in fields.items() if key not in ("method", "path", "status"))
        named = f"{request_id} " if request_id and request_id not in record.message else ""
        return f"{record.asctime} {record.levelname} {named}{record.message}{shown}"


def log_end(log: logging.Logger, level: int, exchange: Exchange, method: str, path: str, status: int) -> None:
    """Write the line of a request that is over."""
    if not log.isEnabledFor(level):
        return
    fields = {"request_id": exchange.request_id, "method": method, "path": path[:200], "status": status}
    fields |= _account(exchange)
    log.log(level, "%s %r %d", method, path[:200], status, extra={FIELDS: fields})


def _account(exchange: Exchange) -> dict[str, Any]:
    """What is known of a request at its end; what is not known is left out."""
    tally = exchange.tally
    known: dict[str, Any] = {"duration_ms": _ms(time.monotonic() - exchange.arrived)}
    if exchange.caller is not None and exchange.caller.name:
        known["caller"] = exchange.caller.name
    if tally is None:
        return known
    known |= {
        "response_id": tally.id,
        "endpoint": tally.endpoint,
        "model": tally.model or None,
        "stream": tally.stream,
        "finish_reason": tally.ended,
        "error": tally.error,
        "prompt_tokens": tally.prompt_tokens,
        "cached_tokens": tally.cached_tokens if tally.asks else None,
        "completion_tokens": sum(tally.tokens) if tally.asks else None,
        "queued_ms": _ms(tally.queued_s),
        "ttft_ms": _ms(tally.ttft_s),
        "itl_ms": _ms(tally.itl_s),
    }
    return {key: value for key, value in known.items() if value is not None}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
