"""How little texts surprise a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.runtime.llm import LLM
from armillary.runtime.sampling import SamplingParams


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
