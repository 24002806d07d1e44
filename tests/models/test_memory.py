"""Loading holds little more than the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from armillary.models.checkpoint import checkpoint_bytes, save_decoder
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
import torch
from armillary.models.checkpoint import load_decoder
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
decoder = load_decoder(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({"peak": after - before, "weights": sum(p.numel() * p.element_size() for p in decoder.parameters())}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_peaks_below_1_15_times_the_weights(dtype: str, tmp_path: Path) -> None:
    decoder = Decoder(spec_from_config(CONFIG), torch.bfloat16)
    decoder.initialise()
    save_decoder(decoder, tmp_path)
    del decoder
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), dtype], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    # Norms are held in the type that is computed with, which is a handful of bytes more.
    assert found["weights"] == pytest.approx(checkpoint_bytes(tmp_path, getattr(torch, dtype)), rel=1e-3)
    assert found["weights"] > 350e6
    assert found["peak"] <= 1.15 * found["weights"], found
