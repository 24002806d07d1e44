"""Whatever the schema: what random weights write under its grammar, and end by themselves, is valid JSON of it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema.validators import Draft202012Validator

from armillary.core.request import FinishReason
from armillary.runtime.sampler import Sampled, Sampler
from grammar_cells import Model, Way, constrained, make_model, request, run

Schema = dict[str, Any]
LIMIT = 150
LINKED: Schema = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["next"],
    "additionalProperties": False,
}
NAMES = ["a", "name", "größe", "x y", 'q"q', "two\nlines"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("byte"))


def _bounds(low: int, high: int, least: str, most: str) -> st.SearchStrategy[Schema]:
    return st.tuples(st.integers(low, high), st.integers(0, 6)).map(lambda b: {least: b[0], most: b[0] + b[1]})


def schemas() -> st.SearchStrategy[Schema]:
    """Schemas whose documents are short, so that most answers end by themselves."""
    constants = st.sampled_from(["", "red", "a\\b", "naïve 🙂", 0, -7, 2.5, True, None, [1, "x"], {"k": [None]}])
    scalars = st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}]),
        _bounds(0, 5, "minLength", "maxLength").map(lambda b: {"type": "string", **b}),
        st.sampled_from(["^[a-f]{2,5}$", "^(ab|cd)+x$", "^\\d{3}-\\d{2}$", "x{2}"]).map(
            lambda p: {"type": "string", "pattern": p, "maxLength": 9}
        ),
        st.sampled_from(["date", "uuid", "ipv4", "time"]).map(lambda f: {"type": "string", "format": f}),
        _bounds(-200, 200, "minimum", "maximum").map(lambda b: {"type": "integer", **b}),
        _bounds(-9, 9, "exclusiveMinimum", "maximum").map(
            lambda b: {"type": "number", **b, "maximum": b["maximum"] + 1}
        ),
        st.just({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}),
        st.lists(constants, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        constants.map(lambda value: {"const": value}),
    )
    return st.recursive(scalars, _compound, max_leaves=6)


def _compound(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    arrays = st.tuples(inner, _bounds(0, 2, "minItems", "maxItems")).map(
        lambda p: {"type": "array", "items": p[0], **p[1], "maxItems": min(3, p[1]["maxItems"])}
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    )
    objects = st.dictionaries(st.sampled_from(NAMES), inner, max_size=4).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties) or ["none"])).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required & set(properties)),
                "additionalProperties": False,
            }
        )
    )
    branches = st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
    linked = inner.map(lambda each: {"$defs": {"it": each}, "type": "array", "items": {"$ref": "#/$defs/it"}})
    return st.one_of(arrays, tuples, objects, branches, linked.map(lambda each: {**each, "maxItems": 2}))


def answers(model: Model, schema: Schema, way: Way = Way()) -> list[tuple[str, FinishReason]]:
    """What several requests under one schema write: greedy, and drawn twice."""
    root = _hoisted(schema)
    asked = [
        request(model, "greedy", constrained(model, "json_schema", root, temperature=0), limit=LIMIT),
        request(model, "drawn", constrained(model, "json_schema", root, temperature=1.0, n=2), limit=LIMIT),
    ]
    told = run(model, asked, way)
    assert not any(told.errors), told.errors
    return [(told.text(model, *key), finish) for key, finish in told.finish.items()]


def _hoisted(schema: Schema) -> Schema:
    """The schema with every `$defs` at its root, where references look for them."""
    found: Schema = {}

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict) or ("const" in value or "enum" in value):
            return value
        value = {key: walk(item) for key, item in value.items()}
        if defs := value.pop("$defs", None):
            name = f"it{len(found)}"
            found[name] = defs["it"]
            value["items"] = {"$ref": f"#/$defs/{name}"}
        return value

    root = walk(schema)
    return {**root, "$defs": found} if found else root


def check(model: Model, schema: Schema, way: Way = Way()) -> int:
    """Hold the answers under a schema to it; how many ended by themselves."""
    root = _hoisted(schema)
    validator = Draft202012Validator(root)
    ended = 0
    for text, finish in answers(model, schema, way):
        if finish is FinishReason.STOP:
            ended += 1
            value = json.loads(text)
            validator.validate(value)
            assert text == json.dumps(value, ensure_ascii=False) or any(
                mark in text for mark in ("\\u", "\\/", "e", "E", ".")
            )
        else:
            assert finish is FinishReason.LENGTH
    return ended


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(schema=schemas(), forced=st.booleans())
def test_what_ends_is_valid(model: Model, schema: Schema, forced: bool) -> None:
    check(model, schema, Way(forced=forced))


@pytest.mark.slow
@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(schema=schemas())
def test_what_ends_is_valid_for_many_schemas(model: Model, schema: Schema) -> None:
    check(model, schema)


def test_most_answers_end(model: Model) -> None:
    """The property above says something: schemas with short documents are written to their end."""
    person = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    assert check(model, person) == 3
    assert check(model, {"type": "string", "maxLength": 8}) == 3


@pytest.mark.parametrize(
    "schema", [{"type": "object"}, {}, {"type": "array", "items": {"type": "array"}}, LINKED], ids=str
)
def test_documents_without_bounds_are_valid_where_they_end(model: Model, schema: Schema) -> None:
    check(model, schema)


class Lawless(Sampler):
    """The broken variant: a sampler that forgets the masks."""

    def sample(self, logits: Any, rows: Any, masks: Any = None) -> Sampled:
        return super().sample(logits, rows, None)


def test_without_the_mask_the_property_fails(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armillary.runtime.executor.Sampler", Lawless)
    schema = {"type": "string", "maxLength": 3}
    with pytest.raises((AssertionError, ValueError, jsonschema.ValidationError)):
        for _ in range(5):
            texts = [text for text, _ in answers(model, schema)]
            for text in texts:
                Draft202012Validator(schema).validate(json.loads(text))
