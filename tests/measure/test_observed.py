"""From a journal to a workload that does the same again."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from armillary.cli.main import build_app
from armillary.core.config import SchedulerConfig
from armillary.core.journal import Journal
from armillary.errors import ArmillaryError
from armillary.measure.journal import Life
from armillary.measure.observed import observed
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import Workload
from armillary.twin.cost import IdealCost
from armillary.twin.simulate import simulate

CONFIG = SchedulerConfig(num_blocks=300, max_context=400, max_running=8, max_step_tokens=64)
SPEC = WorkloadSpec(
    requests=80, rate=20.0, prompt_length="uniform:5,60", output_length="uniform:1,20", prefixes=3, prefix_length=48,
    prefix_share=0.7, seed=2,
)  # fmt: skip


def journal() -> tuple[list[str], Workload]:
    lines: list[str] = []
    workload = synthesise(SPEC)
    simulate(CONFIG, workload, IdealCost(0.01, 0.001), journal=Journal(lines.append), leap=False)
    return lines, workload


def test_what_was_served_is_observed_and_does_the_same_again() -> None:
    lines, workload = journal()
    found = observed(Life(1, lines))
    assert len(found) == len(workload)
    assert [item.prompt_tokens for item in found.items] == [item.prompt_tokens for item in workload.items]
    assert [item.output_tokens for item in found.items] == [item.output_tokens for item in workload.items]
    for mine, given in zip(found.items, workload.items, strict=True):
        assert sum(tokens for _, tokens in mine.prefix) == (given.prefix_tokens if given.prefix else 0)
    again = simulate(CONFIG, found, IdealCost(0.01, 0.001))
    assert again.stats.prefix_hit_tokens == pytest.approx(
        simulate(CONFIG, workload, IdealCost(0.01, 0.001)).stats.prefix_hit_tokens, rel=0.05
    )
    late = observed(Life(1, lines), last=1.0)
    assert 0 < len(late) < len(found) and late.items[0].arrival == 0.0


def test_the_command_line_and_a_journal_without_answers(tmp_path: Path) -> None:
    lines, workload = journal()
    (tmp_path / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))
    arguments = ["observe", str(tmp_path / "journal.jsonl"), str(tmp_path / "workload.jsonl")]
    result = CliRunner().invoke(build_app(arguments), arguments)
    assert result.exit_code == 0, result.output
    assert len(Workload.read(tmp_path / "workload.jsonl")) == len(workload)
    with pytest.raises(ArmillaryError, match="at least one request that was answered"):
        observed(Life(1, lines[:1]))
    arguments[2] = arguments[1]
    before = (tmp_path / "journal.jsonl").read_bytes()
    result = CliRunner().invoke(build_app(arguments), arguments)
    assert isinstance(result.exception, ArmillaryError) and "another file than the journal" in str(result.exception)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
