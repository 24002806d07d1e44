"""Public traces, read as their authors wrote them, and scaled."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from armillary.errors import ArmillaryError
from armillary.measure.presets import workload_of
from armillary.measure.scaling import of_volume
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.traces import read_workload
from armillary.measure.workload import WorkItem, Workload

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,0
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
"""
MOONCAKE = [
    {"timestamp": 0, "input_length": 1124, "output_length": 52, "hash_ids": [46, 47, 48]},
    {"timestamp": 3000, "input_length": 600, "output_length": 26, "hash_ids": [46, 57]},
    {"timestamp": 3000, "input_length": 512, "output_length": 1, "hash_ids": [46]},
]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def mooncake(path: Path) -> Path:
    return written(path, "".join(json.dumps(row) + "\n" for row in MOONCAKE))


def test_azure_traces_of_both_years_are_read(tmp_path: Path) -> None:
    old = read_workload(written(tmp_path / "2023.csv", AZURE_2023))
    assert [(i.prompt_tokens, i.output_tokens) for i in old.items] == [(374, 44), (396, 109), (879, 1)]
    assert [i.arrival for i in old.items] == pytest.approx([0.0, 4.314579, 4.541877], abs=1e-5)
    new = read_workload(written(tmp_path / "2024.csv", AZURE_2024))
    assert [i.arrival for i in new.items] == pytest.approx([0.0, 0.007405], abs=1e-5)
    assert new.origin == {"trace": "2024.csv", "format": "azure"}


def test_mooncakes_blocks_become_shared_runs(tmp_path: Path) -> None:
    workload = read_workload(mooncake(tmp_path / "m.jsonl"))
    assert [item.arrival for item in workload.items] == [0.0, 3.0, 3.0]
    assert [item.prefix for item in workload.items] == [
        (("h46", 512), ("h47", 512), ("h48", 100)), (("h46", 512), ("h57", 88)), (("h46", 512),),
    ]  # fmt: skip
    workload.write(tmp_path / "ours.jsonl")
    assert Workload.read(tmp_path / "ours.jsonl") == workload


def test_a_trace_out_of_order_is_put_in_order(tmp_path: Path) -> None:
    rows = AZURE_2023.splitlines()
    mixed = read_workload(written(tmp_path / "mixed.csv", "\n".join([rows[0], rows[3], rows[1], rows[2]])))
    assert [item.prompt_tokens for item in mixed.items] == [374, 396, 879]
    assert mixed.items[0].arrival == 0.0


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,3", r":1 must begin with TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,3,4", r":2 must hold a time"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3", r":2 must hold a time"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-3,4", r":2 must hold lengths"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "at least one request"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 2}\n{"timestamp": 0}', r":2 must hold timestamp"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 2}\n[]', r":2 must be one JSON object"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 2}\n{', r":2 must be one JSON object"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,99999999999999999999", r":2 .* of at most"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 2}', r":1 .* must be finite"),
        ('{"timestamp": 0, "input_length": Infinity, "output_length": 2}', r":1 must hold timestamp"),
        ('{"timestamp": 0, "input_length": 5.5, "output_length": 2}', r":1 must hold .* wanted, given 5.5"),
        ('{"timestamp": 0, "input_length": 5, "output_length": true}', r":1 must hold .* wanted, given True"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": "12"}',
            r":1 .* must be a list, given '12'",
        ),
        (
            '{"prompt_tokens": 5, "output_tokens": 2, "arrival": Infinity}',
            r":1: arrival must be a finite number, given inf",
        ),
        (
            '{"prompt_tokens": 99999999999999999999, "output_tokens": 2}',
            r":1: prompt_tokens must be .*, given 99999999999999999999",
        ),
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ArmillaryError, match=what):
        read_workload(written(tmp_path / "bad", text))


def test_what_is_no_text_is_refused_wherever_that_begins(tmp_path: Path) -> None:
    for head in (
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n",
        b'{"timestamp": 0, "input_length": 5, "output_length": 2}\n',
    ):
        (tmp_path / "bad").write_bytes(head + b"\xff\xfe\n")
        with pytest.raises(ArmillaryError, match="readable file"):
            read_workload(tmp_path / "bad")


