"""OpenVINO GenAI: its continuous batching, with its prefix cache; weights exported by Optimum.

A prefix is found by requests that come after it was computed. The first of a batch that shares one therefore runs by
itself until its prompt is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..protocol import About, Batch, Load, Tokens, serve

FORMATS = {"bf16": "fp16", "int8": "int8", "int4": "int4"}
BLOCK = 32
"""Positions in a block of its cache, on processors."""


class OpenVino:
    about = About(
        {
            "bf16": "weights stored as float16, computed in bfloat16 where the processor has it, else in float32",
            "int8": "int8 weights, activations as it finds best",
            "int4": "int4 weights in groups of 32, embedding and head int8, activations as it finds best",
        },
        packages=("openvino-genai==2026.4.*", "optimum-intel[openvino]", "torch==2.13.0"),
        unwanted=("torchvision",),  # for pictures; does not load beside a torch that was built without CUDA
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
        # Room for all that run, each in whole blocks.
        scheduler.num_kv_blocks = -(-load.positions // BLOCK) + load.running
        scheduler.max_num_seqs = load.running
        scheduler.enable_prefix_caching = True
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": load.threads, "KV_CACHE_PRECISION": "f16"}
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
        handles: list[Any] = []
        for number, (tokens, config) in enumerate(zip(inputs, configs, strict=True)):
            handles.append(self.pipeline.add_request(number, tokens, config))
            while batch.shared and number == 0 and not handles[0].can_read():
                self.pipeline.step()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return [[token for part in handle.read_all() for token in part.generated_ids] for handle in handles]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    serve(OpenVino())
