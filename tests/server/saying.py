"""Servers of models that say what a test wants them to say, and of one whose random weights say anything."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from armillary.core.step import Step, StepResult
from armillary.runtime.sampling import TokenLogprobs
from server.harness import Running, torch_executor, write_model
from server.scripted import TEMPLATE, write_tokenizer

END = 258
BLOCKS, BLOCK = 320, 8
THINK_TEMPLATE = TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif opened %}<think>\n{% endif %}{% endif %}",
)
assert THINK_TEMPLATE != TEMPLATE


class Saying:
    """Every answer is the same text, byte by byte, or the same tokens, and then ends."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens: list[int] = []
        self.step_s = 0.0
        self.prompts: list[tuple[int, ...]] = []

    def run(self, step: Step) -> StepResult:
        time.sleep(self.step_s)
        data = self.tokens or list(self.text.encode())
        tokens = []
        for entry in step.entries:
            for _ in range(entry.rows):
                place = entry.sequence.generated
                if place == 0:
                    self.prompts.append(tuple(entry.sequence.request.prompt))
                tokens.append(data[place] if place < len(data) else END)
        return StepResult(tokens, [TokenLogprobs(-0.5, [(token, -0.5)]) for token in tokens], {})


def serve_saying(folder: Path, template: str, executor: Saying, **options: Any) -> Iterator[Running]:
    """A server of a model that says the executor's text; with the folder's own tokenizer, if it has one."""
    if not folder.joinpath("tokenizer.json").exists():
        write_tokenizer(folder)
    _write_template(folder, template)
    server = Running(folder, executor, max_context=2048, num_blocks=512, **options)
    server.wait()
    yield server
    server.stop()


def serve_random(folder: Path, template: str) -> Iterator[Running]:
    """A server of a model of random weights: only a grammar makes sense of what it says."""
    write_model(folder)
    _write_template(folder, template)
    executor = torch_executor(folder, BLOCKS, BLOCK)
    server = Running(folder, executor, num_blocks=BLOCKS, block_size=BLOCK, max_context=2400, max_chunk_tokens=128)
    server.wait()
    yield server
    server.stop()


def _write_template(folder: Path, template: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
