"""One request of a workload."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MOST_TOKENS = 2**24
"""Of a prompt, and of an answer: beyond any context that there is, and few enough to be held in memory."""
Run = tuple[str, Annotated[int, Field(ge=1, le=MOST_TOKENS)]]
"""A shared run of tokens: its name, and how many of its tokens a prompt holds."""


class WorkItem(BaseModel):
    """One request of a workload. Times are seconds from the workload's start."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str = Field(description="Unique in the workload; the line's number where a file gives none.")
    arrival: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="When the request is due, for an open loop."
    )
    prompt_tokens: int = Field(ge=1, le=MOST_TOKENS, description="Length of the prompt, all that it shares included.")
    output_tokens: int = Field(ge=1, le=MOST_TOKENS, description="How many tokens to generate.")
    prefix: tuple[Run, ...] = Field(
        default=(),
        description="What the prompt begins with, run after run: [name, tokens]. Runs of one name are alike in all "
        "requests.",
    )
    session: str | None = Field(default=None, description="Turns of one conversation, sent one after another.")
    history: int = Field(
        default=0,
        ge=0,
        le=2 * MOST_TOKENS,
        description="How many leading prompt tokens repeat the conversation: the prompt of the turn before and its "
        "answer, from their beginning.",
    )
    think: float = Field(default=0.0, ge=0, description="Seconds between the end of the turn before and this one.")
    deadline: float | None = Field(
        default=None, gt=0, description="Seconds after it was due by which the last token is wanted."
    )
    priority: int = Field(
        default=0, ge=-(2**31), lt=2**31, description="Smaller is served first, where the server orders by priority."
    )
    slo_class: str | None = Field(default=None, description="The class whose service level it is judged by.")
    prompt: str | None = Field(default=None, description="The prompt itself; made up from the lengths where absent.")
    token_ids: tuple[int, ...] | None = Field(default=None, description="The prompt as token ids.")

    @staticmethod
    def of_columns(values: dict[str, Any]) -> WorkItem:
        """The item whose fields are all in `values`, which have been checked: `model_construct`, but for its search
        for defaults and aliases, which takes ten times as long as the rest."""
        item = WorkItem.__new__(WorkItem)
        object.__setattr__(item, "__dict__", values)
        object.__setattr__(item, "__pydantic_fields_set__", _FIELDS)
        object.__setattr__(item, "__pydantic_extra__", None)
        object.__setattr__(item, "__pydantic_private__", None)
        return item

    @property
    def prefix_tokens(self) -> int:
        """How many leading prompt tokens are shared runs."""
        return sum(tokens for _, tokens in self.prefix)


_FIELDS = set(WorkItem.model_fields)
