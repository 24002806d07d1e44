"""Rules for arguments between tags (`armillary.models.calls.tags`): parameters in the order of their schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.models.calls.tags import kinds_of
from armillary.runtime.grammar import JSON_STYLE

_END = "\n</parameter>\n"
_SAYS_NOTHING = frozenset({"type", "title", "description", "default", "examples", "deprecated"})
"""Keywords that any string obeys, or that say which types there may be."""
_NARROWS = ("enum", "const", "anyOf", "oneOf", "$ref")
"""Keywords of a string's schema that can be enforced, one at a time."""
_OVER_ALL = frozenset(
    {
        "$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "not", "if", "enum", "const", "patternProperties",
        "propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies",
        "unevaluatedProperties",
    }
)  # fmt: skip
"""Keywords that say something about the parameters together, which rules for one after another do not."""


def tagged_arguments(rules: list[str], prefix: str, name: str, schema: Mapping[str, Any]) -> str:
    """Add rules for the parameters of one tool; returns what stands for all of them.

    Args:
        prefix: of the names of rules; no other tool's begins so.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming what cannot be enforced.
    """
    rules.append(f"{prefix}text[suffix={json.dumps(_END)}]: TAGGED")
    if not any(rule.startswith("TAGGED:") for rule in rules):
        rules.append(r"TAGGED: /(?s:.*)/ & ~/(?s:.*<\/parameter>.*)/")
        rules.append(r"PARAMETER: /<parameter=[a-zA-Z0-9_.-]{1,64}>\n/")
    for keyword in schema:
        if keyword in _OVER_ALL:
            raise _refusal(name, f"the keyword {keyword!r} over all of them")
    others = schema.get("additionalProperties", True)
    free = others is True or others == {}
    properties = schema.get("properties")
    needed = schema.get("required")
    required = [key for key in needed if isinstance(key, str)] if isinstance(needed, list) else []
    declared = properties if isinstance(properties, Mapping) else {}
    undeclared = next((key for key in required if key not in declared), None)
    if undeclared is not None and (properties is not declared or not free):
        raise _refusal(name, f"required {undeclared!r:.60}, which has no schema")
    if properties is not declared:
        if not free and others is not False:
            raise _refusal(name, "additionalProperties without properties")
        return f"(PARAMETER {prefix}text)*" if free else ""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    terms = []
    for number, key in enumerate(dict.fromkeys([*declared, *required])):
        if not key or any(character in "<>" or character.isspace() for character in key):
            raise _refusal(name, f"{key!r:.60}, which cannot be written as a tag")
        value = _value(declared.get(key, True), schema, shared, f"{prefix}text", name)
        rules.append(f"{prefix}part{number}: {json.dumps(f'<parameter={key}>' + chr(10), ensure_ascii=False)} {value}")
        terms.append(f"{prefix}part{number}" + ("" if key in required else "?"))
    return " ".join(terms)


def _value(schema: Any, root: Mapping[str, Any], shared: Mapping[str, Any], text: str, name: str) -> str:
    """What stands for one value and the tag after it."""
    kinds = kinds_of(schema, root)
    if kinds and "string" not in kinds:
        own = {**shared, **schema, "x-guidance": JSON_STYLE}
        return f"%json {json.dumps(own, ensure_ascii=False)} {json.dumps(_END)}"
    words = _words(schema, root, name, frozenset())
    if words is None:
        return text
    if not words:
        raise _refusal(name, "a parameter for which there is no value")
    options = " | ".join(json.dumps(word, ensure_ascii=False) for word in dict.fromkeys(words))
    return f"({options}) {json.dumps(_END)}"


def _words(schema: Any, root: Mapping[str, Any], name: str, followed: frozenset[str]) -> list[str] | None:
    """The texts that a schema allows, `null` for null; None: any text. What is neither is not written.

    Args:
        followed: references that lead here.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming what cannot be enforced on a text.
    """
    if schema is True:
        return None
    if schema is False:
        return []
    if not isinstance(schema, Mapping):
        raise _refusal(name, f"{schema!r:.60} instead of a schema")
    kinds = kinds_of(schema, root)
    if kinds and "string" not in kinds:
        return ["null"] if "null" in kinds else []
    for keyword in schema:
        if keyword not in _SAYS_NOTHING and keyword not in _NARROWS:
            raise _refusal(name, f"the keyword {keyword!r:.60} on a string")
    narrows = [keyword for keyword in _NARROWS if keyword in schema]
    if len(narrows) > 1 or (narrows and narrows[0] not in ("enum", "const") and "type" in schema):
        raise _refusal(
            name, f"the keyword {narrows[0]!r} on a string beside {'type' if not narrows[1:] else narrows[1]!r}"
        )
    match narrows:
        case []:
            return None
        case ["const"]:
            return _said([schema["const"]], kinds, name)
        case ["enum"] if isinstance(schema["enum"], list):
            return _said(schema["enum"], kinds, name)
        case ["$ref"]:
            reference = schema["$ref"]
            return (
                []
                if reference in followed
                else _words(_target(reference, root, name), root, name, followed | {reference})
            )
        case ["anyOf" | "oneOf" as keyword] if isinstance(schema[keyword], list):
            each = [_words(option, root, name, followed) for option in schema[keyword]]
            known = [word for words in each if words is not None for word in words]
            if keyword == "oneOf" and (
                each.count(None) > 1 or len(set(known)) < len(known) or (None in each and set(known) - {"null"})
            ):
                raise _refusal(name, "the keyword 'oneOf' where a text fits two of its branches")
            return None if None in each else known
    raise _refusal(name, f"the keyword {narrows[0]!r} without a list")


def _said(values: Sequence[Any], kinds: set[str], name: str) -> list[str]:
    """The texts among some values, as they stand between tags."""
    for value in values:
        if isinstance(value, str) and _END.strip() in value:
            raise _refusal(name, f"{value!r:.60}, which ends a parameter")
    texts = [value for value in values if isinstance(value, str)]
    return texts + (["null"] if "null" in kinds and None in values else [])


def _target(reference: Any, root: Mapping[str, Any], name: str) -> Any:
    """What a reference refers to."""
    place: Any = root
    steps = reference[2:].split("/") if isinstance(reference, str) and reference.startswith("#/") else [""]
    for step in steps:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, Mapping) or step not in place:
            raise _refusal(name, f"the reference {reference!r:.60}, which leads nowhere")
        place = place[step]
    return place


def _refusal(name: str, what: str) -> ArmillaryError:
    return ArmillaryError(
        Code.INVALID_REQUEST,
        f"the parameters of tool {name!r} must be what can be enforced between tags, as this model writes them, given "
        f"{what}",
        "tools",
    )
