"""From another dialect's request to the chat request that it amounts to, with errors in the other dialect's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from armillary.errors import ArmillaryError
from armillary.server.body import check_body
from armillary.server.chat import ChatBody
from armillary.server.reply_plan import ReplyPlan
from armillary.server.served import Served
from armillary.server.tools import offer


def chat_body(values: Mapping[str, Any]) -> ChatBody:
    """The checked body of a chat request.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming the option as chat does; see `renamed`.
    """
    return check_body(ChatBody, values)


def prompt_tokens(body: ChatBody, served: Served) -> list[int]:
    """The prompt of a chat request, of any length.

    Raises:
        ArmillaryError: INVALID_REQUEST.
    """
    offered = offer(body.tools, body.tool_choice, body.parallel_tool_calls)
    plan = ReplyPlan(served.preparer.replies, served.tokenizer, offered, None)
    tools = None if offered is None else offered.for_template()
    variables = plan.variables(body.chat_template_kwargs, body.reasoning_effort)
    return served.preparer.conversation(body.template_messages(), tools, variables)


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Errors raised within name options as the client called them.

    Args:
        names: how chat calls an option, or a part of its path -> how the dialect does; the first that fits counts.
    """
    try:
        yield
    except ArmillaryError as error:
        if error.param is not None and error.param.startswith("messages"):
            error.param = "messages"  # places in the dialect's own list are other ones
        for ours, theirs in names.items():
            if error.param is not None and ours in error.param:
                if error.message.startswith(ours):
                    error.message = theirs + error.message.removeprefix(ours)
                error.param = error.param.replace(ours, theirs, 1)
                break
        raise
