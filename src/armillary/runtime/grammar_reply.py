"""Grammars of whole replies: reasoning first, then tool calls as the model's family writes them, or content.

The texts around names and arguments are those of the family's format, so that a model is held to what it was
trained to write; the arguments follow the schemas of the tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.models.calls.format import CallFormat, Written
from armillary.models.reasoning import Marks
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.grammar import JSON_STYLE, Grammar, compile_grammar
from armillary.runtime.grammar_tags import tagged_arguments

MAX_CALLS = 16
"""Calls of one reply that a grammar enforces."""


@dataclass(frozen=True, slots=True)
class WantedCalls:
    """The calls that a reply may have, or must have.

    Attributes:
        form: how the model writes them.
        schemas: name of each tool -> schema of its arguments.
        required: there is at least one call, and no content.
        one: there is at most one.
    """

    form: CallFormat
    schemas: Mapping[str, Mapping[str, Any]]
    required: bool
    one: bool


@dataclass(frozen=True, slots=True)
class WantedContent:
    """What the content must be: kind and source as `compile_grammar` takes them."""

    kind: str
    source: Any
    param: str


def reply_grammar(
    tokenizer: Tokenizer,
    *,
    calls: WantedCalls | None = None,
    content: WantedContent | None = None,
    marks: Marks | None = None,
    opened: bool = False,
) -> Grammar:
    """A grammar for a whole reply.

    Args:
        marks: around the model's reasoning, which stays free; None where there is none.
        opened: the reply begins within the reasoning.

    Raises:
        ArmillaryError: INVALID_REQUEST where a schema cannot be enforced, or where the model's calls are not
            JSON, or where a grammar of the client's own cannot be joined with reasoning or calls.
    """
    if calls is None and marks is None and content is not None:
        return compile_grammar(content.kind, content.source, tokenizer, param=content.param)
    rules: list[str] = []
    thought = "" if marks is None else _thought(rules, marks, opened, tokenizer)
    choices = []
    if calls is not None:
        if calls.form.written is None:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                "tool_choice must be auto or none, tools not strict and response_format text, given others: this model "
                f"writes its calls as {calls.form.name}, of which no grammar is made, so they cannot be enforced",
                "tool_choice",
            )
        choices.append(_calls(rules, calls, tokenizer, text_first=not calls.required and content is None))
    if calls is None or not calls.required:
        choices.append(_content(rules, content, None if calls is None else calls.form))
    source = "\n".join([f"start: {thought} ({' | '.join(choices)})", *rules])
    param = content.param if content is not None and (calls is None or not calls.required) else "tools"
    try:
        return compile_grammar("lark", source, tokenizer, param=param)
    except ArmillaryError:
        _blame({} if calls is None else calls.schemas, content, tokenizer)
        raise


def _blame(schemas: Mapping[str, Any], content: WantedContent | None, tokenizer: Tokenizer) -> None:
    """Compile what a grammar is joined of by itself, so that the error names what is wrong, in the client's words.

    Raises:
        ArmillaryError: INVALID_REQUEST; nothing where each of them can be compiled.
    """
    if content is not None:
        compile_grammar(content.kind, content.source, tokenizer, param=content.param)
    for name, schema in schemas.items():
        try:
            compile_grammar("json_schema", schema, tokenizer, param="tools")
        except ArmillaryError as error:
            raise ArmillaryError(error.code, f"the parameters of tool {name!r}: {error.message}", "tools") from error


# ---------------------------------------------------------------- rules


def _thought(rules: list[str], marks: Marks, opened: bool, tokenizer: Tokenizer) -> str:
    closing = tokenizer.special_id(marks.closing)
    if closing is None:
        rules.append(f"thought[lazy]: /(?s:.*){_pattern(marks.closing)}/")
    else:
        # Spelled in letters it would end the reasoning for whoever reads the text.
        rules.append(f"THOUGHT: /(?s:.*)/{_without([marks.closing])}")
        rules.append(f"thought: THOUGHT <[{closing}]>")
    rules.append(r"SPACE: /[ \n]{0,4}/")
    return "thought SPACE" if opened else f"({_literal(marks.opening, tokenizer)} thought SPACE)?"


def _calls(rules: list[str], calls: WantedCalls, tokenizer: Tokenizer, text_first: bool) -> str:
    """Rules for calls, with any text before them or none; returns what stands for all of it together."""
    form, written = calls.form, calls.form.written or Written("", "", "")
    start = written.begin + written.before_name
    opening = next((opening for opening in form.opens if start.startswith(opening)), "") if text_first else ""
    for number, (name, schema) in enumerate(calls.schemas.items()):
        rest = written.before_name + name + written.before_arguments
        first = (written.begin + rest).removeprefix(opening)
        end = _literal(written.after, tokenizer)
        rules.append(f"first{number}: {_literal(first, tokenizer)} arguments{number} {end}")
        rules.append(f"next{number}: {_literal(written.between + rest, tokenizer)} arguments{number} {end}")
        if form.tags:
            rules.append(f"arguments{number}: {tagged_arguments(rules, f'tags{number}', name, schema)}")
        else:
            rules.append(f"arguments{number}: %json {_json(schema)}")
    each = range(len(calls.schemas))
    rules.append("first: " + " | ".join(f"first{number}" for number in each))
    rules.append("next: " + " | ".join(f"next{number}" for number in each))
    more = "" if calls.one else f" next{{0,{MAX_CALLS - 1}}}"
    lead = "" if not opening else _lead(rules, opening, form, tokenizer) + " "
    return f"{lead}first{more} {_literal(written.end, tokenizer)}"


def _lead(rules: list[str], opening: str, form: CallFormat, tokenizer: Tokenizer) -> str:
    """Content up to the text that opens the first call, and that text."""
    special = tokenizer.special_id(opening)
    # A control token is no text, but its letters would be read as the opening of a call all the same.
    others = [other for other in form.opens if other != opening or special is not None]
    rules.append(f"LEAD: /(?s:.*)/{_without(others)}")
    if special is not None:
        return f"LEAD <[{special}]>"
    rules.append(f"lead[suffix={json.dumps(opening)}]: LEAD")
    return "lead"


def _content(rules: list[str], content: WantedContent | None, form: CallFormat | None) -> str:
    """Rules for content beside calls."""
    if content is not None:
        match content.kind:
            case "json_schema" | "json_object":
                schema = {"type": "object"} if content.kind == "json_object" else content.source
                rules.append(f"content: %json {_json(json.loads(schema) if isinstance(schema, str) else schema)}")
            case "choice":
                rules.append("content: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in content.source))
            case _:
                raise ArmillaryError(
                    Code.INVALID_REQUEST,
                    f"a grammar of kind {content.kind} must stand alone, given one beside tools or for a model that "
                    "reasons first; use json_schema or choice, turn the reasoning off, or leave the tools out",
                    content.param,
                )
        return "content"
    if form is None:
        return "/(?s:.*)/"
    free = "/(?s:.*)/" if not form.bare else r"/([^{\s](?s:.*))?/"
    rules.append(f"CONTENT: {free}{_without(form.opens)}")
    return "CONTENT"


def _without(texts: Sequence[str]) -> str:
    """What is added to a pattern so that none of these texts occurs in what it matches."""
    return "".join(f" & ~/(?s:.*{_pattern(text)}.*)/" for text in texts)


def _literal(text: str, tokenizer: Tokenizer) -> str:
    """A text as rules take it, with the control tokens that it spells as such."""
    specials = sorted((s for s in tokenizer.special_texts if s in text), key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, specials)) + ")", text) if specials else [text]
    terms = []
    for piece in pieces:
        special = tokenizer.special_id(piece)
        if special is not None:
            terms.append(f"<[{special}]>")
        elif piece:
            terms.append(json.dumps(piece, ensure_ascii=False))
    return " ".join(terms)


def _pattern(text: str) -> str:
    """A text inside the pattern of a rule."""
    return re.escape(text).replace("/", r"\/")


def _json(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": JSON_STYLE}, ensure_ascii=False)
