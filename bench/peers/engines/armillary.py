"""Armillary, through its public Python interface."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..protocol import About, Batch, Load, Tokens, serve

BLOCK = 16


class Armillary:
    about = About(
        {
            "bf16": "bfloat16",
            "int8": "int8, activations in 8 bits",
            "int4": "int4 in groups of 32, activations in 8 bits, a tied head and embedding int8",
        }
    )
    activations = True

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        """A first start quantises the weights and keeps them packed, beside links to the checkpoint."""
        for file in checkpoint.iterdir():
            if file.is_file():
                os.symlink(file.resolve(), target / file.name)
        self.load(Load(target, precision, 1, 64, 1, 64))
        self.llm.close()

    def load(self, load: Load) -> dict[str, str]:
        from armillary import LLM, __version__

        settings: dict[str, Any] = {
            "dtype": "bfloat16" if load.precision == "bf16" else load.precision,
            "threads": load.threads,
            "max_running": load.running,
            "max_context": load.context,
            # Room for all that run, each in whole blocks.
            "kv_blocks": -(-load.positions // BLOCK) + load.running,
            "block_size": BLOCK,
        }
        if load.precision != "bf16":
            settings["int8_activations"] = self.activations
        self.llm = LLM(load.model, **settings)
        return {
            "version": f"armillary {__version__}",
            "kernels": self.llm.plan.kernels,
            "formats": self.llm.plan.formats or self.llm.plan.dtype,
        }

    def prepare(self, batch: Batch) -> None:
        """Everything is allocated at the start."""

    def run(self, batch: Batch) -> list[Tokens]:
        from armillary import SamplingParams

        params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in batch.outputs]
        outputs = self.llm.generate(batch.prompts, params)
        for output in outputs:
            if output.error is not None:
                raise output.error
        return [list(output.choices[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(Armillary())
