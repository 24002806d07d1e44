"""Phi-4-mini: JSON between `<|tool_call|>` tags, or a JSON list after the word `functools`."""

from armillary.models.calls.format import CallFormat, Written

PHI = CallFormat(
    name="phi",
    title="Phi-4-mini",
    opens=("<|tool_call|>", "functools"),
    closes=("<|/tool_call|>",),
    listed=True,
    separators=(",",),
    written=Written('{"name": "', '", "arguments": ', "}", begin="<|tool_call|>[", between=", ", end="]<|/tool_call|>"),
)
