"""The loop: nothing leaks between packed documents, the loss is divided once, and a resumed run is the same run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from armillary.errors import ArmillaryError
from armillary.models.decoder import Decoder
from armillary.models.packed import PackedAttention, packed_positions
from armillary.train import resume
from armillary.train.isles import initialise, new_decoder, train_isles
from armillary.train.loop import Trainer, loss_of, schedule
from armillary.train.mixture import adapt
from armillary.train.settings import Settings, Shape
from armillary.train.stream import MIXTURE, QUESTIONS, Document, document, pack, step_from
from armillary.train.vocabulary import train_tokenizer
from armillary.world.tasks import TASKS, UNSCORED

SHAPE = Shape(vocab_size=512, hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=64)
SETTINGS = Settings(steps=8, tokens_per_step=768, warmup_steps=2, evaluate_every=3, evaluate_count=2)
TOKENIZER = train_tokenizer(512, seed=0, documents=500)


def decoder64() -> Decoder:
    """Small, with nothing at zero; its norms and logits are float32, whatever the weights."""
    decoder = Decoder(SHAPE.spec([2, 0], 0), torch.float64)
    decoder.initialise(0.2, torch.Generator().manual_seed(0))
    return decoder


def documents(count: int, seed: int = 0) -> list[Document]:
    return [document(TOKENIZER, seed, number, MIXTURE) for number in range(count)]


def gradient(decoder: Decoder, parts: list[list[Document]]) -> list[Tensor]:
    """As the trainer makes it: sums over parts, divided once."""
    totals = [loss_of(decoder, pack(part)) for part in parts]
    loss = sum((total for total, _ in totals), torch.zeros(())) / sum(count for _, count in totals)
    return list(torch.autograd.grad(loss, list(decoder.parameters())))


def test_a_document_does_not_see_its_neighbours() -> None:
    decoder = decoder64()
    first, second, third = documents(3)
    other = Document([(token * 7 + 3) % SHAPE.vocab_size for token in second.tokens], second.targets)

    def hidden(packed: list[Document]) -> tuple[Tensor, Tensor]:
        batch = pack(packed)
        embedded = decoder(batch.tokens, packed_positions(batch.lengths), PackedAttention(decoder.spec, batch.lengths))
        return embedded[: len(first.tokens)], embedded[-len(third.tokens) :]

    for before, after in zip(hidden([first, second, third]), hidden([first, other, third]), strict=True):
        assert torch.equal(before, after)
    alone = hidden([first])[0]
    torch.testing.assert_close(hidden([first, second, third])[0], alone, rtol=0, atol=1e-12)


def test_a_document_has_no_gradient_through_its_neighbours() -> None:
    decoder = decoder64()
    pair = documents(2)
    silent = Document(pair[1].tokens, [False] * len(pair[1].tokens))
    with_neighbour = gradient(decoder, [[pair[0], silent]])
    alone = gradient(decoder, [[pair[0]]])
    for left, right in zip(with_neighbour, alone, strict=True):
        # Gradients of norms are summed in float32, in another order where there are more rows.
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)


def test_no_label_crosses_a_document() -> None:
    batch = pack(documents(6))
    ends = torch.tensor(batch.lengths).cumsum(0) - 1
    assert bool((batch.labels[ends] == -1).all())
    assert batch.tokens.shape == batch.labels.shape == (sum(batch.lengths),)


def test_any_split_of_a_step_has_the_same_gradient() -> None:
    decoder = decoder64()
    items = documents(7)
    whole = gradient(decoder, [items])
    for parts in ([items[:1], items[1:]], [items[:3], items[3:5], items[5:]], [[item] for item in items]):
        for left, right in zip(whole, gradient(decoder, parts), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_trainers_gradient_is_that_of_the_mean_over_targets(shards: int) -> None:
    decoder = decoder64()
    trainer = Trainer(decoder, TOKENIZER, replace(SETTINGS, shards=shards), {})
    batches, following = step_from(TOKENIZER, 0, 0, MIXTURE, 768, shards)
    loss, count = trainer.accumulate(batches)
    expected = gradient(decoder, [documents(following)])
    for parameter, want in zip(decoder.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, want, rtol=0, atol=1e-6)
    total, targets = loss_of(decoder, pack(documents(following)))
    assert count == targets
    assert loss == pytest.approx(float(total.detach()) / targets, abs=1e-5)


def test_a_step_holds_whole_documents_in_order() -> None:
    batches, following = step_from(TOKENIZER, 3, 5, MIXTURE, 1000, 2)
    dealt = sorted(tuple(t.tolist()) for b in batches for t in torch.split(b.tokens, b.lengths))
    assert dealt == sorted(tuple(document(TOKENIZER, 3, number, MIXTURE).tokens) for number in range(5, following))
    assert sum(len(batch.tokens) for batch in batches) <= 1000
    with pytest.raises(ArmillaryError, match="tokens_per_step must hold one document"):
        step_from(TOKENIZER, 0, 0, MIXTURE, 4, 2)


def test_every_kind_is_drawn() -> None:
    assert set(MIXTURE) == set(QUESTIONS) == {*TASKS, *UNSCORED, "telling"}
    levels = dict.fromkeys(TASKS, 1.0) | {"sorting": 0.0}
    adapted = adapt(MIXTURE, levels)
    assert sum(adapted.values()) == pytest.approx(1)
    assert adapted["sorting"] > MIXTURE["sorting"]
    assert all(adapted[kind] > 0.005 for kind in MIXTURE)


def test_sums_are_worked() -> None:
    texts = [TOKENIZER.decode(document(TOKENIZER, 0, number, {"addition": 1.0}).tokens) for number in range(5)]
    assert all(" = " in text for text in texts)


def test_learning_rates_rise_and_fall() -> None:
    settings = Settings(steps=100, warmup_steps=10, floor=0.1)
    rates = [schedule(settings, step) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)


def trained(settings: Settings) -> Trainer:
    return Trainer(new_decoder(SHAPE, TOKENIZER, 0), TOKENIZER, settings, {"shape": "tiny"})


def test_a_resumed_run_is_bitwise_the_run(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = trained(SETTINGS)
        whole.run(8)
        half = trained(SETTINGS)
        half.run(4)
        half.save(tmp_path)
        again = trained(SETTINGS)
        assert again.resume(tmp_path)
        assert again.progress.step == 4
        again.run(8)
    finally:
        torch.set_num_threads(threads)
    assert again.progress.next_document == whole.progress.next_document
    assert again.progress.mixture == whole.progress.mixture
    assert [row["step"] for row in again.progress.history] == [3, 6]
    for name, parameter in whole.decoder.named_parameters():
        assert torch.equal(parameter, again.decoder.get_parameter(name)), name
    for left, right in zip(whole.decoder.parameters(), again.decoder.parameters(), strict=True):
        for one, other in zip(whole.optimizers, again.optimizers, strict=True):
            for key, value in one.state[left].items():
                assert torch.equal(value, other.state[right][key])


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer = trained(SETTINGS)
    trainer.run(1)
    trainer.save(tmp_path)
    with pytest.raises(ArmillaryError, match="learning_rate"):
        trained(replace(SETTINGS, learning_rate=1e-4)).resume(tmp_path)
    assert trained(replace(SETTINGS, steps=20)).resume(tmp_path)


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    trainer = trained(SETTINGS)
    trainer.run(1)
    trainer.save(tmp_path)
    (tmp_path / "step-00000009.partial").mkdir()
    found = resume.latest(tmp_path)
    assert found is not None
    assert found.name == "step-00000001"
    trainer.run(2)
    trainer.save(tmp_path)
    assert [path.name for path in tmp_path.glob("step-*") if not path.suffix] == ["step-00000002"]
    assert not trained(SETTINGS).resume(tmp_path / "absent")


def test_training_lowers_the_loss_and_writes_a_folder(tmp_path: Path) -> None:
    losses: list[float] = []
    settings = replace(SETTINGS, learning_rate=5e-3)
    options = {"settings": settings, "shape": SHAPE, "report_count": 4, "tokenizer_documents": 500}
    report = train_isles(tmp_path, steps=12, on_step=lambda r: losses.append(r.loss), **options)  # type: ignore[arg-type]
    assert sum(losses[-3:]) < sum(losses[:3]) - 1
    assert report["steps"] == 12
    assert set(report["levels"]) == set(TASKS)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert {path.name for path in tmp_path.iterdir()} >= {
        "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md",
    }  # fmt: skip
    # Finished: nothing more to train on, whatever the limit.
    again = train_isles(tmp_path, steps=12, minutes=1, on_step=lambda r: losses.append(r.loss), **options)  # type: ignore[arg-type]
    assert again["steps"] == 12
    assert len(losses) == 12
    with pytest.raises(ArmillaryError, match="minutes must be positive"):
        train_isles(tmp_path, minutes=0)
    # Weights speak the vocabulary that they were trained with, and no other of the same size.
    with pytest.raises(ArmillaryError, match="vocabulary"):
        train_isles(tmp_path, steps=13, **{**options, "tokenizer_documents": 400})  # type: ignore[arg-type]


def test_first_weights_pass_the_embedding_through() -> None:
    decoder = Decoder(SHAPE.spec([2, 0], 0))
    initialise(decoder, 0)
    batch = pack(documents(1))
    attend = PackedAttention(decoder.spec, batch.lengths)
    hidden = decoder(batch.tokens, packed_positions(batch.lengths), attend)
    rows = decoder.embed[batch.tokens]
    normed = rows / rows.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
    torch.testing.assert_close(hidden, normed)
