"""Reading `quantization_config` of config.json: checkpoints that gptq or awq quantised.

Which matrices are quantised, to how many bits and in what groups is read from the tensors themselves; checked here is
what tensors cannot tell. Formats: the documentation of transformers, GPTQModel and AutoAWQ; the methods are Frantar et
al. 2022 (GPTQ) and Lin et al. 2023 (AWQ).
"""

from __future__ import annotations

from typing import Any, NoReturn

from armillary.errors import ArmillaryError, Code
from armillary.models.spec import QuantizedSpec

FIELD = "quantization_config"
GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""Layouts of gptq checkpoints, with what each adds to a stored zero point."""


def read_quantized(config: Any) -> QuantizedSpec | None:
    """The contents of `quantization_config`, or None where there is none.

    Raises ArmillaryError: UNSUPPORTED_MODEL for methods, layouts and widths that are not read, by name.
    """
    if config is None:
        return None
    if not isinstance(config, dict):
        _refuse("", "an object", config)
    method = config.get("quant_method")
    if method == "gptq":
        return _gptq(config)
    if method == "awq":
        return _awq(config)
    _refuse("quant_method", "gptq or awq", method)


def _gptq(config: dict[str, Any]) -> QuantizedSpec:
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if not isinstance(layout, str) or layout not in GPTQ_FORMATS:
        _refuse("checkpoint_format", " or ".join(GPTQ_FORMATS), layout)
    if config.get("is_marlin_format"):
        _refuse("is_marlin_format", "false", True)
    if config.get("adapter"):
        _refuse("adapter", "absent", config["adapter"])
    if config.get("pack_dtype") not in (None, "int32"):
        _refuse("pack_dtype", "int32", config["pack_dtype"])
    return QuantizedSpec("gptq", _bits(config, (4, 8)), GPTQ_FORMATS[layout])


def _awq(config: dict[str, Any]) -> QuantizedSpec:
    version = config.get("version", config.get("format", "gemm"))
    if str(version).lower() != "gemm":
        _refuse("version", "gemm", version)
    if config.get("zero_point") is False:
        _refuse("zero_point", "true", False)
    return QuantizedSpec("awq", _bits(config, (4,)))


def _bits(config: dict[str, Any], known: tuple[int, ...]) -> int:
    bits = config.get("bits", config.get("w_bit", 4))
    if isinstance(bits, bool) or bits not in known:
        _refuse("bits", " or ".join(map(str, known)), bits)
    return int(bits)


def _refuse(name: str, known: str, given: Any) -> NoReturn:
    field = f"{FIELD}.{name}" if name else FIELD
    message = f"config.json: `{field}` must be {known}, given {given!r}, so the weights cannot be read"
    raise ArmillaryError(Code.UNSUPPORTED_MODEL, message, FIELD)
