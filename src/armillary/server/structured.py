"""What a client wants an answer to be: `response_format` as OpenAI has it, `structured_outputs` as vLLM has it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from armillary.runtime.grammar_reply import WantedContent

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class JsonSchema(BaseModel):
    """A schema with its name."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, serialize_by_alias=True)

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Not used.")
    description: str | None = Field(None, description="Not used.")
    schema_: dict[str, Any] = Field(alias="schema", description="What the answer must match (JSON Schema 2020-12).")
    strict: bool | None = Field(None, description="Schemas are always enforced, whatever it says.")


class ResponseFormat(BaseModel):
    """What form the answer has. `json_schema` comes with the type of that name, and only there."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("must have json_schema, with name and schema, where its type is json_schema, given none")
        if self.type != "json_schema" and self.json_schema is not None:
            raise ValueError(f"must have json_schema only where its type is json_schema, given type {self.type}")
        return self


class StructuredOutputs(BaseModel):
    """What the answer must be: exactly one of these."""

    model_config = _STRICT

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON schema, or its text.")
    json_object: Literal[True] | None = Field(None, description="Any JSON object.")
    regex: str | None = Field(None, description="A regular expression that the whole answer matches.")
    choice: list[str] | None = Field(None, description="The texts of which the answer is one.")
    grammar: str | None = Field(None, description="A grammar in llguidance's dialect of Lark; it begins at `start`.")

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(name.rstrip("_") for name in given) or "none"
            raise ValueError(f"must have exactly one of json, json_object, regex, choice and grammar, given {found}")
        return self

    @field_validator("grammar")
    @classmethod
    def _nothing_loosened(cls, value: str | None) -> str | None:
        if value is not None and "x-guidance" in value:
            raise ValueError("must not set x-guidance in a schema: how JSON is written is fixed here")
        return value


def wanted_content(form: ResponseFormat | None, structured: StructuredOutputs | None) -> WantedContent | None:
    """What a grammar is to be made of; None where the answer is free."""
    if structured is not None:
        return _structured(structured)
    if form is None or form.type == "text":
        return None
    if form.json_schema is not None:
        return WantedContent("json_schema", form.json_schema.schema_, "response_format")
    return WantedContent("json_object", None, "response_format")


def _structured(given: StructuredOutputs) -> WantedContent:
    param = "structured_outputs"
    if given.json_ is not None:
        return WantedContent("json_schema", given.json_, param)
    if given.regex is not None:
        return WantedContent("regex", given.regex, param)
    if given.choice is not None:
        return WantedContent("choice", given.choice, param)
    if given.grammar is not None:
        return WantedContent("lark", given.grammar, param)
    return WantedContent("json_object", None, param)
