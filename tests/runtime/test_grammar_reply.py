"""Grammars of whole replies: what they take is what the reader reads as calls, for every format that has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from armillary.errors import ArmillaryError
from armillary.models.calls.choose import FORMATS
from armillary.models.calls.format import CallFormat
from armillary.models.reading import Reading, ReplyReader
from armillary.models.reasoning import MAGISTRAL, THINK
from armillary.models.reply import Message
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.grammar import Grammar
from armillary.runtime.grammar_reply import WantedCalls, WantedContent, reply_grammar
from server.scripted import write_tokenizer

F = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
G = {
    "type": "object",
    "properties": {"b": {"$ref": "#/$defs/mood"}},
    "required": ["b"],
    "additionalProperties": False,
    "$defs": {"mood": {"enum": ["glad", "sad"]}},
}
SCHEMAS = {"f": F, "g": G}
ENFORCED = [form for form in FORMATS.values() if form.written is not None and not form.tags]
CONTROL = ["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A token is a byte."""
    folder = Path(tmp_path_factory.mktemp("plain"))
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same, with marks that are control tokens, as Mistral has them."""
    folder = Path(tmp_path_factory.mktemp("special"))
    write_tokenizer(folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(CONTROL)
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text is a complete reply."""
    matcher = grammar.matcher()
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def calls(form: CallFormat, required: bool = True, one: bool = False) -> WantedCalls:
    return WantedCalls(form, SCHEMAS, required, one)


def written(form: CallFormat, *pairs: tuple[str, Any]) -> str:
    assert form.written is not None
    return form.written.text([(name, json.dumps(arguments)) for name, arguments in pairs])


