"""The fields that both generation endpoints share, with the ranges that OpenAI's clients expect.

Strict types (the string "5" is not a number), unknown options refused. A field that is accepted is obeyed,
or is listed in `Harmless`: those cannot change what is generated.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from armillary.runtime.grammar_reply import WantedContent
from armillary.server.structured import ResponseFormat, StructuredOutputs, wanted_content

MAX_STOPS = 16
"""Stop strings of one request. OpenAI allows 4; peers more."""
MAX_STOP_CHARS = 1024
MAX_BIASES = 1024
MAX_STOP_IDS = 128
MAX_INT = 2**31 - 1
MAY_COMPILE = ("response_format", "structured_outputs", "tools", "text", "output_config")
"""Fields, of any dialect, from which a grammar may come."""


Token = Annotated[int, Field(ge=0, le=MAX_INT)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None
"""How a client may write its stops; the field holds them as a list."""


def tag_of(value: Any, unsaid: str | None = None) -> str:
    """Which member of a union of objects a value means to be, by its `type`.

    In brackets, by which `armillary.server.body` tells a tag in the path of an error from the name of a field.

    Args:
        unsaid: the type of an object that says none.
    """
    kind = value.get("type") or unsaid if isinstance(value, dict) else getattr(value, "type", None)
    return f"[{kind}]"


class AnyBody(BaseModel):
    """What every endpoint with a model behind it takes. Options that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(
        None, min_length=1, max_length=512, description="The served name; unset: the first model of the server."
    )


class AnyGeneration(AnyBody):
    """What every generation endpoint takes, in whatever dialect: the model, streaming, and our extensions."""

    model: str = Field(min_length=1, max_length=512, description="The served name, as `/v1/models` lists it.")
    stream: bool | None = Field(None, description="Answer in server-sent events as text is generated.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="Unset: a new one for each request.")
    top_k: int | None = Field(
        None, ge=-1, le=MAX_INT, description="Extension. Draw from so many likeliest tokens; -1 and 0: no limit."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Extension. Draw from tokens at least this share as likely as the likeliest."
    )
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Extension. 1 is off.")
    min_tokens: int | None = Field(None, ge=0, le=MAX_INT, description="Extension. No stop before so many tokens.")
    ignore_eos: bool | None = Field(None, description="Extension. The end-of-text tokens do not stop.")
    stop_token_ids: list[Token] | None = Field(
        None, max_length=MAX_STOP_IDS, description="Extension. Tokens that end a choice."
    )
    priority: int | None = Field(
        None, ge=-MAX_INT, le=MAX_INT, description="Extension. Smaller first, under the priority order."
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        le=1e7,
        description="Extension. Seconds from now by which the last token is wanted (deadline order). Nothing ends.",
    )
    timeout: float | None = Field(
        None,
        gt=0,
        le=1e7,
        description="Extension. Seconds from arrival after which the request ends, as a failure. `x-request-timeout`"
        " is the same as a header; the shorter one rules.",
    )

    @property
    def continues(self) -> bool:
        """Whether there is more to the prompt than this body has, so that its size tells nothing about the work."""
        return False

    @property
    def compiles(self) -> bool:
        """Whether a grammar may have to be compiled for it, which is no work for the event loop."""
        return any(self.__dict__.get(name) is not None for name in MAY_COMPILE)


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="One more chunk at the end, with the usage and no choices.")
    include_obfuscation: Literal[False] | None = Field(
        None, description="Padding against traffic analysis is not made; only false is accepted."
    )


class Harmless(BaseModel):
    """Fields that clients send for accounts, logs and caches elsewhere. They change nothing that is generated."""

    user: str | None = Field(None, description="Not used.")
    metadata: dict[str, str] | None = Field(None, description="Not used.")
    safety_identifier: str | None = Field(None, description="Not used.")
    prompt_cache_key: str | None = Field(None, description="Not used: the prefix cache finds equal prefixes itself.")
    prompt_cache_retention: Literal["in_memory"] | None = Field(None, description="Only what is the case anyhow.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one tier.")


class GenerationFields(Harmless, AnyGeneration):
    """How OpenAI's older endpoints generate: sampling, lengths, stops."""

    store: Literal[False] | None = Field(None, description="Nothing is stored.")
    stream_options: StreamOptions | None = Field(
        None, description="`include_usage`: one more chunk at the end, with the usage. Needs `stream`."
    )
    n: int | None = Field(None, ge=1, le=MAX_INT, description="Choices per prompt.")
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_INT, description="Most tokens of one choice. More than the context holds is refused."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from the likeliest tokens that together have this probability."
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Off the logits of tokens that the answer has already."
    )
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="The same, once for each occurrence.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_BIASES, description="Token id, as a string, to what is added to its logit."
    )
    response_format: ResponseFormat | None = Field(
        None, description="text, json_object, or json_schema: what the answer must be. Enforced by a grammar."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None,
        description="Extension. One of json, json_object, regex, choice and grammar. Excludes response_format.",
    )
    stop: list[str] = Field(
        default_factory=list,
        max_length=MAX_STOPS,
        description="A string, or a list of up to 16; the text ends before it.",
    )

    @field_validator("stop", mode="before", json_schema_input_type=Stops)
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _sensible_stops(cls, value: list[str]) -> list[str]:
        for stop in value:
            if not stop:
                raise ValueError("must hold no empty string: it would stop at once")
            if len(stop) > MAX_STOP_CHARS:
                raise ValueError(f"must hold strings of at most {MAX_STOP_CHARS} characters, given {len(stop)}")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _token_keys(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not (key.isascii() and key.isdecimal() and len(key) <= 10):
                raise ValueError(f"must have token ids as keys, given {key[:40]!r}")
        return value

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options must come with stream = true, given stream = false")
        return self

    @model_validator(mode="after")
    def _one_structure(self) -> GenerationFields:
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("structured_outputs must be left out where response_format is given, given both")
        return self

    @property
    def wanted(self) -> WantedContent | None:
        """What the answer must be; None where it is free."""
        return wanted_content(self.response_format, self.structured_outputs)

    @property
    def bias(self) -> dict[int, float]:
        """`logit_bias` with its keys as numbers."""
        return {int(key): value for key, value in (self.logit_bias or {}).items()}

    @property
    def usage_in_stream(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)
