"""How little texts surprise a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.models.quantized import INTEGERS
from armillary.runtime.llm import LLM
from armillary.runtime.sampling import SamplingParams

_QUANTISING = ("dtype", "quantization_group", "int8_activations", "kv_dtype")


@dataclass(frozen=True)
class Perplexity:
    """Attributes:
    value: the exponential of the mean surprise of a token, e ** -log p; 1 is a model that knows every text beforehand.
    texts, tokens: that it was measured on; the first token of a text, which nothing predicts, is not counted.
    """

    value: float
    texts: int
    tokens: int


def perplexity(llm: LLM, texts: Sequence[str]) -> Perplexity:
    """Read the texts, each by itself, as far as the context of `llm` reaches.

    Raises ArmillaryError: INVALID_REQUEST where no text has two tokens.
    """
    prompts = [llm.tokenizer.encode(text)[: llm.plan.max_context - 1] for text in texts]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    total, tokens = 0.0, 0
    for output in outputs:
        if output.error is not None:
            raise output.error
        entries: Any = output.prompt_logprobs or ()
        known = [entry.logprob for entry in entries if entry is not None]
        total, tokens = total + math.fsum(known), tokens + len(known)
    if not tokens:
        given = f"texts must have two tokens or more, given {len(texts)} that have not"
        raise ArmillaryError(Code.INVALID_REQUEST, given, "texts")
    return Perplexity(math.exp(-total / tokens), len(texts), tokens)


def unquantised(model: str, settings: EngineSettings, texts: Sequence[str]) -> Perplexity | None:
    """The same of the model with weights, keys and values as its checkpoint has them.

    None where the settings ask for nothing in 4 or 8 bits, and where that does not fit into memory.
    """
    if settings.dtype not in INTEGERS and settings.kv_dtype != "int8" and not settings.int8_activations:
        return None
    given = settings.model_dump(exclude_unset=True)
    try:
        with LLM(model, **{name: value for name, value in given.items() if name not in _QUANTISING}) as llm:
            return perplexity(llm, texts)
    except ArmillaryError as error:
        if error.code is not Code.MEMORY:
            raise
        return None
