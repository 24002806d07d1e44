"""Armillary with quantised weights and float32 activations, which is what it does by default."""

from __future__ import annotations

from ..protocol import About, serve
from .armillary import Armillary


class ArmillaryFloat(Armillary):
    about = About(
        {"int8": "int8 weights", "int4": "int4 weights in groups of 32, a tied head and embedding int8"},
        missing={"bf16": "as armillary"},
    )
    activations = False


if __name__ == "__main__":
    serve(ArmillaryFloat())