def test_a_spreadsheets_mark_is_no_text_and_a_clock_put_back_is_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-05 00:30:00,3,4\n2023-11-05 03:30:00,5,6\n"
    monkeypatch.setenv("TZ", "America/New_York")  # which puts its clock back between the two
    time.tzset()
    try:
        found = read_workload(written(tmp_path / "marked.csv", "\ufeff" + rows))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found.duration == 3 * 3600.0


def big(path: Path, count: int = 2000) -> str:
    rng = np.random.default_rng(0)
    rows = [
        {"arrival": round(at, 6), "prompt_tokens": 9, "output_tokens": 5, "session": f"s{i % (count // 2)}"}
        for i, at in enumerate(np.sort(rng.uniform(0, 100, count)).tolist())
    ]
    return str(written(path, "".join(json.dumps(row) + "\n" for row in rows)))


def test_a_replay_is_faster_or_slower_at_another_rate(tmp_path: Path) -> None:
    path = big(tmp_path / "t.jsonl")
    plain = workload_of(WorkloadSpec(workload=path))
    assert plain == Workload.read(path)
    fast = workload_of(WorkloadSpec(workload=path, rate=40.0))
    assert fast.offered_rate == pytest.approx(40.0)
    ratio = np.array([i.arrival for i in fast.items]) / np.array([i.arrival for i in plain.items])
    assert ratio == pytest.approx(np.full(2000, plain.offered_rate / 40))
    assert len(workload_of(WorkloadSpec(workload=path, requests=10))) == 10
    with pytest.raises(ArmillaryError, match="a file and also output_length"):
        workload_of(WorkloadSpec(workload=path, output_length="9"))


@pytest.mark.parametrize("volume", [0.3, 1.0, 2.5])
def test_volume_changes_how_many_come_and_not_how_long_it_takes(tmp_path: Path, volume: float) -> None:
    workload = Workload.read(big(tmp_path / "t.jsonl"))
    scaled = of_volume(workload, volume, seed=3)
    assert len(scaled) == pytest.approx(2000 * volume, rel=0.08)
    assert scaled == of_volume(workload, volume, seed=3)
    assert len({item.id for item in scaled.items}) == len(scaled)
    assert set(Counter(item.session for item in scaled.items).values()) == {2}, "conversations stay whole"
    turns: dict[str | None, list[float]] = {}
    for item in scaled.items:
        turns.setdefault(item.session, []).append(item.arrival or 0.0)
    before = {item.session: [] for item in workload.items}
    for item in workload.items:
        before[item.session].append(item.arrival or 0.0)
    for name, (first, second) in turns.items():
        one, other = before[str(name).split("+")[0]]
        assert second - first == pytest.approx(other - one), "and their turns as far apart"


def test_copies_share_nothing_with_each_other(tmp_path: Path) -> None:
    workload = read_workload(mooncake(tmp_path / "m.jsonl"))
    double = of_volume(workload, 2.0, seed=0)
    names = [{run for run, _ in item.prefix} for item in double.items]
    copied = [runs for item, runs in zip(double.items, names, strict=True) if item.id.endswith("+1")]
    own = [runs for item, runs in zip(double.items, names, strict=True) if not item.id.endswith("+1")]
    assert len(copied) == len(own) == 3
    assert not set().union(*copied) & set().union(*own)
    with pytest.raises(ArmillaryError, match="at least one request"):
        of_volume(workload, 1e-9, seed=0)


def test_a_mark_and_empty_lines_at_the_beginning_change_nothing(tmp_path: Path) -> None:
    plain, own = mooncake(tmp_path / "m.jsonl"), tmp_path / "own.jsonl"
    Workload([WorkItem(id="0", arrival=0.0, prompt_tokens=3, output_tokens=2)]).write(own)
    for path in (plain, own):
        marked, spaced = tmp_path / "marked.jsonl", tmp_path / "spaced.jsonl"
        marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        spaced.write_bytes(b"\n \n" + path.read_bytes())
        assert read_workload(marked).items == read_workload(spaced).items == read_workload(path).items
