"""Mistral and Mixtral: `[TOOL_CALLS]` before a JSON list, or, in newer models, before name, `[ARGS]` and arguments.

Their templates take ids of nine letters and digits only.
"""

from armillary.models.calls.format import CallFormat, Written

MISTRAL = CallFormat(
    name="mistral",
    title="Mistral 7B v0.3, Nemo, Small 3, Mixtral",
    opens=("[TOOL_CALLS]",),
    listed=True,
    separators=(",",),
    header=r"(?P<name>[\w.-]+)(\[CALL_ID\]\w+)?(\[ARGS\])?",
    written=Written('{"name": "', '", "arguments": ', "}", begin="[TOOL_CALLS] [", between=", ", end="]"),
    id_length=9,
)
MISTRAL_ARGS = CallFormat(
    name="mistral_args",
    title="Mistral Small 3.2, Magistral, Ministral 3",
    opens=MISTRAL.opens,
    listed=True,
    separators=MISTRAL.separators,
    header=MISTRAL.header,
    written=Written("[TOOL_CALLS]", "[ARGS]", ""),
    id_length=9,
)
