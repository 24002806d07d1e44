"""Tool calls and reasoning in text: the same parts however the text is cut, nothing lost, nothing twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.models.calls.choose import FORMATS
from armillary.models.calls.decoder import ObjectDecoder
from armillary.models.calls.format import CallFormat
from armillary.models.calls.reader import CallReader
from armillary.models.reading import Reading, ReplyReader, merged
from armillary.models.reasoning import ALL_MARKS, THINK
from armillary.models.reply import CallArguments, CallStart, Message, ReplyPart

NAMES: dict[str, dict[str, Any]] = {
    "f": {"type": "object", "properties": {"a": {"type": ["array", "integer"]}}},
    "tide_of": {"type": "object"},
}
HERMES = FORMATS["hermes"]

# Fragments of every format, whole and broken, so that random texts are often nearly calls.
FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "[TOOL_CALLS", "[ARGS]", "[CALL_ID]a1", "<|python_tag|>",
    "<|tool_call|>", "<|/tool_call|>", "functools", "<start_function_call>", "<end_function_call>", "call:f",
    "<escape>", "<esc", "<think>", "</think>", "[THINK]", "[/THINK]", '{"name": "f", "arguments": {"a": 1}}',
    '{"name": "f", "parameters": {"a": "</tool_call>"}}', '{"name": "g", "arguments": {}}', '{"name": "f"}', "f", "{",
    "}", "[", "]", ",", ";", ":", '"', "\\", "\n", " ", "  \n", "name", '"name"', "arguments", '"arguments"', "1",
    "-", "1e3", "null", "true", "None", "{a:<escape>x<escape>,b:1}", '{"a": {"b": ["c", {}]}}', '{"a": "\n"}', "é",
    "😀", "text", "\x00", '{"name": "f", "arguments": "{\\"a\\": 1}"}',
    '{"type": "function", "function": {"name": "f", "arguments": {}}}',
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=14).map("".join)


def cut(text: str, places: Sequence[int]) -> list[str]:
    """The text in pieces."""
    bounds = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


def read(pieces: Sequence[str], reading: Reading) -> list[ReplyPart]:
    reader = ReplyReader(reading)
    parts: list[ReplyPart] = []
    for piece in pieces:
        parts += reader.push(piece)
    return parts + reader.finish()


def anonymous(parts: Sequence[ReplyPart]) -> list[ReplyPart]:
    return [CallStart(p.index, "", p.name) if isinstance(p, CallStart) else p for p in merged(parts)]


def message(text: str, reading: Reading) -> Message:
    result = Message()
    result.add(read([text], reading))
    return result


def calls(text: str, form: CallFormat = HERMES, **options: Any) -> tuple[str, list[tuple[str, Any]]]:
    """Content, and name and arguments of each call."""
    found = message(text, Reading(calls=form, tools=NAMES, **options))
    return found.content, [(call.name, json.loads(call.arguments)) for call in found.calls]


READINGS = st.builds(
    Reading,
    marks=st.sampled_from([None, *ALL_MARKS]),
    opened=st.booleans(),
    calls=st.sampled_from([None, *FORMATS.values()]),
    tools=st.just(NAMES),
    certain=st.booleans(),
    one=st.booleans(),
    either=st.booleans(),
)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 1000), max_size=12), READINGS)
def test_26_deltas_joined_equal_the_whole_however_a_text_is_cut(text: str, places: list[int], reading: Reading) -> None:
    whole = anonymous(read([text], reading))
    assert anonymous(read(cut(text, places), reading)) == whole
    assert anonymous(read(list(text), reading)) == whole


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from(list(FORMATS.values())))
def test_26_calls_are_json_objects_and_what_is_no_call_is_content(text: str, form: CallFormat) -> None:
    found = message(text, Reading(calls=form, tools=NAMES))
    for call in found.calls:
        assert call.name in NAMES
        assert isinstance(json.loads(call.arguments), dict)
    assert len({call.id for call in found.calls}) == len(found.calls)
    if not found.calls:
        assert found.content == text, "without a call, every character comes back"
    else:
        assert is_subsequence(found.content, text), "nothing is made up, nothing comes twice"


def is_subsequence(part: str, whole: str) -> bool:
    characters = iter(whole)
    return all(character in characters for character in part)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(OBJECTS, min_size=1, max_size=3),
    st.sampled_from([form for form in FORMATS.values() if form.written is not None and not form.tags]),
    st.lists(st.integers(0, 1000), max_size=8),
    st.booleans(),
)
def test_26_what_a_family_writes_is_read_back(
    objects: list[dict[str, Any]], form: CallFormat, places: list[int], certain: bool
) -> None:
    assert form.written is not None
    text = form.written.text([("f", json.dumps(value, ensure_ascii=False)) for value in objects])
    parts = merged(read(cut(text, places), Reading(calls=form, tools=NAMES, certain=certain)))
    assert all(isinstance(part, CallStart | CallArguments) for part in parts), "nothing of the format is content"
    joined = Message()
    joined.add(parts)
    assert [json.loads(call.arguments) for call in joined.calls] == objects
    for start, arguments in zip(parts[::2], parts[1::2], strict=True):
        assert isinstance(start, CallStart) and isinstance(arguments, CallArguments)
        assert start.index == arguments.index


def refuse(constant: str) -> None:
    raise ValueError(constant)


@settings(max_examples=300, deadline=None)
@given(OBJECTS, st.text(alphabet='{}[]",:\\ \n1e-.tnab', max_size=6), st.integers(0, 400))
def test_the_decoder_agrees_with_python(value: dict[str, Any], noise: str, place: int) -> None:
    """On objects, and on objects with something wrong in them (line breaks in strings apart, which it mends)."""
    text = json.dumps(value, ensure_ascii=place % 2 == 0)
    text = text[: place % (len(text) + 1)] + noise + text[place % (len(text) + 1) :]
    decoder, at = ObjectDecoder(), 0
    while at < len(text) and not decoder.failed and not decoder.complete:
        at = decoder.push(text, at)
    try:
        reader = json.JSONDecoder(strict=False, object_pairs_hook=list, parse_constant=refuse)
        truth = reader.raw_decode(text.lstrip(" \n"))[0] if text.lstrip(" \n")[:1] == "{" else None
    except ValueError:
        truth = None
    keys = [key for key, _ in truth or ()]
    if truth is None or len(set(keys)) < len(keys):
        assert not decoder.complete
    else:
        assert decoder.complete
        assert {key: json.loads(member) for key, member in decoder.members.items()} == json.loads(
            text[:at], strict=False
        )


TAGGED = """<tool_call>
<function=f>
<parameter=a>
[1, {"b": "}"}]
</parameter>
</function>
</tool_call>"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": "}"}]}}\n</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"a": [1, {"b": "}"}]}, "name": "f"}'),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": "{\\"a\\": [1, {\\"b\\": \\"}\\"}]}"}\n</tool_call>\n'),
        ("llama3", '{"name": "f", "parameters": {"a": [1, {"b": "}"}]}}'),
        ("llama3", '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": [1, {"b": "}"}]}}'),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, {"b": "}"}]}, "id": "a1B2c3D4e"}]'),
        ("mistral", '[TOOL_CALLS][{"arguments": {"a": [1, {"b": "}"}]}, "name": "f"}]'),
        ("mistral_args", '[TOOL_CALLS]f[ARGS]{"a": [1, {"b": "}"}]}'),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": [1, {"b": "}"}]}'),
        ("phi", '<|tool_call|>[{"name": "f", "arguments": {"a": [1, {"b": "}"}]}}]<|/tool_call|>'),
        ("phi", 'functools[{"name": "f", "arguments": {"a": [1, {"b": "}"}]}}]'),
        ("phi", '<|tool_call|>{"type": "function", "function": {"name": "f", "arguments": {"a": [1, {"b": "}"}]}}}'),
        ("mistral", '[TOOL_CALLS]f{"a": [1, {"b": "}"}]}'),
        ("gemma", "<start_function_call>call:f{a:[1,{b:<escape>}<escape>}]}<end_function_call>"),
        ("qwen_tags", TAGGED),
        ("qwen_tags", TAGGED.removeprefix("<tool_call>\n")),
    ],
)
def test_26_each_family_as_models_write_it(name: str, text: str) -> None:
    truth = ("f", {"a": [1, {"b": "}"}]})
    assert calls(text, FORMATS[name]) == ("", [truth])
    if name != "llama3":
        assert calls("One moment.\n" + text, FORMATS[name]) == ("One moment.", [truth])


