"""How well a decoder does on tasks, without generating: greedy decoding gives the right answer exactly where the right
answer's every token is the most probable one after those before it."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from armillary.models.decoder import Decoder
from armillary.models.packed import PackedAttention, packed_positions
from armillary.train.stream import Document, encode_task, pack
from armillary.world.evaluate import held_out_tasks
from armillary.world.split import Split
from armillary.world.tasks import TASKS

_TOKENS_AT_ONCE = 4096


def examples(tokenizer: Tokenizer, split: Split, count: int, seed: int) -> dict[str, list[Document]]:
    """`count` tasks of every kind, one question each."""
    tasks = held_out_tasks(tuple(TASKS), count, seed, split)
    return {name: [encode_task(tokenizer, task) for task in items] for name, items in tasks.items()}


def levels(decoder: Decoder, kinds: dict[str, list[Document]]) -> dict[str, float]:
    """Share of each kind whose last answer would be given token for token. Answers that are right in other words
    count as wrong, so `description` reads low."""
    return {name: sum(_right(decoder, documents)) / len(documents) for name, documents in kinds.items()}


def _right(decoder: Decoder, documents: list[Document]) -> list[bool]:
    verdicts: list[bool] = []
    group: list[Document] = []
    for item in [*documents, None]:
        if group and (item is None or sum(len(d.tokens) for d in group) + len(item.tokens) > _TOKENS_AT_ONCE):
            verdicts += _right_together(decoder, group)
            group = []
        if item is not None:
            group.append(item)
    return verdicts


@torch.no_grad()
def _right_together(decoder: Decoder, documents: list[Document]) -> list[bool]:
    batch = pack(documents)
    attend = PackedAttention(decoder.spec, batch.lengths)
    hidden = decoder(batch.tokens, packed_positions(batch.lengths), attend)
    hits = decoder.logits(hidden).argmax(-1) == batch.labels
    verdicts, start = [], 0
    for item in documents:
        first = len(item.tokens)
        while item.targets[first - 1]:
            first -= 1
        verdicts.append(bool(hits[start + first - 1 : start + len(item.tokens) - 1].all()))
        start += len(item.tokens)
    return verdicts
