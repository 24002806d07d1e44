"""OpenVINO GenAI: its continuous batching, with its prefix cache; weights exported by Optimum."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..protocol import About, Batch, Load, Tokens, serve

FORMATS = {"bf16": "fp16", "int8": "int8", "int4": "int4"}
CACHE_GB = 4


class OpenVino:
    about = About(
        {
            "bf16": "bfloat16 where the processor has it, else float32; stored as float16",
            "int8": "int8 weights",
            "int4": "int4 weights in groups of 32, the rest int8",
        },
        packages=("openvino-genai==2026.4.*", "optimum-intel[openvino]", "torch==2.13.0"),
    )

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        options = ["--weight-format", FORMATS[precision], "--task", "text-generation-with-past"]
        if precision == "int4":
            options += ["--group-size", "32", "--ratio", "1.0", "--sym"]
        command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "--model", str(checkpoint)]
        done = subprocess.run([*command, *options, str(target / "model")], stdout=sys.stderr, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError("optimum-cli could not export the checkpoint")

    def load(self, load: Load) -> dict[str, str]:
        self.package: Any = import_module("openvino_genai")
        openvino: Any = import_module("openvino")
        scheduler = self.package.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_seqs = load.running
        scheduler.enable_prefix_caching = True
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": load.threads}
        if load.precision == "bf16":
            core = openvino.Core()
            bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            properties["INFERENCE_PRECISION_HINT"] = "bf16" if bf16 else "f32"
        self.pipeline = self.package.ContinuousBatchingPipeline(
            str(load.model / "model"), scheduler, "CPU", properties=properties
        )
        self.tensor: Any = openvino.Tensor
        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return {"version": f"openvino-genai {self.package.__version__}", "kernels": " ".join(capabilities)}

    def prepare(self, batch: Batch) -> None:
        """Allocated at the start."""

    def run(self, batch: Batch) -> list[Tokens]:
        import numpy as np

        inputs = [self.tensor(np.array([prompt], dtype=np.int64)) for prompt in batch.prompts]
        configs = []
        for length in batch.outputs:
            config = self.package.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = length
            config.ignore_eos = True
            config.do_sample = False
            configs.append(config)
        results = self.pipeline.generate(inputs, configs)
        return [list(result.m_generation_ids[0]) for result in results]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    serve(OpenVino())
