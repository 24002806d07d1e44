"""Weights from a decoder in memory, and into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from armillary.models.bfloat16 import Array
from armillary.models.decoder import Decoder
from armillary.models.parameters import Parameter, parameters
from armillary.models.quantized import Format
from armillary.models.weights import Rows, Weights

_PIECE_VALUES = 1 << 22


class DecoderWeights:
    """Those of a decoder in memory. What is forgotten leaves the decoder, which is of no use afterwards."""

    def __init__(self, decoder: Decoder) -> None:
        self.spec = decoder.spec
        self._decoder = decoder
        self._left: Counter[str] = Counter()
        for parameter in parameters(decoder.spec):
            self._left[parameter.name] += parameter.rows

    def kept(self, matrix: Parameter) -> Format | None:
        """See `armillary.models.weights.Weights`."""
        return None

    def read(self, parameter: Parameter, form: Format | None, first: int, stop: int) -> Rows:
        """See `Weights`."""
        whole = self._decoder.get_parameter(parameter.name).detach()
        found = (whole if parameter.expert is None else whole[parameter.expert])[first:stop]
        if found.dtype == torch.bfloat16:
            return Rows(found.view(torch.int16).numpy().view(np.uint16))
        return Rows(found.numpy())

    def forget(self, parameter: Parameter, first: int, stop: int) -> None:
        """See `Weights`."""
        self._left[parameter.name] -= stop - first
        if not self._left[parameter.name]:
            owner, _, name = parameter.name.rpartition(".")
            setattr(self._decoder.get_submodule(owner), name, None)


def filled_decoder(weights: Weights, dtype: torch.dtype, on_bytes: Callable[[int], None]) -> Decoder:
    """A decoder in memory with these weights, dequantised where they are quantised."""
    decoder = Decoder(weights.spec, dtype)
    targets = dict(decoder.named_parameters())
    with torch.no_grad():
        for parameter in parameters(weights.spec):
            target = targets[parameter.name]
            target_rows = target if parameter.expert is None else target[parameter.expert]
            step = max(1, _PIECE_VALUES // max(1, parameter.width) // 64) * 64
            for first in range(0, parameter.rows, step):
                stop = min(first + step, parameter.rows)
                piece = target_rows[first:stop]
                piece.copy_(_tensor(weights.read(parameter, None, first, stop).values))
                weights.forget(parameter, first, stop)
                on_bytes(piece.nbytes)
    return decoder


def _tensor(values: Array) -> torch.Tensor:
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
