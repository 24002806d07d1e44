"""What a compiler of grammars complains of, in words for whoever wrote the grammar.

llguidance tells where a grammar is wrong by an excerpt of it, and of some faults only the name of its own state.
"""

from __future__ import annotations

import re

_EMPTY = (
    "it allows no text at all: a rule or reference leads only to itself, or what must hold together excludes each other"
)
_COMPLEX = "it is too complex: it has too many ways to read one text, so make its rules or repetitions fewer or plainer"
_STATES = (
    ("NoExtension", _EMPTY),
    ("allows nothing", _EMPTY),
    ("TooComplex", _COMPLEX),
    ("lexer configuration", _COMPLEX),
)
"""What stands in a complaint that names a state of the compiler, and what that means for a grammar."""
_EXCERPT = re.compile(r"^\s*(\d+ \|.*|\^+)$|<non-verbose/>", re.MULTILINE)
_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_REGEX = re.compile(r'invalid regex (".*") \(in regex\): ', re.DOTALL)
_TOKEN = re.compile(r" \(at (\".*?\") \(.*\)\)$")


def refusal(problem: str, own: bool) -> str:
    """Why a grammar is refused, to go on after its name.

    Args:
        problem: what the compiler said.
        own: the text that was compiled is the client's, so that places in it mean something.
    """
    if found := re.search(r"Unimplemented keys: \[(.*?)\]", problem):
        keys = found[1].replace('"', "")
        return f"must do without the keyword {keys}, which cannot be enforced, so the request is refused"
    if "oneOf constraints are not supported" in problem:
        return (
            "must use the keyword oneOf only where no value fits two of its branches (give them different types or "
            "constants), or anyOf instead: it cannot be enforced otherwise, so the request is refused"
        )
    return f"cannot be enforced, so the request is refused: {in_words(problem, own)}"


def in_words(problem: str, own: bool = True) -> str:
    """A complaint without excerpts, names of states and names of types; `own` as of `refusal`."""
    for state, meaning in _STATES:
        if state in problem:
            return meaning
    if "the compiler broke" in problem:
        return "the compiler gave up on it; try it in smaller or plainer parts"
    text = _EXCERPT.sub("", problem)
    where = _PLACE.match(text)
    text = _PLACE.sub("", text, count=1)
    if regex := _REGEX.search(text):
        what = re.search(r"^error: (.*)", text, re.MULTILINE)
        said = what[1] if what else text[regex.end() :]
        text = f"the regular expression {regex[1][:200]}: {said}" if own else said
    elif found := re.search(r"regex parse error:.*^error: (.*)", text, re.MULTILINE | re.DOTALL):
        text = f"a pattern: {found[1]}"
    text = re.sub(
        r"lookarounds not supported yet; \w+ in regex /.*/", "anchors and look-around are not supported", text
    )
    text = re.sub(r"^lexer error", "a character with which nothing can begin here, or a text that does not end", text)
    text = _TOKEN.sub(r", at \1", " ".join(text.split()))[:600] or "no reason was given"
    return f"line {where[1]}, column {where[2]}: {text}" if where and own else text
