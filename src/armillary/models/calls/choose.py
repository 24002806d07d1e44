"""Which format a model writes its calls in: found out from its chat template, by letting it write one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from armillary.errors import ArmillaryError, Code
from armillary.models.calls.format import CallFormat
from armillary.models.calls.gemma import GEMMA
from armillary.models.calls.hermes import HERMES
from armillary.models.calls.llama3 import LLAMA3
from armillary.models.calls.mistral import MISTRAL, MISTRAL_ARGS
from armillary.models.calls.phi import PHI
from armillary.models.calls.qwen_tags import QWEN_TAGS
from armillary.models.calls.reader import CallReader
from armillary.models.chat import ChatTemplate
from armillary.models.reasoning import ALL_MARKS, Marks
from armillary.models.reply import Message
from armillary.models.tokenizer import Tokenizer

FORMATS = {form.name: form for form in (HERMES, QWEN_TAGS, MISTRAL, MISTRAL_ARGS, PHI, LLAMA3, GEMMA)}
MARKS = {marks.name: marks for marks in ALL_MARKS}

_NAME, _ARGUMENTS, _ID = "tide_of", {"harbour": "Ellin", "day": 3}, "a1B2c3D4e"
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "When the water is high.",
        "parameters": {
            "type": "object",
            "properties": {
                "harbour": {"type": "string", "description": "where"},
                "day": {"type": "integer", "description": "of the month"},
            },
            "required": ["harbour"],
        },
    },
}
_ASK = {"role": "user", "content": "When?"}


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How one model takes tools, and what its answers are made of.

    Attributes:
        calls: how it writes calls; None where that is not known, or it has no tools.
        marks: around its reasoning; None where it has none.
        tools: how its template takes tools: as the variable `tools`, as a field of the system message, or not.
        shows_calls: whether the template writes the calls of earlier messages.
    """

    calls: CallFormat | None = None
    marks: Marks | None = None
    tools: Literal["variable", "system", "none"] = "none"
    shows_calls: bool = True

    def describe(self) -> str:
        """For the log."""
        if self.tools == "none":
            calls = "no tools (the chat template takes none)"
        elif self.calls is None:
            calls = "no tools (the form of its calls is not known; set `calls` in the deployment)"
        else:
            calls = f"tool calls as {self.calls.name}"
        return f"{calls}, {'no reasoning' if self.marks is None else f'reasoning as {self.marks.name}'}"

    def shown(self, tokenizer: Tokenizer, calls: bool) -> frozenset[int]:
        """Control tokens of this tokenizer that mark reasoning, or calls if those are read, so they must be seen."""
        texts: list[str] = [] if self.marks is None else [self.marks.opening, self.marks.closing]
        if calls and self.calls is not None:
            texts += [*self.calls.opens, *self.calls.closes, "[ARGS]", "[CALL_ID]", self.calls.notation.quote]
        return frozenset(i for text in texts if (i := tokenizer.special_id(text)) is not None)

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[dict[str, Any]] | None
    ) -> tuple[list[Any], list[dict[str, Any]] | None]:
        """Messages and tools in the form that the template takes.

        Raises:
            ArmillaryError: INVALID_REQUEST where there are tools and the model takes none.
        """
        plain: list[Any] = list(messages)
        if not self.shows_calls and self.calls is not None:
            plain = [_with_calls_in_content(message, self.calls) for message in plain]
        if not tools:
            return plain, None
        if self.tools == "none":
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                "tools must be left out, or tool_choice be none: the chat template of this model has no place for "
                "tools, or its deployment says `calls: none`, so it would not see them",
                "tools",
            )
        if self.tools == "variable":
            return plain, list(tools)
        if not plain or not isinstance(plain[0], Mapping) or plain[0].get("role") != "system":
            plain.insert(0, {"role": "system", "content": "You are a helpful assistant with some tools."})
        plain[0] = {**plain[0], "tools": json.dumps([tool["function"] for tool in tools], ensure_ascii=False)}
        return plain, None


