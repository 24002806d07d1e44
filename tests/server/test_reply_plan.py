"""How a reply is to be read follows from what its grammar enforces."""

from __future__ import annotations

from pathlib import Path

from armillary.models.calls.choose import FORMATS, ReplyFormat
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.grammar_reply import WantedContent
from armillary.runtime.sampling import SamplingParams
from armillary.server.reply_plan import ReplyPlan
from armillary.server.tools import Function, Tool, offer
from server.scripted import write_tokenizer


def test_what_a_grammar_makes_calls_or_content_is_read_as_either(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    replies = ReplyFormat(FORMATS["mistral_args"], tools="variable")
    json = WantedContent("json_object", None, "response_format")
    tools, strict = ([Tool(type="function", function=Function(name="f", strict=yes))] for yes in (None, True))
    for given, content, either in (
        (tools, json, True),
        (strict, json, True),
        (strict, None, False),
        (tools, None, False),
    ):
        plan = ReplyPlan(replies, tokenizer, offer(given, None, None), content)
        reading = plan.reading([1], SamplingParams(stop=("x",)))
        assert reading.either is either
        assert not reading.certain, "a stop may cut a call in two"
