"""What one request's reply is to be: from its options to the prompt's variables, the grammar and the reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.models.calls.choose import FORMATS, ReplyFormat
from armillary.models.reading import Reading
from armillary.models.reasoning import Marks
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.grammar import Grammar
from armillary.runtime.grammar_reply import WantedContent, reply_grammar
from armillary.runtime.sampling import SamplingParams
from armillary.server.tools import Offer

_TAIL = 16
"""Tokens at the end of a prompt in which the marks of reasoning stand, if it ends with them."""


@dataclass(frozen=True, slots=True)
class ReplyPlan:
    """The plan of one reply.

    Attributes:
        replies: how the model answers.
        tokenizer: the model's.
        offer: the tools that the model may call.
        content: what the content must be; None: whatever the model says.
    """

    replies: ReplyFormat
    tokenizer: Tokenizer
    offer: Offer | None
    content: WantedContent | None

    def check(self) -> None:
        """Refuse tools of which the calls could not be told from content.

        Raises:
            ArmillaryError: INVALID_REQUEST.
        """
        if self.offer is not None and self.replies.tools != "none" and self.replies.calls is None:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                "tools must be left out, or tool_choice be none: how this model writes its calls is not known here; "
                f"the deployment can say so (`calls`: {', '.join(FORMATS)})",
                "tools",
            )

    def variables(self, given: Mapping[str, Any] | None, effort: str | None) -> dict[str, Any]:
        """Variables of the chat template: the client's own, and those by which it takes `reasoning_effort`.

        Raises:
            ArmillaryError: INVALID_REQUEST where the template has no place for an effort.
        """
        variables = dict(given or {})
        if effort is None:
            return variables
        template = self.tokenizer.chat_template
        source = "" if template is None else template.all_sources
        if "reasoning_effort" in source:
            variables.setdefault("reasoning_effort", effort)
        elif "enable_thinking" in source:
            variables.setdefault("enable_thinking", effort != "none")
        elif effort != "none" or self.replies.marks is not None:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"reasoning_effort must be left out, given {effort!r}: the chat template of this model has no place "
                "for it",
                "reasoning_effort",
            )
        return variables

    def grammar(self, prompt: Sequence[int]) -> Grammar | None:
        """The grammar of the reply to a prompt; None where it is free.

        Raises:
            ArmillaryError: INVALID_REQUEST where what is wanted cannot be enforced.
        """
        calls = None if self.offer is None else self.offer.wanted(self.replies, self._enforced)
        if calls is None and self.content is None:
            return None
        marks, opened = self._reasoning(prompt)
        return reply_grammar(self.tokenizer, calls=calls, content=self.content, marks=marks, opened=opened)

    def reading(self, prompt: Sequence[int], params: SamplingParams) -> Reading:
        """How the reply to a prompt is read."""
        marks, opened = self._reasoning(prompt)
        shown = self.replies.shown(self.tokenizer, calls=self.offer is not None)
        if self.offer is None:
            return Reading(marks, opened, shown=shown)
        return Reading(
            marks,
            opened,
            self.replies.calls,
            self.offer.schemas,
            # A stop may cut a call in two, and what has gone out could not become content again.
            certain=self._enforced and not params.stop and not params.stop_token_ids,
            enforced=self._enforced,
            one=self.offer.one,
            either=self._enforced and self.content is not None,
            shown=shown,
        )

    @property
    def _enforced(self) -> bool:
        """Whether a grammar rules over calls: over all of the reply, or over none of it."""
        return self.offer is not None and (self.offer.enforced or self.content is not None)

    def _reasoning(self, prompt: Sequence[int]) -> tuple[Marks | None, bool]:
        """The marks of reasoning that may come in the reply, and whether the prompt has opened it already."""
        marks = self.replies.marks
        if marks is None:
            return None, False
        tail = self.tokenizer.decode(list(prompt[-_TAIL:]), skip_special=False).rstrip()
        return (None if tail.endswith(marks.closing) else marks), tail.endswith(marks.opening)
