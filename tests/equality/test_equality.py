"""The spine: what a request is given does not depend on how the engine came to compute it.

For each family, in every cell of {alone, batch} × {cache on, off} × {chunks of 8, of 48, whole} × {many blocks,
few} × {preempted, not}: greedy tokens equal those of transformers, logits to 1e-4, and all tokens and logprobs
equal those of the reference cell, bit for bit where the platform's matrix products allow it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from armillary.core.step import Step, StepResult
from armillary.kernels import native
from equality_cells import (
    QUICK,
    REFERENCE,
    REST,
    Cell,
    RecordingExecutor,
    Subject,
    check_against_oracle,
    check_rare_paths,
    difference,
    make_subject,
    run_cell,
)
from families import TEN

KERNELS = ["torch", *native.paths()]


@cache
def subject(name: str, kernels: str) -> Subject:
    """Made once per family, kernels and process."""
    with TemporaryDirectory() as folder:
        return make_subject(name, Path(folder), None if kernels == "torch" else kernels)


def check(name: str, kernels: str, cells: list[Cell]) -> None:
    about = subject(name, kernels)
    for cell in cells:
        outcome = run_cell(about.decoder, cell)
        check_rare_paths(cell, outcome)
        check_against_oracle(about, outcome)
        problem = difference(outcome, about.reference, kernels != "torch")
        assert problem is None, f"{cell}: {problem}"


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", TEN)
def test_the_reference_cell_equals_transformers(name: str, kernels: str) -> None:
    check_rare_paths(REFERENCE, subject(name, kernels).reference)
    check_against_oracle(subject(name, kernels), subject(name, kernels).reference)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", TEN)
def test_cells_that_cover_every_pair_are_equal(name: str, kernels: str) -> None:
    check(name, kernels, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [KERNELS[0], *KERNELS[1:][-1:]])
@pytest.mark.parametrize("name", TEN)
def test_all_other_cells_are_equal(name: str, kernels: str) -> None:
    check(name, kernels, REST)


class IgnoresCopies(RecordingExecutor):
    """Broken on purpose: choices that split off keep reading each other's last block."""

    def run(self, step: Step) -> StepResult:
        step.copies = []
        return super().run(step)


class KeepsTables(RecordingExecutor):
    """Broken on purpose: goes on with the block table a sequence had before it was preempted."""

    def run(self, step: Step) -> StepResult:
        tables = self.__dict__.setdefault("tables", {})
        true = [entry.sequence.blocks for entry in step.entries]
        for entry in step.entries:
            known = tables.setdefault(entry.sequence.uid, [])
            known.extend(entry.sequence.blocks[len(known) :])
            entry.sequence.blocks = list(known)
        result = super().run(step)
        for entry, blocks in zip(step.entries, true, strict=True):
            entry.sequence.blocks = blocks
        return result


class SharesMemory(RecordingExecutor):
    """Broken on purpose: two blocks of the pool are one in memory, as if one had been handed out twice."""

    def run(self, step: Step) -> StepResult:
        true = [entry.sequence.blocks for entry in step.entries]
        for entry in step.entries:
            entry.sequence.blocks = [block - block % 2 for block in entry.sequence.blocks]
        result = super().run(step)
        for entry, blocks in zip(step.entries, true, strict=True):
            entry.sequence.blocks = blocks
        return result


@pytest.mark.parametrize("executor", [IgnoresCopies, KeepsTables, SharesMemory])
def test_a_broken_engine_is_found(executor: type[RecordingExecutor]) -> None:
    cell = Cell(batch=True, cache=False, chunk=8, many=False, preempted=True)
    about = subject("qwen3", KERNELS[-1])
    outcome = run_cell(about.decoder, cell, executor)
    assert difference(outcome, about.reference, KERNELS[-1] != "torch") is not None
