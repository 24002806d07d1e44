"""Llama 3.1 to 3.3: a bare JSON object, or several with semicolons between, at times after `<|python_tag|>`."""

from armillary.models.calls.format import CallFormat, Written

LLAMA3 = CallFormat(
    name="llama3",
    title="Llama 3.1 to 3.3",
    opens=("<|python_tag|>",),
    bare=True,
    separators=(";",),
    written=Written('{"name": "', '", "parameters": ', "}", between="; "),
)
