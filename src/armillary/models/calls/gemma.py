"""FunctionGemma: `call:name{key:value}` in its own notation, with strings between `<escape>` tokens."""

from armillary.models.calls.decoder import Notation
from armillary.models.calls.format import CallFormat

GEMMA = CallFormat(
    name="gemma",
    title="FunctionGemma",
    opens=("<start_function_call>",),
    closes=("<end_function_call>",),
    header=r"call:(?P<name>[\w.-]+)",
    notation=Notation(
        quote="<escape>",
        bare_keys=True,
        words={"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"},
    ),
    written=None,
)
