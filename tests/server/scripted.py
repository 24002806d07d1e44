"""Models that tests can make: a tokenizer of bytes, a random decoder, and an executor that follows a script.

Kept apart from the clients, so that a server process in a test does not load them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from armillary.core.step import Step, StepResult
from armillary.runtime.sampling import TokenLogprobs

NAME = "org/tiny"
SCRIPT = "Grüße aus dem Archipel 🏝️: 世界 bleibt 👩‍👩‍👧 rund. Ende STOP hier! "
EOS, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB = 259
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes: token b is the byte b, then three control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    spelling = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(moved)}
    assert sorted(spelling) == alphabet
    backend = tokenizers.Tokenizer(models.BPE(vocab=spelling, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS, START, END])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": END, "chat_template": TEMPLATE, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258]}))


def write_model(folder: Path, seed: int = 11, **changes: Any) -> None:
    """A random model of a few thousand parameters with the tokenizer above, as an ordinary folder.

    Args:
        changes: fields of config.json.
    """
    import torch

    from armillary.models.checkpoint import save_decoder
    from armillary.models.config import spec_from_config
    from armillary.models.decoder import Decoder

    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **changes,
    }
    decoder = Decoder(spec_from_config(config))
    decoder.initialise(0.3, torch.Generator().manual_seed(seed))
    save_decoder(decoder, folder)
    write_tokenizer(folder)


def torch_executor(folder: Path, num_blocks: int, block_size: int) -> Any:
    """The executor that serves such a folder."""
    import torch

    from armillary.models.checkpoint import load_decoder
    from armillary.runtime.executor import TorchExecutor

    torch.set_num_threads(1)
    decoder = load_decoder(folder, torch.float32)
    return TorchExecutor(decoder, decoder.spec, num_blocks, block_size)


def fails_after(tokens: int, message: str) -> Callable[[Step], None]:
    """A fault in the middle of an answer: raises once some sequence of a step has so many tokens."""

    def fault(step: Step) -> None:
        if any(entry.sequence.generated >= tokens for entry in step.entries):
            raise RuntimeError(message)

    return fault


class ScriptedExecutor:
    """Every sequence generates the bytes of a script, one per token, over and over.

    With a temperature above 0 it begins at a place that depends on seed and choice.

    Attributes:
        step_s: seconds a step takes.
        fault: called with each step before it runs; may raise, or hang.
    """

    def __init__(self, script: str = SCRIPT, step_s: float = 0.0) -> None:
        self.script = script.encode()
        self.step_s = step_s
        self.fault: Callable[[Step], None] = lambda step: None
        self.max_batch = 0

    def run(self, step: Step) -> StepResult:
        self.fault(step)
        if self.step_s:
            time.sleep(self.step_s)
        self.max_batch = max(self.max_batch, len(step.entries))
        tokens: list[int] = []
        details: list[object] = []
        prompts: dict[str, object] = {}
        for entry in step.entries:
            params: Any = entry.sequence.request.sampling
            for row in range(entry.rows):
                index = entry.sequence.index + row
                place = entry.sequence.generated
                if params.temperature > 0:
                    place += (params.seed * 7 + index * 11) % len(self.script)
                token = self.script[place % len(self.script)]
                tokens.append(token)
                likeliest = [(token, -0.5), (65, float("-inf")), *((66 + i, -2.0 - i) for i in range(20))]
                top = likeliest[: params.logprobs or 0]
                details.append(TokenLogprobs(-0.5, top) if params.logprobs is not None else None)
            if entry.rows and params.prompt_logprobs is not None and entry.sequence.generated == 0:
                prompt = entry.sequence.request.prompt
                prompts[entry.sequence.request.id] = [None, *(TokenLogprobs(-1.5, [(t, -1.5)]) for t in prompt[1:])]
        return StepResult(tokens, details, prompts)
