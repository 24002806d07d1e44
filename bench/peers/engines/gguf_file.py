"""A checkpoint as the file that llama.cpp reads; runs in llama.cpp's environment."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TYPES = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}


def write_gguf(checkpoint: Path, target: Path, precision: str) -> None:
    """Every matrix in the type of `precision`, embedding and head in 8 bits at 4; norms as float32. No tokenizer."""
    gguf: Any = import_module("gguf")
    np: Any = import_module("numpy")

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    family = config["model_type"]
    writer = gguf.GGUFWriter(target, family)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, bits in _tensors(checkpoint / "model.safetensors", np):
        own, values = _name(name), (bits.astype(np.uint32) << 16).view(np.float32)
        kind = TYPES[precision] if values.ndim > 1 else "F32"
        if precision == "int4" and own in ("token_embd.weight", "output.weight"):
            kind = "Q8_0"
        short = own.split(".")[-2]
        if family == "llama" and short in heads:
            # llama.cpp rotates neighbouring pairs where the checkpoint's layout rotates halves.
            values = values.reshape(heads[short], 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        quantization = gguf.GGMLQuantizationType[kind]
        data = values if kind == "F32" else gguf.quants.quantize(values, quantization)
        writer.add_tensor(own, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    stem, part = name.rsplit(".", 1)
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{part}"
    _, _, index, own = stem.split(".", 3)
    return f"blk.{index}.{NAMES[own]}.{part}"


def _tensors(path: Path, np: Any) -> Any:
    """Names and bits (uint16) of a file of bfloat16 tensors; numpy has no such type, so its header is read here."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                file.seek(8 + size + begin)
                yield name, np.frombuffer(file.read(end - begin), dtype=np.uint16).reshape(entry["shape"])


__all__ = ["write_gguf"]