def test_26_parallel_calls() -> None:
    f, g = '{"name": "f", "arguments": {"a": 1}}', '{"name": "tide_of", "arguments": {}}'
    both = [("f", {"a": 1}), ("tide_of", {})]
    for name, text in (
        ("hermes", f"<tool_call>\n{f}\n</tool_call>\n<tool_call>\n{g}\n</tool_call>"),
        ("mistral", f"[TOOL_CALLS] [{f}, {g}]"),
        ("mistral_args", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]tide_of[ARGS]{}'),
        ("phi", f"<|tool_call|>[{f},{g}]<|/tool_call|>"),
        ("phi", f"<|tool_call|>{f}<|/tool_call|><|tool_call|>{g}<|/tool_call|>"),
        ("llama3", f"{f}; {g}"),
        ("gemma", "<start_function_call>call:f{a:1}<end_function_call><start_function_call>call:tide_of{}"),
    ):
        assert calls(text, FORMATS[name]) == ("", both), name
        assert calls(text, FORMATS[name], one=True) == ("", both[:1]), name


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "f", "arguments": {"a": oops}}\n</tool_call>',
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": 1',
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {}, "mood": "good"}\n</tool_call>',
        "<tool_call>\n</tool_call>",
        "A tag such as <tool_call> is no call, nor is </tool_call>. <tool",
        " \n",
        "",
    ],
)
def test_26_what_cannot_be_parsed_is_content(text: str) -> None:
    assert calls(text) == (text, [])


