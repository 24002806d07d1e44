"""What an executor computes with where there are no native kernels: torch."""

from __future__ import annotations

import math
from collections.abc import Sequence as ReadOnlyList

import torch

from armillary.core.step import Entry
from armillary.kernels.paged import Workspace
from armillary.models.decoder import Decoder
from armillary.runtime.attention import PagedAttend, StepLayout
from armillary.runtime.cache import BlockStore
from armillary.runtime.compute import Floats
from armillary.runtime.native_sampler import NativeSampler
from armillary.runtime.threads import use_threads
from armillary.runtime.torch_cache import KVCache


class TorchCompute:
    """By torch, on whatever device the weights are."""

    def __init__(self, decoder: Decoder, num_blocks: int, block_size: int, dtype: str, threads: int | None) -> None:
        self.decoder = decoder
        self._threads = threads
        self._kv = KVCache(decoder.spec, num_blocks, block_size, dtype)
        self.cache: BlockStore = self._kv
        self._workspace = Workspace()

    @torch.inference_mode()
    def hidden(self, tokens: list[int], entries: ReadOnlyList[Entry]) -> tuple[Floats, bool]:
        """See `armillary.runtime.compute.Compute`."""
        use_threads(self._threads)
        layout = StepLayout(entries, self.cache.block_size, self.cache.zero_block)
        attend = PagedAttend(self.decoder.spec, self._kv, layout, self._workspace)
        states = self.decoder(torch.tensor(tokens), torch.from_numpy(layout.positions), attend)
        found: Floats = states.float().numpy()
        # Not finite in, not finite out: one sum over everything finds that there is nothing to find.
        return found, math.isfinite(states.sum(dtype=torch.float32).item())

    @torch.inference_mode()
    def logits(self, hidden: Floats, places: list[int]) -> Floats:
        """See `Compute`."""
        states = torch.from_numpy(hidden[places]).to(self.decoder.compute_dtype)
        found: Floats = self.decoder.logits(states).numpy()
        return found

    def sampler(self) -> NativeSampler | None:
        """See `Compute`."""
        return None

    @property
    def workspace_bytes(self) -> int:
        """See `Compute`."""
        return self._workspace.bytes
