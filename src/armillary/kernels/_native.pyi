"""The extension that `src/native` builds; documented there, and used through `armillary.kernels.native`."""

from typing import Any

from numpy.typing import NDArray
from torch import Tensor

Array = Tensor | NDArray[Any]

def paths() -> list[str]: ...
def weight_bytes(
    path: str,
    out: int,
    in_: int,
    element: int,
    group: int = 0,
    zero_points: bool = False,
    paired: bool = False,
    int8_activations: bool = False,
) -> int: ...

class Weight:
    def __init__(
        self,
        path: str,
        memory: Array,
        out: int,
        in_: int,
        element: int,
        group: int = 0,
        zero_points: bool = False,
        paired: bool = False,
        int8_activations: bool = False,
    ) -> None: ...
    def pack(self, rows: Array, first: int = 0, scales: Array | None = None, zeros: Array | None = None) -> None: ...
    def rows(self, which: Array, out: Array) -> None: ...

class Model:
    def __init__(
        self,
        path: str,
        hidden: int,
        vocab: int,
        eps: float,
        norm_offset: bool,
        norm: Array,
        head: Weight,
        embed: Array | None,
        embed_scale: float,
        logit_softcap: float,
    ) -> None: ...
    def add_rope(self, inverse: Array, scale: float) -> None: ...
    def add_layer(self, parts: dict[str, Any]) -> None: ...

class KvStore:
    def __init__(self, path: str, blocks: int) -> None: ...
    @staticmethod
    def block_bytes(path: str, element: int, kv_heads: int, head_dim: int, block_size: int) -> int: ...
    def add_layer(
        self, keys: Array, values: Array, element: int, kv_heads: int, head_dim: int, block_size: int
    ) -> None: ...
    def clear(self, table: Array, first: int, count: int) -> None: ...
    def read(self, layer: int, block: int, keys: Array, values: Array) -> None: ...

class Program:
    def __init__(self, model: Model, threads: int) -> None: ...
    def hidden(
        self,
        kv: KvStore,
        tokens: Array,
        counts: Array,
        starts: Array,
        first_row: Array,
        tables: Array,
        out: Array,
    ) -> None: ...
    def logits(self, hidden: Array, rows: Array, out: Array) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...
