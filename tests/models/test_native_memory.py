"""Packing a checkpoint holds little more than the packed weights, and a mapped one is packed no second time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("armillary.kernels._native")

import torch

from armillary.models.checkpoint import save_decoder
from armillary.models.config import spec_from_config
from armillary.models.decoder import Decoder

CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 100_000,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}

LOAD = """
import json, resource, sys
from pathlib import Path
from armillary.kernels import native
from armillary.models.config import read_config
from armillary.models.packed_weights import packed
from armillary.models.quantized import Quantization
from armillary.models.weights import CheckpointWeights
unit = 1 if sys.platform == "darwin" else 1024
folder, path = Path(sys.argv[1]), native.paths()[-1]
spec = read_config(folder)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
found = packed(CheckpointWeights(folder, spec), Quantization(sys.argv[2]), path, 2)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({"peak": after - before, "weights": found.layout.size}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    decoder = Decoder(spec_from_config({**CONFIG, "torch_dtype": "bfloat16"}), torch.bfloat16)
    decoder.initialise()
    save_decoder(decoder, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_packing_peaks_below_1_15_times_the_packed_weights(dtype: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder), dtype], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["weights"] > 100e6
    assert found["peak"] <= 1.15 * found["weights"], found
