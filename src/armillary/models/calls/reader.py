"""Tool calls in text that arrives in pieces: one reader for every format.

What it yields, joined, does not depend on how the text was cut into pieces, because it decides at characters.
Text that turns out to be no call comes back as content, all of it, once. What is swallowed is the format's
own: opening and closing texts of calls that were understood, and the white space around them.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from armillary.models.calls.decoder import ObjectDecoder
from armillary.models.calls.format import CallFormat
from armillary.models.calls.tags import TagDecoder
from armillary.models.reply import CallArguments, CallStart, Content, ReplyPart

_SPACE = " \t\n\r"
_ARGUMENTS = ("arguments", "parameters")
_MEMBERS = frozenset({"name", *_ARGUMENTS, "type", "id", "function"})
_MAX_HEADER = 200
_LETTERS = string.ascii_letters + string.digits


def new_call_id(length: int | None = None) -> str:
    """An id that no other call has: `call_…`, or so many letters and digits."""
    if length is None:
        return f"call_{secrets.token_hex(12)}"
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


class CallReader:
    """Splits the content of one answer into text and calls.

    Args:
        form: how this model writes calls.
        tools: name of each tool that the request offers -> schema of its arguments. A call of any other name is
            no call.
        certain: a grammar makes sure that every call is well-formed. Then a call goes out while it is being
            written. Otherwise it is held back until it is complete, since what has gone out cannot come back
            as content.
        enforced: a grammar rules over calls, although a stop may cut one: what it admits is read, however deep,
            long or repeated.
        one: stop after the first call.
        either: there are calls or there is content, never both, so that content has no call in it.

    Attributes:
        calls: how many calls have begun.
        done: `one`, and that one is complete; what is pushed from now on is dropped.
    """

    def __init__(
        self,
        form: CallFormat,
        tools: Mapping[str, Mapping[str, Any]],
        certain: bool = False,
        one: bool = False,
        either: bool = False,
        enforced: bool = False,
        new_id: Callable[[int | None], str] = new_call_id,
    ) -> None:
        self._form = form
        self._tools = tools
        self._certain = certain
        self._bounded = not (certain or enforced)
        self._one = one
        self._either = either
        self._new_id = new_id
        self._state: Callable[[str, int], int] = self._text
        self._parts: list[ReplyPart] = []
        self._space = ""
        """White space whose fate is open: it is content unless a call stands beside it."""
        self._held = ""
        """What is content if no call comes of it."""
        self._said = False
        """Whether there has been content."""
        self._after_call = False
        self._in_list = False
        self._may_close = False
        self._decoder: ObjectDecoder | TagDecoder = ObjectDecoder(form.notation)
        self._header = ""
        self._name: str | None = None
        self._sent: int | None = None
        """Characters of the arguments that have gone out; None before the call has begun."""
        self.calls = 0
        self.done = False

    def push(self, text: str) -> list[ReplyPart]:
        """The parts that are certain now."""
        at = 0
        while at < len(text) and not self.done:
            at = self._state(text, at)
        return self._taken()

    def finish(self) -> list[ReplyPart]:
        """The rest, at the end of the answer."""
        if not self.done:
            if self._sent is None:
                self._say(self._held)
            self._held = ""
            if not self._after_call:
                self._say_space()
        return self._taken()

    def _taken(self) -> list[ReplyPart]:
        parts, self._parts = self._parts, []
        return parts

    # ---------------------------------------------------------------- content

    def _text(self, text: str, at: int) -> int:
        """Look for a call that begins. Here `_held` is the beginning of an opening text, at most."""
        if self._form.bare and not self._said and not self._held and not self._after_call:
            start = _skip(text, at)
            if start == len(text) or text[start] in ("{[" if self._form.listed else "{"):
                self._space += text[at:start]
                if start < len(text):
                    self._begin("")
                return start
        joined, known = self._held + text[at:], len(self._held)
        if self._either and not self._after_call and (self._said or not self._may_begin(joined.lstrip(_SPACE))):
            self._held = ""
            self._say(joined)
            return len(text)
        found = _opening(self._form.opens).search(joined)
        if found is not None:
            self._say(joined[: found.start()])
            self._begin(found[0])
            return at + found.end() - known
        keep = _may_open(joined, self._form.opens)
        self._held = joined[len(joined) - keep :]
        self._say(joined[: len(joined) - keep])
        return len(text)

    def _may_begin(self, text: str) -> bool:
        """Whether a call stands at the beginning of a text, or may come to stand there."""
        return any(text.startswith(opening) or opening.startswith(text) for opening in self._form.opens)

    def _say(self, text: str) -> None:
        """Content, but for white space at its end."""
        body = text.rstrip(_SPACE)
        if body:
            if self._said or not self._after_call:  # what a call leaves at the very beginning is no content
                body = self._space + body
            self._parts.append(Content(body))
            self._space, self._said, self._after_call = "", True, False
        self._space += text[len(text.rstrip(_SPACE)) :]

    def _say_space(self) -> None:
        if self._space:
            self._parts.append(Content(self._space))
            self._space = ""

    # ---------------------------------------------------------------- a call

    def _begin(self, opening: str) -> None:
        self._held = opening
        self._header = ""
        self._name = None
        self._state = self._lead

    def _lead(self, text: str, at: int) -> int:
        """Between an opening text and an object: white space, the bracket of a list, a header."""
        character = text[at]
        if character == "{" and not self._form.tags:
            return self._object_begins(at)
        if character in _SPACE and not self._header:
            pass
        elif character == "[" and self._form.listed and not self._in_list and not self._header:
            self._in_list = True
        elif self._form.header and not self._in_list and len(self._header) < _MAX_HEADER and character not in _SPACE:
            self._header += character
        else:
            return self._no_call(at)
        self._held += character
        if self._form.tags and character == ">":
            return self._object_begins(at + 1)
        return at + 1

    def _object_begins(self, at: int) -> int:
        form = self._form
        if self._header:
            match = re.fullmatch(form.header, self._header)
            if match is None or match["name"] not in self._tools:
                return self._no_call(at)
            self._name = match["name"]
            if form.tags:
                self._decoder = TagDecoder(self._tools[self._name], self._bounded)
            else:
                self._decoder = ObjectDecoder.of_member("arguments", form.notation, self._bounded)
        elif form.header and not form.listed:
            return self._no_call(at)
        else:
            self._decoder = ObjectDecoder(form.notation, self._bounded)
        self._state = self._object
        return at

    def _object(self, text: str, at: int) -> int:
        """A call with its name inside, or, after a header, the arguments alone."""
        decoder = self._decoder
        end = decoder.push(text, at)
        self._held += text[at:end]
        if decoder.failed or (decoder.key is not None and decoder.key not in _MEMBERS):
            return self._no_call(end)
        if self._name is None and "name" in decoder.members:
            name = json.loads(decoder.members["name"])
            if not isinstance(name, str) or name not in self._tools:
                return self._no_call(end)
            self._name = name
        if self._certain and decoder.key in _ARGUMENTS and self._name is not None and decoder.value[:1] == "{":
            self._send(self._name, decoder.value)
        if decoder.complete or (self._header and decoder.members):
            return self._object_ends(end)
        return end

    def _object_ends(self, at: int) -> int:
        call = _call(self._decoder.members, self._name)
        if call is None or call[0] not in self._tools:
            return self._no_call(at)
        self._send(*call)
        self._sent = None
        self._held = self._space = ""
        self._after_call = self._may_close = True
        self._state = self._after
        self.done = self._one
        return at

    def _send(self, name: str, arguments: str) -> None:
        """Let a call out, as far as its arguments are known."""
        if self._sent is None:
            self._parts.append(CallStart(self.calls, self._new_id(self._form.id_length), name))
            self.calls += 1
            self._sent = 0
        if len(arguments) > self._sent:
            self._parts.append(CallArguments(self.calls - 1, arguments[self._sent :]))
            self._sent = len(arguments)

    def _no_call(self, at: int) -> int:
        """What was held is content, unless it has gone out as a call already."""
        held, self._held = self._held, ""
        if self._sent is None:
            self._say(held)
        self._sent = None
        self._in_list = False
        self._state = self._text
        return at

    def _after(self, text: str, at: int) -> int:
        """After a call: what closes it, or leads to the next one."""
        form, character = self._form, text[at]
        if character in _SPACE and not self._held:
            self._space += character
            return at + 1
        joined = self._held + character
        closes = form.closes if self._may_close else ()
        separators = form.separators if self._in_list or not form.listed else ()
        ends = ("]",) if self._in_list else ()
        if joined in form.opens or joined in separators:
            self._in_list = self._in_list and joined in separators
            self._begin(joined)
        elif joined in closes or joined in ends:
            self._in_list = False
            self._may_close = joined in ends
            self._held = self._space = ""
        elif any(option.startswith(joined) for option in (*form.opens, *separators, *closes, *ends)):
            self._held = joined
        else:
            self._in_list = False
            self._state = self._text
            return at
        return at + 1


def _call(members: dict[str, str], name: str | None) -> tuple[str, str] | None:
    """Name and arguments of a complete call, or None where its members are not those of a call."""
    if "function" in members and name is None:  # {"type": "function", "function": {...}}
        inner = ObjectDecoder()
        at, text = 0, members["function"]
        while at < len(text) and not inner.failed:
            at = inner.push(text, at)
        return _call(inner.members, None) if inner.complete and "function" not in inner.members else None
    if name is None:
        name = json.loads(members.get("name", "null"))
    given = [members[key] for key in _ARGUMENTS if key in members]
    if not isinstance(name, str) or len(given) > 1 or "function" in members:
        return None
    arguments = given[0] if given else "{}"
    if arguments == "null":
        arguments = "{}"
    elif arguments[0] == '"':  # an object inside a string
        arguments = json.loads(arguments)
        decoder, at = ObjectDecoder(), 0
        while at < len(arguments) and not decoder.failed and not decoder.complete:
            at = decoder.push(arguments, at)
        return (name, arguments) if decoder.complete and not arguments[at:].strip() else None
    return (name, arguments) if arguments[0] == "{" else None


@lru_cache(maxsize=64)
def _opening(opens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, opens)) or r"(?!)")


def _may_open(text: str, opens: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins an opening text."""
    longest = max(map(len, opens), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[len(text) - length :]
        if any(opening.startswith(end) for opening in opens):
            return length
    return 0


def _skip(text: str, at: int) -> int:
    """The place of the first character from `at` on that is not white space."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
