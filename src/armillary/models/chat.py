"""Chat templates: from messages to the one text a model was trained to see.

The templates are Jinja, written for transformers; the environment here is the one that transformers gives
them (`apply_chat_template`), sandboxed the same way, so that a template writes the same text in both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils

from armillary.errors import ArmillaryError, Code

Message = Mapping[str, Any]
"""`role`, `content` (text, a list of text parts, or null), and what a tool round trip carries."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""A closed list: templates write roles between turn markers, so a free text there could write a marker."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that clients use for a message's reasoning. Templates read the first; gpt-oss templates the second."""


class ChatTemplate:
    """One model's chat template, or several under names (`default`, `tool_use`).

    Args:
        source: the template, or templates by name.
        named_tokens: `bos_token`, `eos_token`... as variables of the template.
    """

    def __init__(self, source: str | Mapping[str, str], named_tokens: Mapping[str, str]) -> None:
        self._sources = {"default": source} if isinstance(source, str) else dict(source)
        self._named_tokens = dict(named_tokens)

    @property
    def all_sources(self) -> str:
        """The text of all of its templates."""
        return "\n".join(self._sources.values())

    def source(self, tools: bool) -> str:
        """The template that applies, with tools or without."""
        chosen = self._sources.get("tool_use") if tools else None
        chosen = chosen if chosen is not None else self._sources.get("default")
        if chosen is None:
            raise ArmillaryError(
                Code.INVALID_CHECKPOINT,
                f"a model with several chat templates must have one named `default`, given {sorted(self._sources)}",
            )
        return chosen

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        guard: Callable[[str], str] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: at least one. A `developer` message becomes a `system` message where the template does
                not know the role. Text parts are joined by line breaks. Arguments of earlier tool calls, JSON
                text in OpenAI's form, reach the template as objects, which is what templates expect.
            tools: function schemas in OpenAI's form.
            guard: applied to every text of messages, tools and variables before the template sees it.
            variables: further variables of the template, such as `enable_thinking`.

        Raises:
            ArmillaryError: INVALID_REQUEST where a message is malformed or the template refuses the
                conversation; INVALID_CHECKPOINT where the template itself is malformed.
        """
        source = self.source(bool(tools))
        plain = _checked(messages, developer="developer" in source)
        try:
            given = {
                "messages": _guarded(_plain(plain), guard),
                "tools": _guarded(_plain(list(tools)), guard) if tools else None,
                "documents": None,
                **self._named_tokens,
                **_guarded(_plain(variables), guard),
                "add_generation_prompt": add_generation_prompt,
            }
        except RecursionError as error:
            raise ArmillaryError(Code.INVALID_REQUEST, "messages must not be nested this deeply", "messages") from error
        template = _compile(source)
        try:
            return template.render(given)
        except Exception as error:  # whatever a template does with these messages is about these messages
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"the model's chat template cannot write this conversation: {str(error) or type(error).__name__}",
                "messages",
            ) from error


def _checked(messages: Sequence[Message], developer: bool) -> list[dict[str, Any]]:
    """Messages in the form that templates expect."""
    if not messages:
        raise ArmillaryError(Code.INVALID_REQUEST, "messages must have at least one message, given none", "messages")
    return [_message(message, f"messages[{place}]", developer) for place, message in enumerate(messages)]


def _message(message: Message, where: str, developer: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{where} must be an object with role and content, given {message!r:.80}", where
        )
    role = message.get("role")
    if role not in ROLES:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{where}.role must be one of {', '.join(ROLES)}, given {role!r:.80}", f"{where}.role"
        )
    # Null is how OpenAI's API says "absent"; templates test for absence.
    result = {key: value for key, value in message.items() if value is not None}
    if role == "developer" and not developer:
        result["role"] = "system"
    if "content" in result:
        result["content"] = _text(result["content"], f"{where}.content")
    elif not result.get("tool_calls"):
        result["content"] = ""
    if "tool_calls" in result:
        result["tool_calls"] = _tool_calls(result["tool_calls"], f"{where}.tool_calls")
    reasoning = next((result[name] for name in _REASONING if name in result), None)
    if reasoning is not None:
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    return result


def _text(content: Any, where: str) -> str:
    """Content as one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{where} must be a text or a list of parts, given {content!r:.80}", where
        )
    texts: list[str] = []
    for place, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"{where}[{place}] must be of type text, given {kind!r:.80}: this model reads text only",
                f"{where}[{place}]",
            )
        texts.append(text)
    return "\n".join(texts)


def _tool_calls(calls: Any, where: str) -> list[Any]:
    """Tool calls with their arguments as objects, where they are JSON objects."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise ArmillaryError(Code.INVALID_REQUEST, f"{where} must be a list, given {calls!r:.80}", where)
    result: list[Any] = []
    for place, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise ArmillaryError(
                Code.INVALID_REQUEST, f"{where}[{place}] must have a function, given {call!r:.80}", f"{where}[{place}]"
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments)
            except (ValueError, RecursionError):
                parsed = None
            if isinstance(parsed, dict):
                function = {**function, "arguments": parsed}
        result.append({**call, "function": function})
    return result


def _plain(value: Any) -> Any:
    """The same data in plain JSON types, which have no methods that a template should not reach."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if callable(dump := getattr(value, "model_dump", None)):
        return _plain(dump())
    return f"<{type(value).__name__}>"


def _guarded(value: Any, guard: Callable[[str], str] | None) -> Any:
    """The same data with every text guarded, keys too."""
    if guard is None:
        return value
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, dict):
        return {_guarded(key, guard): _guarded(item, guard) for key, item in value.items()}
    if isinstance(value, list):
        return [_guarded(item, guard) for item in value]
    return value


# ---------------------------------------------------------------- the environment, as transformers has it


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote, for training masks. Here its body is just text."""

    tags = {"generation"}  # noqa: RUF012  jinja2 reads this off the class

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict(...)` for templates, without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` for templates, closed to names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace of a chat template cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"the chat template is not valid Jinja: {error}") from error
