"""One layer of native attention with its cache, driven step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

native = pytest.importorskip("armillary.kernels._native", reason="built without native kernels")

Floats = npt.NDArray[np.float32]
ELEMENTS = {"f32": 0, "bf16": 1, "f16": 2, "i8": 3}
PATHS = native.paths()
PAIRED = [
    path for path in (*PATHS, *native.emulated_paths()) if path.removeprefix("emulated_") in ("avx512_bf16", "amx")
]
"""Paths that multiply pairs of bfloat16, and what stands in for them."""
EMULATED = [path for path in PAIRED if path not in PATHS]


def cases(*elements: str) -> list[tuple[str, str]]:
    """Every path with every element; what stands in for another with bfloat16 alone, the rest being no code of its."""
    return [(path, e) for e in elements for path in (*PATHS, *EMULATED) if path in PATHS or e == "bf16"]


@dataclass(frozen=True)
class Shape:
    """A layer's attention; `rotated` dimensions of a head are rotated, and `norm` is None, head or full."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    block_size: int = 16
    element: str = "f32"
    scale: float = 0.125
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    rotated: int = 0
    norm: str | None = None
    offset: bool = False

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim


class Layer:
    """A cache of one layer with its parameters, and the rows that went through it."""

    def __init__(self, path: str, shape: Shape, blocks: int, seed: int = 0) -> None:
        self.path, self.shape = path, shape
        self.cache = native.KvCache(path, blocks, ELEMENTS[shape.element], shape.kv_heads, shape.dim, shape.block_size)
        draw = np.random.default_rng(seed)
        width = {None: (0, 0), "head": (shape.dim, shape.dim)}.get(
            shape.norm, (shape.heads * shape.dim, shape.kv_heads * shape.dim)
        )
        self.norms = [draw.uniform(0.5, 1.5, n).astype(np.float32) if n else None for n in width]
        self.sinks = draw.normal(0, 2, shape.heads).astype(np.float32) if shape.sinks else None

    @property
    def paired(self) -> bool:
        """Whether pairs of bfloat16 are multiplied."""
        return self.path in PAIRED and self.shape.element == "bf16"

    def angles(self, positions: npt.NDArray[np.int64]) -> tuple[Floats | None, Floats | None]:
        half = self.shape.rotated // 2
        if not half:
            return None, None
        turn = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
        cos, sin = np.cos(turn), np.sin(turn)
        return np.concatenate([cos, cos], 1).astype(np.float32), np.concatenate([-sin, sin], 1).astype(np.float32)

    def step(
        self, rows: Floats, counts: list[int], starts: list[int], tables: npt.NDArray[np.int64], threads: int = 1
    ) -> tuple[Floats, Floats]:
        """One step: (outputs [rows, heads * dim], the rows with their queries as they were multiplied)."""
        shape = self.shape
        qkv = rows.copy()
        where = [np.array(x, dtype=np.int64) for x in (counts, starts, np.cumsum([0, *counts])[:-1])]
        positions = np.concatenate(
            [np.arange(0), *(np.arange(start, start + count) for start, count in zip(starts, counts, strict=True))]
        )
        cos, sin = self.angles(positions)
        self.cache.store(
            qkv, shape.heads, *where, tables, cos, sin, *self.norms, shape.norm == "full", shape.offset, 1e-6, threads
        )
        out = np.full((len(rows), shape.heads * shape.dim), np.nan, dtype=np.float32)
        self.cache.attend(
            qkv, out, shape.heads, *where, tables, shape.scale, shape.window, shape.softcap, self.sinks, threads
        )
        return out, qkv

    def stored(self, table: npt.NDArray[np.int64], length: int) -> tuple[Floats, Floats]:
        """Keys and values of a sequence as the cache has them, [length, kv_heads, dim] each."""
        shape = self.shape
        found: tuple[list[Floats], list[Floats]] = ([], [])
        for block in table[: -(-length // shape.block_size)]:
            pair = [np.empty((shape.kv_heads, shape.block_size, shape.dim), dtype=np.float32) for _ in range(2)]
            self.cache.read(int(block), *pair)
            for side, read in zip(found, pair, strict=True):
                side.append(read.transpose(1, 0, 2))
        return np.concatenate(found[0])[:length], np.concatenate(found[1])[:length]


def draw_rows(shape: Shape, length: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 1, (length, shape.width)).astype(np.float32)
