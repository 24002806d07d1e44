"""Arguments between tags, one parameter after another, decoded as they arrive into the JSON of an object.

Values stand there as plain text, so what they are (a number, a text that looks like one) is known only from the
schema of the tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>")
_END_OF_VALUE = "</parameter>"
_END = "</function>"
_MAX_TAG = 300
_WORDS = {"True": "true", "False": "false", "None": "null"}


class TagDecoder:
    """Parameters up to `</function>`. The same interface as `ObjectDecoder.of_member`.

    Args:
        schema: of the arguments.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._properties: Mapping[str, Any] = schema.get("properties") or {}
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
            if self._run.endswith(_END_OF_VALUE):
                self._values[self._name] = self._typed(self._name, self._run.removesuffix(_END_OF_VALUE))
                self._name, self._run = None, ""
            return stop
        while at < stop:
            if (self._run.strip() == "" and text[at] not in " \t\r\n<") or len(self._run) > _MAX_TAG:
                self.failed = True
                return at
            self._run += text[at]
            at += 1
        if self._run.endswith(">"):
            self._tag()
        return at

    def _tag(self) -> None:
        parameter = _PARAMETER.fullmatch(self._run)
        if parameter is not None and parameter[1] not in self._values:
            self._name, self._run = parameter[1], ""
        elif self._run.strip() == _END:
            self.complete = True
            pairs = [f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in self._values.items()]
            self.members["arguments"] = "{" + ", ".join(pairs) + "}"
        else:
            self.failed = True

    def _typed(self, name: str, text: str) -> str:
        """A value as JSON text: a string, unless its schema is that of something else and it can be read so."""
        text = text.removeprefix("\n").removesuffix("\n")
        schema = self._properties.get(name)
        kinds = schema.get("type") if isinstance(schema, Mapping) else None
        if kinds is not None and "string" not in ([kinds] if isinstance(kinds, str) else kinds):
            try:
                return json.dumps(
                    json.loads(_WORDS.get(text.strip(), text), parse_constant=_no_number), ensure_ascii=False
                )
            except (ValueError, RecursionError):
                pass
        return json.dumps(text, ensure_ascii=False)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
