"""armillary workload: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armillary.cli.main import EXIT_CODES, run
from armillary.errors import Code
from armillary.measure.presets import workload_of
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.workload import Workload


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        run(["workload", *arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def test_make_writes_what_bench_would_draw_and_show_describes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.jsonl"
    flags = ["--workload", "rag", "--rate", "3", "--requests", "400", "--slo-classes", "a 1: ttft p95 1s"]
    code, _, told = called(capsys, "make", *flags, str(path))
    assert code in (0, None)
    assert "400 requests" in told
    spec = WorkloadSpec(workload="rag", rate=3.0, requests=400, slo_classes="a 1: ttft p95 1s")
    assert Workload.read(path) == workload_of(spec)
    _, out, _ = called(capsys, "show", str(path), "--json")
    drawn = json.loads(out)
    assert drawn["requests"] == drawn["conversations"] == 400
    assert drawn["rate"] == pytest.approx(3.0, rel=0.2)
    assert drawn["gap_cv"] == pytest.approx(1.0, abs=0.2)
    assert 0.3 < drawn["shareable"] < 0.9
    assert drawn["slo_classes"] == {"a": "ttft p95 1s".replace("1s", "1000ms")}
    assert "class a" in called(capsys, "show", str(path))[1]


def test_the_share_that_a_cache_may_hold_is_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.jsonl"
    rows = [
        {"prompt_tokens": 30, "output_tokens": 2, "prefix": [["a", 10], ["b", 10]]},
        {"prompt_tokens": 30, "output_tokens": 4, "prefix": [["a", 10], ["c", 10]], "session": "s"},
        {"prompt_tokens": 30, "output_tokens": 6, "prefix": [["b", 10]]},
        {"prompt_tokens": 60, "output_tokens": 8, "session": "s", "history": 34},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = json.loads(called(capsys, "show", str(path), "--json")[1])
    assert drawn["shareable"] == pytest.approx((10 + 34) / 150), "b counts only after a, where it stood before"
    assert drawn["correlation"] == pytest.approx(0.7746, abs=1e-4)


def test_what_cannot_be_drawn_or_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.jsonl"
    for arguments, code, said in (
        (["make", "--workload", "nonsense", str(path)], Code.NOT_FOUND, "chat, rag, agent, batch"),
        (["make", "--arrivals", "gauss", "--rate", "1", str(path)], Code.INVALID_REQUEST, "arrivals must be"),
        (["make", "--requests", "0", str(path)], Code.INVALID_DEPLOYMENT, "--requests must be"),
        (["show", str(path)], Code.NOT_FOUND, "readable file"),
        # What would take for ever, or more memory than there is.
        (["make", "--turns", "geometric:1e6", str(path)], Code.INVALID_REQUEST, "turns must be fewer"),
        (["make", "--prefixes", "1000000000", "--prefix-length", "4", str(path)], Code.INVALID_DEPLOYMENT, "at most"),
        (["make", "--arrivals", "mmpp:2,0.5,1e-9", "--rate", "1", str(path)], Code.INVALID_REQUEST, "change its rate"),
        (["make", "--prompt-length", "fixed:1e30", str(path)], Code.INVALID_REQUEST, "no number above"),
        (["make", "--rate", "1e-320", str(path)], Code.INVALID_REQUEST, "in finite time"),
        (["make", "--requests", str(10**16), str(path)], Code.MEMORY, "must fit in memory"),
        # What cannot be written.
        (["make", str(tmp_path)], Code.INVALID_REQUEST, "which is a folder"),
        (["make", "/dev/null"], Code.INVALID_REQUEST, "which is a device"),
        (["make", "/proc/none/w.jsonl"], Code.INVALID_REQUEST, "a place that can be read or written"),
    ):
        left, _, error = called(capsys, *arguments)
        assert left == EXIT_CODES[code]
        assert said in error
        assert not path.exists() and not list(tmp_path.iterdir())
    assert EXIT_CODES[Code.NOT_FOUND] == 2, "a file that is not there is a wrong argument"


def test_a_line_that_does_not_fit_is_said_with_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.jsonl"
    for line, said in (
        ('{"prompt_tokens": 3, "output_tokens": 2, "prefix": [["a", 0]]}', "prefix[0][1] must be at least 1, given 0"),
        ('{"prompt_tokens": 3, "output_token": 2}', "output_tokens must be given"),
        (
            '{"prompt_tokens": 3, "output_tokens": 2, "thnk": 1}',
            "thnk is not a known key, given 1; did you mean think?",
        ),
        ('{"prompt_tokens": ' + 100_000 * "[" + "1", "values within values"),
    ):
        path.write_text(line + "\n")
        left, _, error = called(capsys, "show", str(path))
        assert left == EXIT_CODES[Code.INVALID_REQUEST] and said in error


def test_copies_without_end_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(
        '{"prompt_tokens": 3, "output_tokens": 2}\n{"prompt_tokens": 3, "output_tokens": 2, "arrival": 1}\n'
    )
    arguments = ["make", "--workload", str(path), "--volume", "1e12", str(tmp_path / "more.jsonl")]
    assert "at most 100,000,000 requests" in called(capsys, *arguments)[2]