def test_26_content_around_calls() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert calls(f"Before.\n\n{call}\n\nAfter. ") == ("Before.\n\nAfter. ", [("f", {})])
    assert calls(f"\n{call}\nAfter.") == ("After.", [("f", {})])
    assert calls(f"<tool_call> oh {call}") == ("<tool_call> oh", [("f", {})])
    assert calls(call + "}") == ("}", [("f", {})])


LOOP = {"a": {"anyOf": [{"$ref": "#/properties/a"}, {"$ref": "#/properties/b"}] * 30}, "b": {"$ref": "#/properties/a"}}


def test_26_parameters_between_tags_are_what_their_schema_says() -> None:
    body = "<parameter=a>\n3\n</parameter>\n<parameter=b>\n3\n</parameter>\n<parameter=c>x\ny <b></parameter>"
    text = f"<tool_call>\n<function=f>\n{body}\n</function>\n</tool_call>"
    assert calls(text, FORMATS["qwen_tags"]) == ("", [("f", {"a": 3, "b": "3", "c": "x\ny <b>"})])
    assert calls("<function=tide_of>\n</function>", FORMATS["qwen_tags"]) == ("", [("tide_of", {})])
    optional = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    properties = {
        "n": optional,
        "m": optional,
        "s": {"type": ["string", "null"]},
        "r": {"$ref": "#/$defs/x"},
        "e": {"enum": ["1"]},
    }
    tools = {"f": {"properties": properties, "$defs": {"x": {"type": "object"}}}}
    said = [("n", "3"), ("m", "None"), ("s", "null"), ("r", '{"y": [1]}'), ("e", "1"), ("other", "1")]
    text = "<function=f>" + "".join(f"<parameter={name}>{value}</parameter>" for name, value in said) + "</function>"
    (call,) = message(text, Reading(calls=FORMATS["qwen_tags"], tools=tools)).calls
    assert json.loads(call.arguments) == {"n": 3, "m": None, "s": None, "r": {"y": [1]}, "e": "1", "other": "1"}
    for wrong in (
        1,
        [1],
        {"a": 1},
        {"a": {"type": 1, "anyOf": 1, "enum": 1}},
        {"a": {"type": [{}], "$ref": "#/a/b"}},
        LOOP,
    ):
        # Neither what is no schema nor one that refers to itself a thousand times may do harm.
        odd = Reading(calls=FORMATS["qwen_tags"], tools={"f": {"properties": wrong}})
        assert message("<function=f><parameter=a>1</parameter></function>", odd).calls[0].arguments == '{"a": "1"}'
    broken = "<tool_call>\n<function=f>\noops\n</function>\n</tool_call>"
    assert calls(broken, FORMATS["qwen_tags"]) == (broken, [])


