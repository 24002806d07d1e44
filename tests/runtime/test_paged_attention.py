"""Paged attention against dense attention in float64: windows, softcaps, shared heads, ragged steps, chunks."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from armillary.core.step import Entry
from armillary.kernels.paged import Workspace
from armillary.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from armillary.runtime import attention as module
from armillary.runtime.attention import PagedAttend, StepLayout
from armillary.runtime.torch_cache import KVCache

LENGTHS = [5, 17, 130, 300, 129, 128]
CASES = {
    "shared heads": (8, 4, 32, None, None, 16),
    "one head per key": (4, 4, 16, None, None, 16),
    "window": (8, 2, 24, 100, None, 8),
    "softcap and window, one key head": (4, 1, 32, 40, 3.0, 4),
    "three heads per key, tiny window": (6, 2, 16, 7, None, 16),
    "blocks that do not divide a piece": (4, 2, 16, 90, None, 24),
    "blocks wider than a piece": (4, 2, 16, None, None, 192),
}


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention: AttentionSpec) -> torch.Tensor:
    shared = attention.heads // attention.kv_heads
    k, v = (t.repeat_interleave(shared, 1).double() for t in (k, v))
    scores = torch.einsum("thd,lhd->htl", q.double(), k) * attention.scale
    if attention.softcap:
        scores = torch.tanh(scores / attention.softcap) * attention.softcap
    position = torch.arange(len(q))
    hidden = position[None] > position[:, None]
    if attention.window:
        hidden |= position[None] <= position[:, None] - attention.window
    return torch.einsum("htl,lhd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


class Game:
    """Sequences with known queries, keys and values, played through the cache in any schedule."""

    def __init__(self, case: tuple[Any, ...], dtype: torch.dtype = torch.float32) -> None:
        heads, kv_heads, width, window, softcap, self.block = case
        self.attention = AttentionSpec(heads, kv_heads, width, width**-0.5, window, softcap)
        self.spec = ModelSpec("x", 10, 8, (LayerSpec(self.attention, MlpSpec(8)),), (), 1e-6, 4096)
        generator = torch.Generator().manual_seed(7)
        self.data = [
            tuple(torch.randn(length, h, width, generator=generator).to(dtype) for h in (heads, kv_heads, kv_heads))
            for length in LENGTHS
        ]
        self.dtype = dtype

    def play(self, schedule: list[list[tuple[int, int]]], poison: bool = True) -> list[torch.Tensor]:
        """schedule: steps of (sequence, most tokens). Blocks lie in random order; free ones hold garbage."""
        order = random.Random(5)
        free = list(range(sum(-(-length // self.block) for length in LENGTHS) + 3))
        cache = KVCache(self.spec, len(free), self.block, str(self.dtype).removeprefix("torch."))
        if poison:
            for tensor in (tensor for pair in cache.layers for tensor in pair):
                tensor[: len(free)] = 1e4
        order.shuffle(free)
        sequences: list[Any] = [
            SimpleNamespace(blocks=[free.pop() for _ in range(-(-length // self.block))]) for length in LENGTHS
        ]
        done, outputs = [0] * len(LENGTHS), [[] for _ in LENGTHS]
        workspace = Workspace()
        for step in schedule:
            entries = [
                (index, Entry(sequences[index], done[index], count, 0))
                for index, most in step
                if (count := min(most, LENGTHS[index] - done[index])) > 0
            ]
            if not entries:
                continue
            layout = StepLayout([entry for _, entry in entries], self.block, cache.zero_block)
            pad = -layout.total % 8
            flat = [
                torch.cat(
                    [self.data[i][which][e.start : e.start + e.count] for i, e in entries]
                    + [torch.full((pad, *self.data[0][which].shape[1:]), 9.0).to(self.dtype)]
                )
                for which in range(3)
            ]
            out = PagedAttend(self.spec, cache, layout, workspace)(0, *flat)
            assert out.dtype == self.dtype and not out[layout.total :].any()
            row = 0
            for index, entry in entries:
                outputs[index].append(out[row : row + entry.count])
                row += entry.count
                done[index] += entry.count
        return [torch.cat(output) for output in outputs]


def schedules() -> dict[str, list[list[tuple[int, int]]]]:
    everyone, order = range(len(LENGTHS)), random.Random(9)
    return {
        "alone, whole": [[(index, 1000)] for index in everyone],
        "together, whole": [[(index, 1000) for index in everyone]],
        "together, chunks": [[(index, 48) for index in everyone]] * 7,
        "token by token": [[(index, 1) for index in everyone]] * 300,
        "mixed": [
            [(index, order.choice([1, 1, 3, 8, 70])) for index in order.sample(everyone, order.randint(1, 6))]
            for _ in range(400)
        ]
        + [[(index, 1000) for index in everyone]],
    }


@pytest.mark.parametrize("name", CASES)
def test_every_schedule_equals_dense_attention_and_one_another(name: str) -> None:
    game = Game(CASES[name])
    results = {schedule: game.play(steps) for schedule, steps in schedules().items()}
    first = results["alone, whole"]
    for got, data in zip(first, game.data, strict=True):
        torch.testing.assert_close(got.double(), dense(*data, game.attention), atol=3e-6, rtol=0)
    for schedule, outputs in results.items():
        for got, wanted in zip(outputs, first, strict=True):
            torch.testing.assert_close(got, wanted, atol=3e-6, rtol=0, msg=schedule)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_caches_are_computed_in_float32(dtype: torch.dtype) -> None:
    game = Game(CASES["shared heads"], dtype)
    for got, data in zip(game.play(schedules()["together, chunks"]), game.data, strict=True):
        torch.testing.assert_close(got.double(), dense(*data, game.attention), atol=2e-2, rtol=0)
        assert (got.double() - dense(*data, game.attention)).abs().mean() < 2e-3


def test_small_workspaces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Game(CASES["window"])
    steps = schedules()["together, whole"] + schedules()["token by token"]
    wanted = game.play(steps)
    for name, value in (("GROUP_BYTES", 1), ("SCORE_BYTES", 5000), ("LAUNCH_BYTES", 0)):
        monkeypatch.setattr(module, name, value)
    for got, expected in zip(game.play(steps), wanted, strict=True):
        torch.testing.assert_close(got, expected, atol=3e-6, rtol=0)


def test_a_window_gathers_only_the_blocks_it_needs() -> None:
    game = Game((4, 2, 16, 40, None, 16))
    sequence: Any = SimpleNamespace(blocks=list(range(100)))
    layout = StepLayout([Entry(sequence, 1500, 1, 1)], 16, 100)
    (group,) = layout.groups(game.attention)
    assert group.pieces <= 2
    assert set((group.tables // 2).unique().tolist()) <= {100, *range(1500 // 16 - 10, 100)}


def test_copies_read_before_they_write_unless_they_are_chained() -> None:
    game = Game(CASES["shared heads"])
    cache = KVCache(game.spec, 6, 16, "float32")
    for block in range(6):
        cache.layers[0][0][block] = block
    cache.copy([(0, 3), (1, 4)])
    cache.copy([(2, 0), (0, 5)])
    assert [int(cache.layers[0][0][block].mean()) for block in range(6)] == [2, 1, 2, 0, 1, 2]
