"""Rules for arguments between tags (`armillary.models.calls.tags`): parameters in the order of their schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.models.calls.tags import kinds_of
from armillary.runtime.grammar import JSON_STYLE

_END = "\n</parameter>\n"
_SAYS_NOTHING = frozenset(
    {"type", "title", "description", "default", "examples", "anyOf", "oneOf", "$ref", "deprecated"}
)
"""Keywords of a string's schema that any string obeys, or that say which types there may be."""


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
    properties = schema.get("properties")
    needed = schema.get("required")
    required = [key for key in needed if isinstance(key, str)] if isinstance(needed, list) else []
    if not isinstance(properties, Mapping):
        if required:
            raise _refusal(name, f"required {required[0]!r}, which has no schema")
        return f"(PARAMETER {prefix}text)*"
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    terms = []
    for number, key in enumerate(dict.fromkeys([*properties, *required])):
        if not key or any(character in "<>" or character.isspace() for character in key):
            raise _refusal(name, f"{key!r:.60}, which cannot be written as a tag")
        value = _value(properties.get(key), schema, shared, f"{prefix}text", name)
        rules.append(f"{prefix}part{number}: {json.dumps(f'<parameter={key}>' + chr(10), ensure_ascii=False)} {value}")
        terms.append(f"{prefix}part{number}" + ("" if key in required else "?"))
    return " ".join(terms)


def _value(schema: Any, root: Mapping[str, Any], shared: Mapping[str, Any], text: str, name: str) -> str:
    """What stands for one value and the tag after it."""
    kinds = kinds_of(schema, root)
    if kinds and "string" not in kinds:
        own = {**shared, **schema, "x-guidance": JSON_STYLE}
        return f"%json {json.dumps(own, ensure_ascii=False)} {json.dumps(_END)}"
    if isinstance(schema, Mapping):
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(values, list):
            options = " | ".join(json.dumps(value, ensure_ascii=False) for value in values if isinstance(value, str))
            return f"({options}) {json.dumps(_END)}"
        for keyword in schema:
            if keyword not in _SAYS_NOTHING:
                raise _refusal(name, f"the keyword {keyword!r:.60} on a string")
    return text


def _refusal(name: str, what: str) -> ArmillaryError:
    return ArmillaryError(
        Code.INVALID_REQUEST,
        f"the parameters of tool {name!r} must be what can be enforced between tags, as this model writes them, given "
        f"{what}",
        "tools",
    )
