"""CTranslate2: batches of its own generator, each as long as its longest request; a shared prefix is computed once,
which it must be told to (`static_prompt`)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..protocol import About, Batch, Load, Tokens, serve

TYPES = {"bf16": "bfloat16", "int8": "int8"}


class CTranslate2:
    about = About(
        {"bf16": "bfloat16", "int8": "int8, activations in 8 bits"},
        packages=("ctranslate2==4.8.5", "transformers", "torch==2.13.0", "numpy"),
        missing={"int4": "CTranslate2 has no 4 bits on processors"},
    )

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        converters: Any = import_module("ctranslate2.converters")
        converter = converters.TransformersConverter(str(checkpoint), low_cpu_mem_usage=True)
        converter.convert(str(target / "model"), quantization=TYPES[precision])

    def load(self, load: Load) -> dict[str, str]:
        library: Any = import_module("ctranslate2")
        wanted, known = TYPES[load.precision], library.get_supported_compute_types("cpu")
        if wanted not in known:
            raise RuntimeError(f"computes with {', '.join(sorted(known))} on this processor, not with {wanted}")
        self.model = library.Generator(
            str(load.model / "model"), device="cpu", compute_type=wanted, intra_threads=load.threads, inter_threads=1
        )
        # Its interface takes tokens as text: the line of the vocabulary.
        self.names = list(_vocabulary(load.model / "model"))
        return {"version": f"ctranslate2 {library.__version__}", "kernels": self.model.compute_type}

    def prepare(self, batch: Batch) -> None:
        """Allocates as it goes."""

    def run(self, batch: Batch) -> list[Tokens]:
        outputs: list[Tokens] = []
        for first in range(0, len(batch.prompts), batch.running):
            part = slice(first, first + batch.running)
            outputs += self._together(batch.prompts[part], batch.outputs[part], batch.shared)
        return outputs

    def _together(self, prompts: list[Tokens], lengths: list[int], shared: int) -> list[Tokens]:
        longest = max(lengths)
        results = self.model.generate_batch(
            [self._names(prompt[shared:]) for prompt in prompts],
            static_prompt=self._names(prompts[0][:shared]) if shared else None,
            max_length=longest,
            min_length=longest,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0][:n]) for result, n in zip(results, lengths, strict=True)]

    def _names(self, tokens: Tokens) -> list[str]:
        return [self.names[token] for token in tokens]


def _vocabulary(folder: Path) -> list[str]:
    import json

    names: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return names


if __name__ == "__main__":
    serve(CTranslate2())
