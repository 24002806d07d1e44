"""How a server listens, whom it lets in, and how much of it each may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from armillary.deployment.group import Settings
from armillary.deployment.size import Size


class ServerSettings(Settings):
    """How the server meets its clients."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description=(
            "Address to listen on. 127.0.0.1 serves this machine only; 0.0.0.0 serves whoever can reach it, so set "
            "`api_keys` with it."
        ),
    )
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        description="Port to listen on. 0 takes a free one and prints it.",
    )
    api_keys: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        repr=False,
        description=(
            "Keys of which a request must carry one, as `Authorization: Bearer KEY` or `x-api-key: KEY`. None: nobody "
            "is asked. /health, /ready and /metrics never ask. The variable ARMILLARY_API_KEYS keeps keys out of "
            "files and process lists."
        ),
    )
    api_key_file: Path | None = Field(
        default=None,
        description=(
            "File with further keys: one a line, or YAML with a name, limits and a priority for each. Readable by "
            "its owner only, or the log says so. SIGHUP reads it anew, which adds and removes keys without a restart."
        ),
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Requests that one key may send in a minute, at once or spread out; more are refused with the time to "
            "wait. Keys of the file may have their own. Unset: no limit. Without keys, all clients share one."
        ),
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Tokens, of prompts and of answers, that one key may use in a minute. Prompts are charged when they "
            "arrive and answers when they end, so a long answer makes its key wait afterwards. Unset: no limit."
        ),
    )
    max_waiting_per_key: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Most requests of one key that may wait for admission by one model, counted as `max_waiting` counts "
            "them, so that one client cannot fill the queue for all. Unset: only the engine's `max_waiting` bounds it."
        ),
    )
    max_waiting_tokens_per_key: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Most tokens of one key that may wait for admission by one model. Unset: only the engine's "
            "`max_waiting_tokens` bounds it."
        ),
    )
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = Field(
        default=(),
        description=(
            "Origins, such as https://app.example, whose pages may call this server from a browser; `*` for any, "
            "which is safe only where every request needs a key. Unset: none but the server's own page."
        ),
    )
    max_body: Size = Field(
        default=32 * 1024**2,
        description="Largest request body. Larger ones are refused before they are read, which protects memory.",
    )
    header_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description=(
            "Seconds within which the head of a request must be complete, counted from its first byte or from the "
            "opening of the connection. It frees connections of clients that send a byte now and then, or nothing."
        ),
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Most connections at once; one more gets 503, probes excepted. Unset: what the process may have open "
            "(`ulimit -n`), less 64 for everything else."
        ),
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        description=(
            "Seconds that running requests get to finish after SIGTERM; new ones are refused meanwhile. 0 ends them at "
            "once. Keep it below the patience of whatever stops the process."
        ),
    )
    stall_s: float = Field(
        default=60.0,
        gt=0,
        description=(
            "Seconds without a finished step, while there is work, after which /health answers 503. Must exceed the "
            "slowest honest step of the model on this machine."
        ),
    )
    page: bool = Field(
        default=True,
        description=(
            "Serve a page at `/`: a playground and a live view of the engine, from files in the package. It needs a "
            "key where keys are set. Off leaves `/` unanswered, for servers that only programs should talk to."
        ),
    )
    response_store: Size = Field(
        default=64 * 1024**2,
        description=(
            "Memory for answers of `/v1/responses` that later requests may go on from. What was not used for longest "
            "goes first, and all of it with the process; an answer larger than this is not kept, and says so."
        ),
    )
    manage_models: Literal["off", "listed", "any"] = Field(
        default="listed",
        description=(
            "What a client may load, unload, put to sleep and wake while the server runs: nothing; the models of this "
            "file; or any folder and hub id too, which lets whoever may ask fill memory and disk."
        ),
    )
    watch: Literal["own", "all"] = Field(
        default="own",
        description=(
            "Whose requests a key sees in the live view and may ask timelines of: those made with it, or everybody's. "
            "Either way it sees how many there are and what the engine does. Without keys, everybody sees everything."
        ),
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+(/\S*)?$",
        description=(
            "OpenTelemetry collector that gets a span for each request, over OTLP and HTTP, such as "
            "http://localhost:4318. Needs `pip install 'armillary[otel]'`. Unset: no spans, and nothing is loaded for "
            "them."
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="How much is logged. info has one line per request; debug has what each one asked for.",
    )
    log_format: Literal["human", "json"] = Field(
        default="human",
        description=(
            "How it is logged: lines for people, or one JSON object a line for programs. Either way a request's one "
            "line has its id, its model, how it ended and its timings, and never its prompt or its answer."
        ),
    )
