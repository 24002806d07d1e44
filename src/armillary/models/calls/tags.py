"""Arguments between tags, one parameter after another, decoded as they arrive into the JSON of an object.

Values stand there as plain text, so what they are (a number, a text that looks like one) is known only from the
schema of the tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from armillary.models.calls.decoder import ObjectDecoder

_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>")
_END_OF_VALUE = "</parameter>"
_END = "</function>"
_MAX_TAG = 300
_WORDS = {"True": "true", "False": "false", "None": "null"}


class TagDecoder:
    """Parameters up to `</function>`. The same interface as `ObjectDecoder.of_member`.

    Args:
        schema: of the arguments.
        bounded: as of `ObjectDecoder`. Off, the text is a grammar's: a value ends on a line of its own, so that JSON
            may have `</parameter>` in its strings, and of a parameter that comes twice the last value counts.
    """

    def __init__(self, schema: Mapping[str, Any], bounded: bool = True) -> None:
        self._schema = schema
        self._bounded = bounded
        self._end_of_value = _END_OF_VALUE if bounded else "\n" + _END_OF_VALUE
        properties = schema.get("properties")
        self._properties: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        self._run = ""
        """What came since the last tag that is complete."""
        self._name: str | None = None
        self._values: dict[str, str] = {}
        self.complete = False
        self.failed = False
        self.members: dict[str, str] = {}
        self.key: str | None = None
        self.value = ""

    def push(self, text: str, at: int = 0) -> int:
        """Take characters from `text[at:]`, to the end of a tag at most; the place of the first that was not taken."""
        stop = text.find(">", at) + 1 or len(text)
        if self._name is not None:
            self._run += text[at:stop]
            if self._run.endswith(self._end_of_value):
                self._values[self._name] = self._typed(self._name, self._run.removesuffix(_END_OF_VALUE))
                self._name, self._run = None, ""
            return stop
        while at < stop:
            too_long = self._bounded and len(self._run) > _MAX_TAG
            if (self._run.strip() == "" and text[at] not in " \t\r\n<") or too_long:
                self.failed = True
                return at
            self._run += text[at]
            at += 1
        if self._run.endswith(">"):
            self._tag()
        return at

    def _tag(self) -> None:
        parameter = _PARAMETER.fullmatch(self._run)
        if parameter is not None and not (self._bounded and parameter[1] in self._values):
            self._name, self._run = parameter[1], ""
        elif self._run.strip() == _END:
            self.complete = True
            pairs = [f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in self._values.items()]
            self.members["arguments"] = "{" + ", ".join(pairs) + "}"
        else:
            self.failed = True

    def _typed(self, name: str, text: str) -> str:
        """A value as JSON text: a string, unless its schema allows other kinds and it can be read as one of those."""
        text = text.removeprefix("\n").removesuffix("\n")
        kinds = kinds_of(self._properties.get(name), self._schema)
        word = _WORDS.get(text.strip(), text)
        if kinds - {"string"} and ("string" not in kinds or ("null" in kinds and word == "null")):
            value = self._value(word)
            if value is not None:
                return value
        return json.dumps(text, ensure_ascii=False)

    def _value(self, text: str) -> str | None:
        """The text as that of one JSON value; None where it is none."""
        decoder, whole, at = ObjectDecoder.of_member("value", bounded=self._bounded), text + "}", 0
        while at < len(whole) and not (decoder.failed or decoder.complete):
            at = decoder.push(whole, at)
        alone = decoder.complete and at == len(whole) and len(decoder.members) == 1
        return decoder.members["value"].strip() if alone else None


def kinds_of(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows, as far as it says so; empty where it does not.

    Args:
        root: the schema that references in it refer to.
    """
    return _kinds(schema, root, set())


def _kinds(schema: Any, root: Mapping[str, Any], followed: set[str]) -> set[str]:
    """The same.

    Args:
        followed: references that were followed already; each is followed once.
    """
    if not isinstance(schema, Mapping):
        return set()
    kinds = schema.get("type")
    found = {kind for kind in ([kinds] if isinstance(kinds, str) else _list(kinds)) if isinstance(kind, str)}
    if kinds is None:
        values = [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
        found |= {_kind_of(value) for value in values}
    for key in ("anyOf", "oneOf", "allOf"):
        for option in _list(schema.get(key)):
            found |= _kinds(option, root, followed)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/") and reference not in followed:
        followed.add(reference)
        place: Any = root
        for step in reference[2:].split("/"):
            place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
        found |= _kinds(place, root, followed)
    return found


def _list(value: Any) -> list[Any]:
    """A list, or an empty one: schemas are what clients send, right or wrong."""
    return value if isinstance(value, list) else []


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "string"
    return "null" if value is None else "other"
