"""What an executor computes with: a decoder on its keys and values, by torch or by the native kernels."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from armillary.kernels import native
from armillary.kernels.paged import Workspace
from armillary.models.decoder import Decoder
from armillary.models.native import NativeDecoder
from armillary.runtime.attention import PagedAttend, StepLayout
from armillary.runtime.cache import BlockStore, KVCache, NativeKVCache
from armillary.runtime.native_sampler import NativeSampler

Ints = npt.NDArray[np.int64]


class Compute(Protocol):
    """A decoder on its keys and values. One thread at a time.

    Attributes:
        cache: the keys and values; the compute alone knows how a block is laid out.
    """

    cache: BlockStore

    def hidden(self, ids: Ints, layout: StepLayout) -> tuple[Tensor, bool]:
        """Store a step's keys and values, and compute its hidden states after the final norm.

        ids [T], all of the vocabulary -> [T, hidden], and whether all of them are finite. A row's bits do not depend on
        the others.
        """
        ...

    def logits(self, hidden: Tensor, places: list[int]) -> Tensor:
        """Scores of some rows of hidden, float32 [len(places), vocab]; a place may be listed more than once."""
        ...

    def sampler(self) -> NativeSampler | None:
        """What chooses tokens from the logits, on the threads that computed them; None for torch."""
        ...

    @property
    def workspace_bytes(self) -> int:
        """Memory held for the next step."""
        ...


class TorchCompute:
    """By torch, on whatever device the weights are."""

    def __init__(self, decoder: Decoder, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.decoder = decoder
        self._kv = KVCache(decoder.spec, num_blocks, block_size, dtype)
        self.cache: BlockStore = self._kv
        self._workspace = Workspace()

    def hidden(self, ids: Ints, layout: StepLayout) -> tuple[Tensor, bool]:
        """See `Compute`."""
        attend = PagedAttend(self.decoder.spec, self._kv, layout, self._workspace)
        found: Tensor = self.decoder(torch.from_numpy(ids), torch.from_numpy(layout.positions), attend)
        # Not finite in, not finite out: one sum over everything finds that there is nothing to find.
        return found, math.isfinite(found.sum(dtype=torch.float32).item())

    def logits(self, hidden: Tensor, places: list[int]) -> Tensor:
        """See `Compute`."""
        return self.decoder.logits(hidden.index_select(0, torch.tensor(places)))

    def sampler(self) -> NativeSampler | None:
        """See `Compute`."""
        return None

    @property
    def workspace_bytes(self) -> int:
        """See `Compute`."""
        return self._workspace.bytes


class NativeCompute:
    """By the native kernels: one call for a whole step."""

    def __init__(
        self, decoder: NativeDecoder, num_blocks: int, block_size: int, dtype: torch.dtype, threads: int
    ) -> None:
        extension = native.extension()
        self.decoder = decoder
        element = native.ELEMENTS[dtype]
        cache = NativeKVCache(decoder.spec, num_blocks, block_size, element, decoder.path)
        self.cache: BlockStore = cache
        self._store = cache.store
        self._program = extension.Program(decoder.model, threads, adapt=True)

    def hidden(self, ids: Ints, layout: StepLayout) -> tuple[Tensor, bool]:
        """See `Compute`."""
        # Arrays of numpy, because handing over a tensor takes longer than some small models' whole layers.
        out = np.empty((len(ids), self.decoder.spec.hidden_size), dtype=np.float32)
        finite = self._program.hidden(self._store, ids, layout.counts, layout.starts, layout.rows, layout.tables, out)
        return torch.from_numpy(out), finite

    def logits(self, hidden: Tensor, places: list[int]) -> Tensor:
        """See `Compute`."""
        out = np.empty((len(places), self.decoder.spec.vocab_size), dtype=np.float32)
        self._program.logits(hidden.numpy(), np.asarray(places, dtype=np.int64), out)
        return torch.from_numpy(out)

    def sampler(self) -> NativeSampler | None:
        """See `Compute`."""
        return NativeSampler(self.decoder.path, self._program.team)

    @property
    def workspace_bytes(self) -> int:
        """See `Compute`."""
        return int(self._program.bytes)


def make_compute(
    decoder: Decoder | NativeDecoder, num_blocks: int, block_size: int, dtype: torch.dtype, threads: int
) -> Compute:
    """The compute that fits these weights."""
    if isinstance(decoder, NativeDecoder):
        return NativeCompute(decoder, num_blocks, block_size, dtype, threads)
    return TorchCompute(decoder, num_blocks, block_size, dtype)
