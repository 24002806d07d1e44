"""What is served, and the whole of a deployment. Flags, documentation and error messages are made from these fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from armillary.deployment.engine import EngineSettings
from armillary.deployment.fleet import FleetSettings
from armillary.deployment.group import Settings
from armillary.deployment.server import ServerSettings

BUNDLED = "isles"
"""The name of the model that is part of the package."""


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
    calls: str = Field(
        default="auto",
        min_length=1,
        description=(
            "How the model writes tool calls: the name of a format, or `none`, which refuses tools. auto reads it off "
            "the chat template. Set it where the log says that the form is not known, or names the wrong one."
        ),
    )
    reasoning: str = Field(
        default="auto",
        min_length=1,
        description=(
            "What the model writes around its reasoning: the name of a pair of marks, or `none`, which leaves "
            "reasoning in the content. auto reads it off the chat template."
        ),
    )

    @property
    def served_name(self) -> str:
        """The name that clients ask for."""
        if self.name is not None:
            return self.name
        path = Path(self.path).expanduser()
        return path.resolve().name if path.exists() else self.path


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
    fleet: FleetSettings | None = Field(
        default=None,
        description="What stands around this server; for simulation and planning. Unset: it is alone.",
    )

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
