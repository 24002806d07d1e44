"""The accounting of a scheduler, added up anew from what its sequences hold."""

from __future__ import annotations

from armillary.core.blocks import BlockPool
from armillary.core.holding import Holding
from armillary.core.prefix import PrefixIndex
from armillary.core.queue import WaitingQueue
from armillary.core.request import Sequence


def audit(
    running: list[Sequence],
    waiting: WaitingQueue,
    alive: dict[str, list[Sequence]],
    slots: int,
    pool: BlockPool,
    index: PrefixIndex,
    held: Holding,
) -> None:
    """Raise `RuntimeError` where a count differs from what the sequences say.

    Args:
        alive: request id -> its sequences that have not ended.
        held: blocks of ended requests.
        slots: running sequences, each counted with the siblings that it will still split off.
    """
    index.check()
    pool.check(block for blocks in (*(s.blocks for s in running), *map(held.of, held)) for block in blocks)
    sequences = [sequence for siblings in alive.values() for sequence in siblings]
    for sequence in sequences:
        if sequence.running == (sequence in waiting):
            raise RuntimeError(f"{sequence} must be either running or waiting")
        if not sequence.running and (sequence.blocks or sequence.computed):
            raise RuntimeError(f"{sequence} waits and yet holds blocks or counts computed tokens")
    if len(running) + len(waiting) != len(sequences):
        raise RuntimeError("a sequence that has ended is still running or waiting")
    if slots != sum(1 + sequence.forks for sequence in running):
        raise RuntimeError(f"{slots} slots are taken, and the running sequences need another number")
