"""Every setting there is, with what it trades. Flags, documentation and error messages are made from here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from armillary.core.order import ORDERS
from armillary.deployment.size import Size

BUNDLED = "isles"
"""The name of the model that is part of the package."""


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class EngineSettings(Settings):
    """How the engine spends memory and time. Unset values are chosen from the model and the machine, and the
    memory plan prints each choice with its reason."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description=(
            "Number format of weights and KV cache. float32 is exact and the slowest and largest; bfloat16 halves "
            "both and is fast where the CPU multiplies it natively; float16 has more digits and less range. auto "
            "takes what is fastest on this machine without making a small model worse."
        ),
    )
    block_size: int = Field(
        default=16,
        ge=1,
        le=1024,
        description=(
            "Token positions in one KV block. Smaller wastes less memory at the end of each sequence and shares "
            "prefixes more finely; larger means less bookkeeping per step."
        ),
    )
    kv_blocks: int | None = Field(
        default=None,
        ge=1,
        description=(
            "KV blocks in the pool, exactly. Unset: as many as the memory allows and `max_running` sequences of "
            "`max_context` tokens can use. Excludes `kv_memory`."
        ),
    )
    kv_memory: Size | None = Field(
        default=None,
        description=(
            "Memory for the KV pool, such as 2GiB. More holds more sequences and keeps prefixes longer; it comes "
            "out of what the rest of the machine has. Excludes `kv_blocks`."
        ),
    )
    max_context: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Longest prompt plus generation of one sequence, in tokens. Unset: what the model was made for, or less "
            "where the KV pool could not hold one such sequence. A longer request is refused on arrival."
        ),
    )
    max_step_tokens: int = Field(
        default=512,
        ge=1,
        description=(
            "Token budget of one step, over all sequences. Larger steps finish prompts sooner and make every running "
            "stream wait longer for its next token; smaller ones bound that wait."
        ),
    )
    max_chunk_tokens: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Most tokens that one sequence computes in one step, so that one long prompt cannot take the whole budget. "
            "Unset: only `max_step_tokens` bounds it."
        ),
    )
    max_running: int = Field(
        default=64,
        ge=1,
        description=(
            "Most sequences in one step. More raises total throughput until memory bandwidth is used up, and slows "
            "each stream; fewer keeps streams fast and lets others wait."
        ),
    )
    max_waiting: int = Field(
        default=1024,
        ge=1,
        description=(
            "Most sequences that may wait for admission. Beyond it requests are refused at once with a time to retry "
            "after, which is kinder than a long silence."
        ),
    )
    order: str = Field(
        default="fcfs",
        description=(
            "Who goes first: `fcfs` by arrival; `priority` by the request's priority, then arrival; `deadline` by the "
            "earliest deadline that can still be met, the others after them."
        ),
    )
    starvation_s: float = Field(
        default=30.0,
        gt=0,
        description=(
            "Seconds after which a waiting request goes before every younger one, whatever the order says. Small "
            "values turn every order into `fcfs`; large ones let low priorities wait longer."
        ),
    )
    prefix_cache: bool = Field(
        default=True,
        description=(
            "Keep the KV of finished prompts and reuse it where a later prompt begins the same. Results do not change; "
            "off costs the recomputation and saves a little bookkeeping."
        ),
    )
    journal: Path | None = Field(
        default=None,
        description=(
            "Write one JSON line per step to this file: what was decided, over which blocks, and how long it took. "
            "Costs some tens of microseconds a step and disk space; it is what makes a run replayable."
        ),
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Threads that compute. Unset: one per physical core, fewer where the process may use fewer. More than that "
            "makes small steps slower."
        ),
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description=(
            "Where the seeds of requests that bring none come from. Unset: different at every start. Set: the same "
            "requests in the same order draw the same seeds again."
        ),
    )

    @field_validator("order")
    @classmethod
    def _known_order(cls, value: str) -> str:
        if value not in ORDERS:
            raise ValueError(f"must be one of {', '.join(sorted(ORDERS))}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kv_blocks is not None and self.kv_memory is not None:
            raise ValueError("must name kv_blocks or kv_memory, given both; leave one of them out")
        if self.max_chunk_tokens is not None and self.max_chunk_tokens > self.max_step_tokens:
            raise ValueError(
                f"max_chunk_tokens must be at most max_step_tokens ({self.max_step_tokens}), given "
                f"{self.max_chunk_tokens}; lower the one or raise the other"
            )
        return self


class ModelSettings(Settings):
    """A model to serve."""

    path: str = Field(
        default=BUNDLED,
        min_length=1,
        description=(
            "A folder in Hugging Face layout (config.json, safetensors, tokenizer.json), a hub id such as "
            "Qwen/Qwen3-0.6B, or `isles` for the model that is part of the package. A hub id is downloaded once "
            "and then read from the local cache."
        ),
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "The name that clients ask for in `model`. Unset: the hub id, or the last part of the folder. Set it "
            "where clients must not notice that one checkpoint replaced another."
        ),
    )

    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description=(
            "More names under which clients may ask for the model. `/v1/models` lists them; answers carry `name`. For "
            "clients that insist on a name of their own."
        ),
    )
    engine: EngineSettings | None = Field(
        default=None,
        description=(
            "Keys of `engine` that differ for this model. Give each of several models its `kv_memory`, or the first "
            "one takes what the later ones need."
        ),
    )
    start: Literal["awake", "asleep"] = Field(
        default="awake",
        description=(
            "asleep: listed at start without being loaded. It takes no memory and no time until it is woken, and its "
            "plan is not checked until then."
        ),
    )
    wake_on_request: bool = Field(
        default=False,
        description=(
            "Wake the model when a request asks for it while it sleeps; the request waits for as long as that takes. "
            "Off: such a request is refused, and whoever put the model to sleep can rely on its memory."
        ),
    )

    @property
    def served_name(self) -> str:
        """The name that clients ask for."""
        if self.name is not None:
            return self.name
        path = Path(self.path).expanduser()
        return path.resolve().name if path.exists() else self.path


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
            "Keys of which a request to /v1 must carry one, as `Authorization: Bearer KEY`. None: nobody is asked. "
            "/health and /metrics never ask. The variable ARMILLARY_API_KEYS keeps keys out of files and process lists."
        ),
    )
    max_body: Size = Field(
        default=32 * 1024**2,
        description="Largest request body. Larger ones are refused before they are read, which protects memory.",
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
    manage_models: Literal["off", "listed", "any"] = Field(
        default="listed",
        description=(
            "What a client may load, unload, put to sleep and wake while the server runs: nothing; the models of this "
            "file; or any folder and hub id too, which lets whoever may ask fill memory and disk."
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="How much is logged. info has one line per request; debug has what each one asked for.",
    )


def _one_model(value: Any) -> Any:
    """Let a list entry be just the path of a model."""
    return {"path": value} if isinstance(value, str) else value


class Deployment(Settings):
    """What is served, by which engine, to whom."""

    models: tuple[Annotated[ModelSettings, BeforeValidator(_one_model)], ...] = Field(
        default=(ModelSettings(),),
        min_length=1,
        description="The models to serve, each by an engine of its own. An entry may be just a path or hub id.",
    )
    engine: EngineSettings = Field(default=EngineSettings(), description="How the engines spend memory and time.")
    server: ServerSettings = Field(default=ServerSettings(), description="How the server meets its clients.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names: set[str] = set()
        for model in self.models:
            for name in (model.served_name, *model.aliases):
                if name in names:
                    raise ValueError(f"models must have different names and aliases, given {name!r} twice; set `name`")
                names.add(name)
            self.engine_of(model)
        return self

    @property
    def model(self) -> ModelSettings:
        """The first model, of which flags speak."""
        return self.models[0]

    def engine_of(self, model: ModelSettings) -> EngineSettings:
        """The settings of one model's engine: the common ones, and over them its own.

        Of several models each has a journal of its own, named after it where they share the setting.
        """
        own = {} if model.engine is None else model.engine.model_dump(exclude_unset=True)
        values = self.engine.model_dump(exclude_unset=True)
        for one, other in (("kv_blocks", "kv_memory"), ("kv_memory", "kv_blocks")):
            if own.get(one) is not None:
                values.pop(other, None)
        if self.engine.journal is not None and self.models != (model,):
            name = re.sub(r"[^\w.-]+", "_", model.served_name)
            values["journal"] = self.engine.journal.with_stem(f"{self.engine.journal.stem}.{name}")
        try:
            return EngineSettings.model_validate({**values, **own})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise ValueError(f"models: {model.served_name}: {problem['msg'].removeprefix('Value error, ')}") from None