def test_26_line_breaks_inside_strings_are_mended() -> None:
    assert calls('<tool_call>{"name": "f", "arguments": {"code": "a\n\tb"}}</tool_call>')[1] == [
        ("f", {"code": "a\n\tb"})
    ]


def test_26_a_call_that_a_grammar_enforces_goes_out_while_it_is_written() -> None:
    reader = CallReader(HERMES, NAMES, certain=True)
    assert reader.push('<tool_call>\n{"name": "f", "arg') == []
    start, first = reader.push('uments": {"a": "on')
    assert isinstance(start, CallStart) and start.name == "f" and first == CallArguments(0, '{"a": "on')
    assert reader.push('e"}}\n</tool_call>') == [CallArguments(0, 'e"}')]
    held = CallReader(HERMES, NAMES)
    assert held.push('<tool_call>\n{"name": "f", "arguments": {"a": "on') == []


def test_28_reasoning_is_told_apart() -> None:
    for text, opened in (("<think>\nWhy?\n</think>\n\nBecause.", False), ("Why?\n</think>\n\nBecause.", True)):
        found = message(text, Reading(marks=THINK, opened=opened))
        assert (found.reasoning, found.content) == ("Why?", "Because.")
    assert message("Because <think>.", Reading(marks=THINK)).content == "Because <think>."
    unfinished = message("<think>\nWhy? ", Reading(marks=THINK))
    assert (unfinished.reasoning, unfinished.content) == ("Why? ", "")
    both = message(
        'Hm.</think>\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        Reading(marks=THINK, opened=True, calls=HERMES, tools=NAMES),
    )
    assert (both.reasoning, both.content, len(both.calls)) == ("Hm.", "", 1)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.booleans())
def test_28_no_reasoning_is_lost(text: str, opened: bool) -> None:
    found = message(text, Reading(marks=THINK, opened=opened))
    rest = text.replace("<think>", "").replace("</think>", "")
    assert "".join((found.reasoning + found.content).split()).replace("<think>", "").replace("</think>", "") == (
        "".join(rest.split()).replace("<think>", "").replace("</think>", "")
    )


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("mistral_args", '{"x": "[TOOL_CALLS]f[ARGS]{}"}'),
        ("qwen_tags", ' {"x": "a <function=f></function> b"} '),
        ("llama3", '{"x": "<|python_tag|>{}", "name": "f"}'),
        ("hermes", '<tool_>{"name": "f", "arguments": {"a": 1}}'),
    ],
)
def test_content_that_excludes_calls_has_none_in_it(form: str, text: str) -> None:
    for size in (1, 2, 3, 7, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        told = Message()
        told.add(read(pieces, Reading(calls=FORMATS[form], tools=NAMES, certain=True, either=True)))
        assert (told.content, told.calls) == (text, [])


@pytest.mark.parametrize("form", [form for form in FORMATS.values() if form.written is not None], ids=lambda f: f.name)
def test_calls_that_exclude_content_are_read(form: CallFormat) -> None:
    assert form.written is not None
    arguments = "\n" if form.tags else "{}"
    text = "\n " + form.written.text([("f", arguments), ("tide_of", arguments)])
    told = message(text, Reading(calls=form, tools=NAMES, certain=True, either=True))
    assert ([call.name for call in told.calls], told.content) == (["f", "tide_of"], "")
