"""Qwen3-Coder: the name and each parameter between tags of their own, inside of `<tool_call>` tags or without."""

from armillary.models.calls.format import CallFormat, Written

QWEN_TAGS = CallFormat(
    name="qwen_tags",
    title="Qwen3-Coder",
    opens=("<tool_call>", "<function="),
    closes=("</tool_call>",),
    header=r"(<function=)?(?P<name>[\w.-]+)>",
    tags=True,
    written=Written("<tool_call>\n<function=", ">\n", "</function>\n</tool_call>", between="\n"),
)
