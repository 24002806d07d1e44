"""Qwen2.5 and Qwen3, Hermes, the bundled Isles, and many others: JSON between `<tool_call>` tags."""

from armillary.models.calls.format import CallFormat, Written

WRITTEN = Written('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", between="\n")
HERMES = CallFormat(
    name="hermes",
    title="Qwen2.5, Qwen3, Hermes, Isles",
    opens=("<tool_call>",),
    closes=("</tool_call>",),
    written=WRITTEN,
)