@pytest.mark.parametrize("form", ENFORCED, ids=lambda form: form.name)
@pytest.mark.parametrize("tokens", ["plain", "special"])
def test_required_calls(form: CallFormat, tokens: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(tokens)
    one, both = written(form, ("f", {"a": -7})), written(form, ("f", {"a": -7}), ("g", {"b": "sad"}))
    many, single = (reply_grammar(tokenizer, calls=calls(form, one=alone)) for alone in (False, True))
    assert takes(many, tokenizer, one) and takes(many, tokenizer, both)
    assert takes(single, tokenizer, one) and not takes(single, tokenizer, both)
    for wrong in ("text", "", f"text {one}", written(form, ("f", {"a": "x"})), written(form, ("h", {}))):
        assert not takes(many, tokenizer, wrong), wrong


@pytest.mark.parametrize("form", ENFORCED, ids=lambda form: form.name)
@pytest.mark.parametrize("tokens", ["plain", "special"])
def test_calls_beside_free_text(form: CallFormat, tokens: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(tokens)
    grammar = reply_grammar(tokenizer, calls=calls(form, required=False))
    both = written(form, ("f", {"a": -7}), ("g", {"b": "sad"}))
    for text in ("Good morning.", "", both):
        assert takes(grammar, tokenizer, text), text
    assert takes(grammar, tokenizer, f"One moment.\n{both}") or form.bare
    if not form.bare:
        assert not takes(grammar, tokenizer, written(form, ("f", {"a": "x"}))), "no call that does not match"
        for opening in form.opens:
            assert not takes(grammar, tokenizer, f"text {opening} text {both}"), (
                "nor anything that could be read as one"
            )


@pytest.mark.parametrize("form", ENFORCED, ids=lambda form: form.name)
def test_what_a_grammar_takes_is_read_as_calls(form: CallFormat, special: Tokenizer) -> None:
    text = written(form, ("f", {"a": 1}), ("g", {"b": "glad"}))
    assert takes(reply_grammar(special, calls=calls(form)), special, text)
    reader = ReplyReader(Reading(calls=form, tools=SCHEMAS, certain=True))
    message = Message()
    for character in text:
        message.add(reader.push(character))
    message.add(reader.finish())
    assert [(call.name, json.loads(call.arguments)) for call in message.calls] == [
        ("f", {"a": 1}),
        ("g", {"b": "glad"}),
    ]
    assert message.content == ""


def read_enforced(form: CallFormat, text: str, tools: dict[str, Any]) -> Message:
    reader = ReplyReader(Reading(calls=form, tools=tools, certain=True))
    message = Message()
    message.add([*reader.push(text), *reader.finish()])
    return message


@pytest.mark.parametrize("form", ENFORCED, ids=lambda form: form.name)
@pytest.mark.parametrize("value", ["7" * 1500, "[" * 200 + "]" * 200, "1e999"], ids=["long", "deep", "large"])
def test_no_value_that_a_grammar_takes_is_lost(form: CallFormat, value: str, plain: Tokenizer) -> None:
    assert form.written is not None
    tools = {"f": {"type": "object"}}
    text = form.written.text([("f", f'{{"x": {value}}}')])
    assert takes(reply_grammar(plain, calls=WantedCalls(form, tools, True, False)), plain, text)
    (call,) = read_enforced(form, text, tools).calls
    assert call.arguments == f'{{"x": {value}}}'
    stopped = Message()  # a stop string, which may cut calls, changes nothing about those that it does not
    reader = ReplyReader(Reading(calls=form, tools=tools, enforced=True))
    stopped.add([*reader.push(text), *reader.finish()])
    assert [call.arguments for call in stopped.calls] == [f'{{"x": {value}}}']


@pytest.mark.parametrize(("tokens", "marks"), [("plain", THINK), ("special", MAGISTRAL)])
def test_reasoning_comes_first_and_is_free(tokens: str, marks: Any, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(tokens)
    call = written(FORMATS["hermes"], ("f", {"a": 1}))
    thought = f"So <tool_call> {{\n{marks.closing}\n\n"
    opened = reply_grammar(tokenizer, calls=calls(FORMATS["hermes"]), marks=marks, opened=True)
    assert takes(opened, tokenizer, thought + call) and not takes(opened, tokenizer, call)
    free = reply_grammar(tokenizer, calls=calls(FORMATS["hermes"]), marks=marks)
    assert takes(free, tokenizer, marks.opening + thought + call) and takes(free, tokenizer, call)
    content = WantedContent("json_schema", F, "response_format")
    schema = reply_grammar(tokenizer, content=content, marks=marks, opened=True)
    assert takes(schema, tokenizer, thought + '{"a": 1}') and not takes(schema, tokenizer, '{"a": 1}')


def spelled(tokenizer: Tokenizer, *parts: str) -> list[int]:
    """Token ids of parts: a control token where a part is nothing else, letters everywhere else."""
    ids = []
    for part in parts:
        special = tokenizer.special_id(part)
        ids += tokenizer.encode(part, add_special=False) if special is None else [special]
    return ids


def test_control_tokens_in_letters_are_no_way_around_a_grammar(special: Tokenizer) -> None:
    """The reader sees text, in which letters and control tokens look alike."""

    def accepts(grammar: Grammar, *parts: str) -> bool:
        matcher, ids = grammar.matcher(), spelled(special, *parts)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    content = WantedContent("json_schema", F, "response_format")
    thinks = reply_grammar(special, content=content, marks=MAGISTRAL, opened=True)
    assert accepts(thinks, "hm [/THINK ", "[/THINK]", '{"a": 1}')
    assert not accepts(thinks, "hm [/THINK] oops ", "[/THINK]", '{"a": 1}')
    for name, wrong, right in (
        (
            "mistral",
            '[{"name": "f", "arguments": {"a": "x"}}]',
            ["[TOOL_CALLS]", ' [{"name": "f", "arguments": {"a": 1}}]'],
        ),
        ("mistral_args", 'f[ARGS]{"a": "x"}', ["[TOOL_CALLS]", "f", "[ARGS]", '{"a": 1}']),
    ):
        free = reply_grammar(special, calls=WantedCalls(FORMATS[name], {"f": F}, False, False))
        assert accepts(free, "hi ", *right) and accepts(free, *right) and accepts(free, "[TOOL_CALLS"), name
        for before in ("", "hi "):
            assert not accepts(free, f"{before}[TOOL_CALLS]{wrong}"), name
            assert not accepts(free, f"{before}[TOOL_CALLS]{wrong}", *right), name


TAGS = FORMATS["qwen_tags"]
TYPED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "mood": {"$ref": "#/$defs/mood"},
        "unit": {"type": "string", "enum": ["m", "ft"]},
    },
    "required": ["text", "count"],
    "$defs": {"mood": {"type": "array", "items": {"type": "boolean"}}},
}


def tagged(name: str, **values: str) -> str:
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def test_arguments_between_tags(plain: Tokenizer) -> None:
    wanted = WantedCalls(TAGS, {"f": TYPED, "g": {"type": "object"}}, True, False)
    required = reply_grammar(plain, calls=wanted)
    free = reply_grammar(plain, calls=WantedCalls(TAGS, wanted.schemas, False, False))
    full = tagged("f", text="a <b> \n c", count="3", mood="[true, false]", unit="ft")
    for text in (full, tagged("f", text="", count="null"), tagged("g"), tagged("g", any="x"), f"{full}\n{tagged('g')}"):
        assert takes(required, plain, text) and takes(free, plain, f"One moment. {text}"), text
        reader = ReplyReader(Reading(calls=TAGS, tools=wanted.schemas, certain=True))
        message = Message()
        message.add([*reader.push(text), *reader.finish()])
        assert message.calls and message.content == ""
    assert json.loads(read_one(full)) == {"text": "a <b> \n c", "count": 3, "mood": [True, False], "unit": "ft"}
    unlike = [{}, {"count": "y"}, {"count": "1", "unit": "km"}, {"count": "1", "mood": "[1]"}]
    for wrong in ("text", *(tagged("f", text="x", **values) for values in unlike)):
        assert not takes(required, plain, wrong), wrong
    assert not takes(free, plain, "text <function=f> text")
    for keyword, schema in (
        ("pattern", {"properties": {"x": {"type": "string", "pattern": "a+"}}}),
        ("x y", {"properties": {"x y": {"type": "integer"}}}),
        ("uniqueItems", {"properties": {"x": {"type": "array", "uniqueItems": True}}}),
        ("cannot", {"properties": {"x": {"type": "integer", "enum": 5}}, "required": 5}),
        ("enum", {"properties": {"x": {"enum": 5}}, "$defs": 5, "required": ["x"], "type": 5}),
    ):
        with pytest.raises(ArmillaryError, match=keyword) as caught:
            reply_grammar(plain, calls=WantedCalls(TAGS, {"f": {"type": "object", **schema}}, True, False))
        assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("schema", "values", "arguments"),
    [
        ({"properties": {"x": {"type": "object"}}}, [("x", '{"a": "</parameter>"}')], '{"x": {"a": "</parameter>"}}'),
        ({"properties": {"x": {"type": "integer"}}}, [("x", "7" * 5000)], f'{{"x": {"7" * 5000}}}'),
        ({"properties": {"x": {"type": "number"}}}, [("x", "1e999")], '{"x": 1e999}'),
        ({"properties": {"x": {"type": "array"}}}, [("x", "[" * 200 + "]" * 200)], f'{{"x": {"[" * 200 + "]" * 200}}}'),
        ({"properties": {"k" * 400: {"type": "string"}}}, [("k" * 400, "a\n")], f'{{"{"k" * 400}": "a\\n"}}'),
        ({}, [("x", "one"), ("y", "2"), ("x", "two")], '{"x": "two", "y": "2"}'),
    ],
)
def test_no_parameter_that_a_grammar_takes_is_lost(
    plain: Tokenizer, schema: dict[str, Any], values: list[tuple[str, str]], arguments: str
) -> None:
    tools = {"f": {"type": "object", **schema}}
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    text = f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"
    assert takes(reply_grammar(plain, calls=WantedCalls(TAGS, tools, True, False)), plain, text)
    message = read_enforced(TAGS, text, tools)
    assert message.content == "" and [call.arguments for call in message.calls] == [arguments]


