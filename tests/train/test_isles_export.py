"""The exported folder is an ordinary one: transformers computes the same with it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from armillary.models.checkpoint import load_decoder
from armillary.models.decoder import Decoder
from armillary.models.packed import PackedAttention, packed_positions
from armillary.train.export import export
from armillary.train.isles import new_decoder
from armillary.train.levels import examples, levels
from armillary.train.settings import Shape
from armillary.train.stream import encode_task
from armillary.train.vocabulary import train_tokenizer
from armillary.world.evaluate import held_out_tasks
from armillary.world.split import Split
from armillary.world.tasks import TASKS

SHAPE = Shape(vocab_size=512, hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=64)
TOKENIZER = train_tokenizer(512, seed=0, documents=500)
REPORT = {
    "steps": 1, "tokens": 1, "targets": 1, "seconds": 1.0, "cpu_seconds": 1.0, "machine": "a test", "longest": 9,
    "levels": {"reading": 0.5}, "count": 2,
}  # fmt: skip
COUNT = 5
BUNDLED = Path(__file__).parents[2] / "src" / "armillary" / "bundled" / "isles"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isles")
    decoder = new_decoder(SHAPE, TOKENIZER, 0)
    decoder.initialise(0.2, torch.Generator().manual_seed(1))
    export(decoder, TOKENIZER, path, REPORT)
    return path


@pytest.mark.parametrize("which", ["fresh", "bundled"])
def test_transformers_computes_the_same(folder: Path, which: str) -> None:
    transformers = pytest.importorskip("transformers")
    path = folder if which == "fresh" else BUNDLED
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ours = load_decoder(path, torch.float32)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert theirs.generation_config.eos_token_id == list(ours.spec.eos_token_ids)
    for name in ("reading", "sorting", "tools"):
        task = TASKS[name](Random(f"export/{name}"), Split.HELD_OUT, 1)
        prompt = tokenizer.apply_chat_template(
            task.messages, tools=task.tools or None, add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt])).logits[0]
            found = logits_of(ours, prompt)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
            answer = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
            tokens = list(prompt)
            while len(tokens) < len(prompt) + 12 and (
                len(tokens) == len(prompt) or tokens[-1] not in ours.spec.eos_token_ids
            ):
                tokens.append(int(logits_of(ours, tokens)[-1].argmax()))
        assert tokens == answer


def logits_of(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    attend = PackedAttention(decoder.spec, [len(tokens)])
    return decoder.logits(decoder(torch.tensor(tokens), packed_positions([len(tokens)]), attend))


def test_levels_are_those_of_greedy_decoding() -> None:
    """Word for word, working included, on the bundled model, which gets some right and some wrong."""
    decoder = load_decoder(BUNDLED, torch.float32)
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    kinds = ["addition", "sorting", "reading"]
    found = levels(decoder, {k: v for k, v in examples(tokenizer, Split.HELD_OUT, COUNT, 5).items() if k in kinds})
    for name, tasks in held_out_tasks(kinds, COUNT, 5).items():
        right = 0
        for task in tasks:
            item = encode_task(tokenizer, task)
            start = len(item.tokens)
            while item.targets[start - 1]:
                start -= 1
            tokens = item.tokens[:start]
            while len(tokens) < start + 36:
                tokens.append(int(logits_of(decoder, tokens)[-1].argmax()))
                if tokens[-1] in decoder.spec.eos_token_ids:
                    break
            right += tokenizer.decode(tokens[start:], skip_special_tokens=True).strip() == task.answer
        assert found[name] == pytest.approx(right / COUNT)


def test_the_folder_is_small_and_states_its_levels(folder: Path) -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 20_000_000
    card = (folder / "README.md").read_text()
    assert "| reading | 50.0% | 85% | 2 |" in card
    assert "What it is not" in card