def _with_calls_in_content(message: Any, form: CallFormat) -> Any:
    """The same message with its calls in its content, for a template that passes calls over."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not isinstance(calls, Sequence) or not calls or form.written is None or form.tags:
        return message
    functions = [call.get("function") for call in calls if isinstance(call, Mapping)]
    pairs = [(str(f.get("name")), _text_of(f.get("arguments"))) for f in functions if isinstance(f, Mapping)]
    content = message.get("content")
    said = [content] if isinstance(content, str) and content else content if isinstance(content, list) else []
    parts = [*said, form.written.text(pairs)]
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": parts}


def _text_of(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def reply_format(template: ChatTemplate | None, calls: str = "auto", reasoning: str = "auto") -> ReplyFormat:
    """What a template says about a model's answers.

    Args:
        calls: the name of a format, `none`, or `auto`.
        reasoning: the name of a pair of marks, `none`, or `auto`.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT for an unknown name.
    """
    form = _known("calls", calls, FORMATS)
    marks = _known("reasoning", reasoning, MARKS)
    if template is None:
        return ReplyFormat(None, marks)
    sources = template.all_sources
    if reasoning == "auto":
        marks = next((m for m in ALL_MARKS if m.closing in sources or m.opening in sources), None)
    if calls == "none":
        return ReplyFormat(None, marks)
    way = _way_of_tools(template)
    if way == "none":
        return ReplyFormat(None, marks)
    turn = _assistant_turn(template, way)
    shows_calls = turn is not None and _NAME in turn
    if calls == "auto":
        form = _format_of(turn if shows_calls and turn is not None else "", sources)
    return ReplyFormat(form, marks, way, shows_calls)


def _known(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name in ("auto", "none"):
        return None
    if name not in known:
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT, f"{what} must be one of auto, none, {', '.join(known)}, given {name!r:.60}", what
        )
    return known[name]


def _way_of_tools(template: ChatTemplate) -> Literal["variable", "system", "none"]:
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        if _NAME in (_render(template, [*system, _ASK], [_TOOL]) or ""):
            return "variable"
    told = {"role": "system", "content": "Be brief.", "tools": json.dumps([_TOOL["function"]])}
    return "system" if _NAME in (_render(template, [told, _ASK], None) or "") else "none"


def _assistant_turn(template: ChatTemplate, way: str) -> str | None:
    """What the template writes for a message with one call, or None where it cannot."""
    tools = [_TOOL] if way == "variable" else None
    call = {"type": "function", "id": _ID, "function": {"name": _NAME, "arguments": _ARGUMENTS}}
    for content in ({}, {"content": ""}):
        message = {"role": "assistant", **content, "tool_calls": [call]}
        after = _render(template, [_ASK, message], tools, prompt=False)
        if after is not None:
            # What generation begins with, or, where a finished turn is written otherwise, what comes before it.
            befores = [_render(template, [_ASK], tools, prompt=prompt) for prompt in (True, False)]
            known = next((before for before in befores if before is not None and after.startswith(before)), "")
            return after[len(known) :]
    return None


def _render(template: ChatTemplate, messages: list[Any], tools: list[Any] | None, prompt: bool = True) -> str | None:
    try:
        return template.render(messages, tools, add_generation_prompt=prompt)
    except ArmillaryError:
        return None


def _format_of(turn: str, source: str) -> CallFormat | None:
    """The format in which a template wrote the call, or, where it wrote none, the one whose marks it mentions."""
    understood = [form for form in FORMATS.values() if _understands(form, turn)]
    exact = [form for form in understood if form.written is not None and _squeezed(form) in _squeeze(turn)]
    if understood:
        return (exact or understood)[0]
    mentioned = max(FORMATS.values(), key=lambda form: sum(opening in source for opening in form.opens))
    if any(opening in source for opening in mentioned.opens):
        return mentioned
    return PHI if "<|tool|>" in source else LLAMA3 if '"parameters": ' in source else None


def _understands(form: CallFormat, turn: str) -> bool:
    reader = CallReader(form, {_NAME: _TOOL["function"]["parameters"]})
    message = Message()
    message.add([*reader.push(turn), *reader.finish()])
    return [(call.name, json.loads(call.arguments)) for call in message.calls] == [(_NAME, _ARGUMENTS)]


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _squeezed(form: CallFormat) -> str:
    written = form.written
    return "" if written is None else _squeeze(written.begin + written.before_name + _NAME + written.before_arguments)
