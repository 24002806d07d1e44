"""transformers: static batches, padded on the left, each as long as its longest request; that is how people run it. A
shared prefix is computed once, and its cache repeated for each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..protocol import About, Batch, Load, Tokens, serve

PAD = 0


class Transformers:
    about = About(
        {"bf16": "bfloat16"},
        packages=("transformers==5.23.0", "torch==2.13.0", "numpy"),
        missing=dict.fromkeys(("int8", "int4"), "transformers quantises only with other packages"),
    )

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        (target / "checkpoint").symlink_to(checkpoint.resolve())

    def load(self, load: Load) -> dict[str, str]:
        self.torch: Any = import_module("torch")
        library: Any = import_module("transformers")
        self.torch.set_num_threads(load.threads)
        folder = (load.model / "checkpoint").resolve()
        self.model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=self.torch.bfloat16).eval()
        # Whatever ends a text is ignored, and nothing but the largest score counts.
        self.model.generation_config = library.GenerationConfig(do_sample=False, pad_token_id=PAD)
        torch = f"torch {self.torch.__version__}"
        return {
            "version": f"transformers {library.__version__}, {torch}",
            "kernels": self.torch.backends.cpu.get_cpu_capability(),
        }

    def prepare(self, batch: Batch) -> None:
        """Allocates as it goes."""

    def run(self, batch: Batch) -> list[Tokens]:
        outputs: list[Tokens] = []
        for first in range(0, len(batch.prompts), batch.running):
            part = slice(first, first + batch.running)
            outputs += self._together(batch.prompts[part], batch.outputs[part], batch.shared)
        return outputs

    def _together(self, prompts: list[Tokens], lengths: list[int], shared: int) -> list[Tokens]:
        width = max(map(len, prompts))
        ids = self.torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = self.torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        known: dict[str, Any] = {}
        with self.torch.inference_mode():
            if shared:  # requests that share a prefix are of equal length: nothing is padded
                cache = self.model(input_ids=ids[:1, :shared], use_cache=True, logits_to_keep=1).past_key_values
                cache.batch_repeat_interleave(len(prompts))
                known = {"past_key_values": cache}
            found = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max(lengths), **known)
        return [row[:length] for row, length in zip(found[:, width:].tolist(), lengths, strict=True)]


if __name__ == "__main__":
    serve(Transformers())
