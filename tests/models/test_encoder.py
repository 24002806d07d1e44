"""Encoders: hidden states and scores equal those of transformers, alone and packed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from armillary.errors import ArmillaryError, Code
from armillary.models.encoder_checkpoint import load_encoder
from armillary.models.encoder_config import encoder_from_config, read_model
from armillary.models.encoder_families import ENCODERS
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.pooling import read_pooling
from encoders import CONFIGS, POSITIONS, oracle, vocabulary, write, write_layout

LENGTHS = [17, 1, 40, 17, POSITIONS, 3]


def texts(name: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(0, vocabulary(name), (sum(LENGTHS),), generator=generator).split(LENGTHS))


def spec_of(folder: Path) -> EncoderSpec:
    spec = read_model(folder)
    assert isinstance(spec, EncoderSpec)
    return spec


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settled", [False, True])
def test_hidden_states_equal_those_of_transformers_packed_and_alone(name: str, settled: bool, tmp_path: Path) -> None:
    model = oracle(name)
    model.save_pretrained(tmp_path)
    spec = spec_of(tmp_path)
    assert spec.max_context == POSITIONS
    assert spec.num_parameters() == sum(p.numel() for key, p in model.named_parameters() if "pooler" not in key)
    encoder = load_encoder(tmp_path, spec)
    if settled:
        encoder.settle()
    documents = texts(name)
    with torch.inference_mode():
        zeros = [torch.zeros_like(document) for document in documents]
        packed = encoder(torch.cat(documents), torch.cat(zeros), LENGTHS).split(LENGTHS)
        for document, zero, got in zip(documents, zeros, packed, strict=True):
            # transformers takes padding tokens inside a text for tokens too, unless a mask says otherwise.
            wanted = model(document[None], attention_mask=torch.ones(1, len(document))).last_hidden_state[0]
            assert wanted.std() > 0.2
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
            alone = encoder(document, zero, [len(document)])
            assert torch.equal(alone, got), "a text's vectors must not depend on its neighbours, bit for bit"


def test_the_other_order_of_neighbours_makes_no_difference(tmp_path: Path) -> None:
    write("bert", tmp_path)
    encoder = load_encoder(tmp_path, spec_of(tmp_path))
    documents = texts("bert")
    with torch.inference_mode():
        ways = []
        for order in (documents, documents[::-1], documents[2:4] * 9 + documents):
            lengths = [len(document) for document in order]
            tokens = torch.cat(order)
            found = encoder(tokens, torch.zeros_like(tokens), lengths).split(lengths)
            ways.append({tuple(d.tolist()): hidden for d, hidden in zip(order, found, strict=True)})
    for way in ways[1:]:
        assert all(torch.equal(way[key], hidden) for key, hidden in ways[0].items())


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "distilbert"])
def test_scores_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = oracle(name, "ForSequenceClassification")
    model.save_pretrained(tmp_path)
    spec = spec_of(tmp_path)
    assert spec.scores
    assert spec.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    encoder = load_encoder(tmp_path, spec)
    encoder.settle()
    documents = texts(name)
    types = [(torch.arange(len(d)) >= len(d) // 2).long() * (spec.types > 1) for d in documents]
    with torch.inference_mode():
        hidden = encoder(torch.cat(documents), torch.cat(types), LENGTHS).split(LENGTHS)
        scores = encoder.scores(torch.stack([part[0] for part in hidden]))
        for place, (document, kind) in enumerate(zip(documents, types, strict=True)):
            second = {} if name == "distilbert" else {"token_type_ids": kind[None]}
            mask = torch.ones(1, len(document))
            wanted = model(document[None], attention_mask=mask, **second).logits[0, 0]
            torch.testing.assert_close(scores[place], wanted, atol=1e-4, rtol=0)
            assert torch.equal(encoder.scores(hidden[place][:1])[0], scores[place])


@pytest.mark.parametrize("kind", ["ForMaskedLM", "ForPreTraining"])
def test_checkpoints_with_a_head_for_words_are_read_without_it(kind: str, tmp_path: Path) -> None:
    model = oracle("bert", kind)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, spec_of(tmp_path))
    document = texts("bert")[0]
    with torch.inference_mode():
        wanted = model.bert(document[None], attention_mask=torch.ones(1, len(document))).last_hidden_state[0]
        got = encoder(document, torch.zeros_like(document), [len(document)])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_names_of_the_first_releases_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = oracle("bert")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for k, v in tensors.items()}  # fmt: skip
    old["bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    save_file(old, tmp_path / "model.safetensors")
    document = texts("bert")[0]
    with torch.inference_mode():
        got = load_encoder(tmp_path, spec_of(tmp_path))(document, torch.zeros_like(document), [len(document)])
        wanted = model(document[None], attention_mask=torch.ones(1, len(document))).last_hidden_state[0]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"embedding_size": 16}, "embedding_size"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 5}, "hidden_size"),
        ({"architectures": ["BertForTokenClassification"]}, "architectures"),
        ({"architectures": ["RobertaModel"]}, "architectures"),
        ({"architectures": ["BertForSequenceClassification"]}, "id2label"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    config = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, **changes}
    with pytest.raises(ArmillaryError) as caught:
        encoder_from_config(config)
    assert caught.value.code is Code.UNSUPPORTED_MODEL
    assert caught.value.param == field and field in caught.value.message


def test_missing_and_foreign_tensors_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    oracle("bert").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = "encoder.layer.1.output.dense.bias"
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors")
    with pytest.raises(ArmillaryError, match=gone):
        load_encoder(tmp_path, spec_of(tmp_path))
    save_file({**tensors, "encoder.layer.0.adapter.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ArmillaryError, match="adapter"):
        load_encoder(tmp_path, spec_of(tmp_path))


def test_a_family_that_is_not_known_is_told_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    with pytest.raises(ArmillaryError) as caught:
        read_model(tmp_path)
    assert "llama" in caught.value.message and all(name in caught.value.message for name in ENCODERS)


def test_the_layout_of_sentence_transformers_says_how_to_pool(tmp_path: Path) -> None:
    write("bert", tmp_path, matryoshka_dimensions=[8, 16])
    spec = spec_of(tmp_path)
    plain = read_pooling(tmp_path, spec)
    assert (plain.kind, plain.size, plain.mode, plain.normalize) == ("encoder", 32, "mean", True)
    assert plain.dimensions == (8, 16)
    for mode, name in (("cls", "pooling_mode_cls_token"), ("last", "pooling_mode_lasttoken")):
        for normalize in (True, False):
            write_layout(tmp_path, name, normalize)
            found = read_pooling(tmp_path, spec)
            assert (found.mode, found.normalize) == (mode, normalize)
    write_layout(tmp_path, "pooling_mode_max_tokens")
    with pytest.raises(ArmillaryError, match="pooling_mode_max_tokens"):
        read_pooling(tmp_path, spec)
    entries = json.loads((tmp_path / "modules.json").read_text())
    entries[2]["type"] = "sentence_transformers.models.Dense"
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(ArmillaryError, match="Dense"):
        read_pooling(tmp_path, spec)
    entries[1]["path"] = "../../etc"
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(ArmillaryError, match="etc"):
        read_pooling(tmp_path, spec)