MOOD: dict[str, Any] = {"mood": {"type": "string", "enum": ["glad", "sad"]}}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"$ref": "#/$defs/mood"}, ["glad"], ["mad", "null"]),
        ({"anyOf": [{"$ref": "#/$defs/mood"}, {"type": "null"}]}, ["sad", "null"], ["mad", "1"]),
        ({"anyOf": [{"const": "m"}, {"type": "integer"}]}, ["m"], ["n", "1"]),
        ({"type": ["string", "null"], "enum": ["m", None]}, ["m", "null"], ["n"]),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["any", "null"], []),
    ],
)
def test_texts_between_tags_are_those_of_their_schema(
    plain: Tokenizer, schema: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    tool = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": MOOD}
    grammar = reply_grammar(plain, calls=WantedCalls(TAGS, {"f": tool}, True, False))
    assert [text for text in [*right, *wrong] if takes(grammar, plain, tagged("f", x=text))] == right


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"properties": {"x": {"anyOf": [{"type": "string", "pattern": "^x$"}, {"type": "null"}]}}}, "pattern"),
        ({"properties": {"x": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
        ({"properties": {"x": {"type": "string", "enum": []}}}, "no value"),
        ({"properties": {"x": False}}, "no value"),
        ({"properties": {"x": {"enum": ["a</parameter>"]}}}, "ends a parameter"),
        ({"properties": {"x": {"oneOf": [{"type": "string"}, {"const": "a"}]}}}, "two of its branches"),
        ({"properties": {"x": {"enum": ["a", "b"], "anyOf": [{"const": "a"}]}}}, "beside"),
        ({"properties": {"x": {"type": "string"}}, "minProperties": 1}, "minProperties"),
        ({"properties": {}, "required": ["x"], "additionalProperties": {"type": "integer"}}, "has no schema"),
        ({"additionalProperties": {"type": "integer"}}, "additionalProperties"),
    ],
)
def test_what_tags_cannot_enforce_is_refused(plain: Tokenizer, schema: dict[str, Any], what: str) -> None:
    with pytest.raises(ArmillaryError, match=what):
        reply_grammar(plain, calls=WantedCalls(TAGS, {"f": {"type": "object", **schema}}, True, False))


def test_no_parameters_where_none_are_allowed(plain: Tokenizer) -> None:
    closed = {"type": "object", "additionalProperties": False}
    grammar = reply_grammar(plain, calls=WantedCalls(TAGS, {"f": closed}, True, False))
    assert takes(grammar, plain, tagged("f")) and not takes(grammar, plain, tagged("f", x="y"))


def read_one(text: str) -> str:
    reader = ReplyReader(Reading(calls=TAGS, tools={"f": TYPED}))
    message = Message()
    message.add([*reader.push(text), *reader.finish()])
    return message.calls[0].arguments


def test_content_of_a_form_beside_calls(plain: Tokenizer) -> None:
    hermes = calls(FORMATS["hermes"], required=False)
    for content, text in (
        (WantedContent("json_schema", G, "response_format"), '{"b": "glad"}'),
        (WantedContent("json_object", None, "response_format"), '{"x": 1}'),
        (WantedContent("choice", ["yes", "no"], "structured_outputs"), "yes"),
    ):
        grammar = reply_grammar(plain, calls=hermes, content=content)
        assert takes(grammar, plain, text) and takes(grammar, plain, written(FORMATS["hermes"], ("f", {"a": 1})))
        assert not takes(grammar, plain, "maybe")


def test_what_cannot_be_enforced_names_what_is_wrong(plain: Tokenizer) -> None:
    unsupported = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(ArmillaryError, match=r"tool 'bad'.*uniqueItems") as caught:
        reply_grammar(plain, calls=WantedCalls(FORMATS["hermes"], {"f": F, "bad": unsupported}, True, False))
    assert caught.value.param == "tools"
    with pytest.raises(ArmillaryError, match="uniqueItems") as caught:
        content = WantedContent("json_schema", unsupported, "response_format.json_schema.schema")
        reply_grammar(plain, calls=calls(FORMATS["hermes"], required=False), content=content)
    assert caught.value.param == "response_format.json_schema.schema"
    with pytest.raises(ArmillaryError, match="auto or none") as caught:
        reply_grammar(plain, calls=calls(FORMATS["gemma"]))
    assert caught.value.param == "tool_choice"
    with pytest.raises(ArmillaryError, match="stand alone") as caught:
        reply_grammar(plain, content=WantedContent("regex", "a+", "structured_outputs.regex"), marks=THINK)
    assert caught.value.param == "structured_outputs.regex"
