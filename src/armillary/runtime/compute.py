"""What an executor computes with: a decoder on its keys and values, by torch or by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from armillary.core.step import Entry
from armillary.kernels import native
from armillary.models.native import NativeDecoder
from armillary.models.quantized import ELEMENTS
from armillary.runtime.cache import BlockStore, NativeKVCache
from armillary.runtime.native_sampler import NativeSampler
from armillary.runtime.threads import current_threads

if TYPE_CHECKING:
    from armillary.models.decoder import Decoder

Floats = npt.NDArray[np.float32]


class Compute(Protocol):
    """A decoder on its keys and values. One thread at a time.

    What it returns may lie in memory that the next call of the same kind overwrites: arrays of a step are made once for
    all steps of one size.

    Attributes:
        cache: the keys and values; the compute alone knows how a block is laid out.
    """

    cache: BlockStore

    def hidden(self, tokens: list[int], entries: ReadOnlyList[Entry]) -> tuple[Floats, bool]:
        """Store a step's keys and values, and compute its hidden states after the final norm.

        T tokens, those of one entry after another, all of the vocabulary -> [T, hidden], and whether all of them are
        finite. A row's bits do not depend on the others.
        """
        ...

    def logits(self, hidden: Floats, places: list[int]) -> Floats:
        """Scores of some rows of hidden, [len(places), vocab]; a place may be listed more than once."""
        ...

    def sampler(self) -> NativeSampler | None:
        """What chooses tokens from the logits, on the threads that computed them; None for torch."""
        ...

    @property
    def workspace_bytes(self) -> int:
        """Memory held for the next step."""
        ...


class NativeCompute:
    """By the native kernels: one call for a whole step."""

    def __init__(
        self, decoder: NativeDecoder, num_blocks: int, block_size: int, dtype: str, threads: int | None
    ) -> None:
        extension = native.extension()
        self.decoder = decoder
        cache = NativeKVCache(decoder.spec, num_blocks, block_size, ELEMENTS[dtype], decoder.path)
        self.cache: BlockStore = cache
        self._store = cache.store
        self._program = extension.Program(decoder.model, threads or current_threads(), adapt=True)
        self._states: Floats = np.empty((0, decoder.spec.hidden_size), dtype=np.float32)
        self._scores: Floats = np.empty((0, decoder.spec.vocab_size), dtype=np.float32)

    def hidden(self, tokens: list[int], entries: ReadOnlyList[Entry]) -> tuple[Floats, bool]:
        """See `Compute`."""
        # No tensors, and arrays for results alone: after the kernels have driven everything else out of the nearest
        # cache, making and handing over a tensor takes longer than some small models' whole layers.
        if len(self._states) != len(tokens):
            self._states = np.empty((len(tokens), self.decoder.spec.hidden_size), dtype=np.float32)
        counts = [entry.count for entry in entries]
        starts = [entry.start for entry in entries]
        tables = [entry.sequence.blocks for entry in entries]
        return self._states, self._program.hidden(self._store, tokens, counts, starts, tables, self._states)

    def logits(self, hidden: Floats, places: list[int]) -> Floats:
        """See `Compute`."""
        if len(self._scores) != len(places):
            self._scores = np.empty((len(places), self.decoder.spec.vocab_size), dtype=np.float32)
        self._program.logits(hidden, places, self._scores)
        return self._scores

    def sampler(self) -> NativeSampler | None:
        """See `Compute`."""
        return NativeSampler(self.decoder.path, self._program.team)

    @property
    def workspace_bytes(self) -> int:
        """See `Compute`."""
        return int(self._program.bytes) + self._states.nbytes + self._scores.nbytes


def make_compute(
    decoder: Decoder | NativeDecoder, num_blocks: int, block_size: int, dtype: str, threads: int | None
) -> Compute:
    """The compute that fits these weights, on so many threads; None leaves that to torch's setting.

    Args:
        dtype: number format of keys and values, by its name.
    """
    if isinstance(decoder, NativeDecoder):
        return NativeCompute(decoder, num_blocks, block_size, dtype, threads)
    from armillary.runtime.torch_compute import TorchCompute

    return TorchCompute(decoder, num_blocks, block_size, dtype, threads)
