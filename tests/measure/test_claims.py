"""The harness of claims: finding, choosing, verdicts that can come out either way, the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.measure.claims import (
    Claim,
    ClaimResult,
    Finding,
    Trial,
    choose,
    claims_folder,
    load_claims,
    markdown,
    read_results,
    run_claim,
    write_page,
)
from armillary.measure.statistics import Spread


def claim(name: str, measure) -> Claim:
    return Claim(name, "A title", "VENUE 2000", "published", "compared", "rule", measure)


def found(holds: bool) -> Finding:
    return Finding(holds, "twice as fast", {"ratio": Spread((2.0, 1.5, 3.0))}, ["a note"])


def test_verdicts_come_out_either_way_and_failure_is_neither() -> None:
    assert run_claim(claim("a", lambda trial: found(True))).verdict == "holds"
    assert run_claim(claim("a", lambda trial: found(False))).verdict == "refuted"
    broken = run_claim(claim("a", lambda trial: 1 / 0))
    assert (broken.verdict, broken.result) == ("not measured", "ZeroDivisionError: division by zero")


def test_results_are_json_and_a_page(tmp_path: Path) -> None:
    result = run_claim(claim("a", lambda trial: found(True)), Trial(repeats=3))
    assert result.figures["ratio"] == {"median": 2.0, "low": 1.5, "high": 3.0, "values": [2.0, 1.5, 3.0]}
    assert ClaimResult.model_validate(json.loads(result.model_dump_json())) == result
    page = markdown([result])
    for part in (
        "A title, VENUE 2000",
        "**holds**",
        "twice as fast",
        "| ratio | 2 | 1.5 | 3 |",
        "- a note",
        "**Rule:** rule",
    ):
        assert part in page


def test_results_are_kept_until_measured_again(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.py").touch()
    one, other = (run_claim(claim(name, lambda trial: found(True)), Trial(repeats=3)) for name in "ab")
    assert write_page([one], folder).read_text() == markdown([one])
    assert write_page([other], folder).read_text() == markdown([one, other])
    again = run_claim(claim("a", lambda trial: found(False)))
    assert write_page([again], folder).read_text() == markdown([again, other])
    assert [result.name for result in read_results(folder / "results.json")] == ["a", "b"]
    (folder / "a.py").unlink()
    assert write_page([], folder).read_text() == markdown([other])
    (folder / "results.json").write_text("[1]")
    with pytest.raises(ArmillaryError, match="--write"):
        write_page([], folder)


def test_claims_are_found_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "helper.py").write_text("VALUE = 1\n")
    body = (
        "from armillary.measure.claims import Claim\nfrom published.helper import VALUE\n"
        "CLAIM = Claim({name!r}, 't', 'v', 'p', 'c', 'r', lambda trial: None)\n"
    )
    (folder / "one.py").write_text(body.format(name="one"))
    (folder / "two.py").write_text(body.format(name="two"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    claims = load_claims(folder)
    assert list(claims) == ["one", "two"]
    assert choose(claims, []) == list(claims.values())
    assert choose(claims, ["two"]) == [claims["two"]]
    assert choose(claims, ["t*", "two", "o?e"]) == [claims["two"], claims["one"]]
    with pytest.raises(ArmillaryError, match=r"given x\*"):
        choose(claims, ["one", "x*"])
    with pytest.raises(ArmillaryError, match="one of one, two, given three"):
        choose(claims, ["three"])
    (folder / "three.py").write_text(body.format(name="four"))
    with pytest.raises(ArmillaryError, match=r"three\.py must define CLAIM"):
        load_claims(folder)


def test_a_place_without_claims_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import armillary.measure.claims as module

    monkeypatch.setattr(module, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    with pytest.raises(ArmillaryError, match="clone of the repository") as missing:
        claims_folder(tmp_path)
    assert missing.value.code is Code.NOT_FOUND


def test_the_first_four_claims_state_all_that_they_must() -> None:
    claims = load_claims()
    assert {"orca", "pagedattention", "sarathi", "prefix_sharing"} <= set(claims)
    for found_claim in claims.values():
        for text in (
            found_claim.title,
            found_claim.venue,
            found_claim.published,
            found_claim.compared,
            found_claim.rule,
        ):
            assert len(text) > 5


def test_claims_of_a_kind_are_chosen_by_a_pattern_with_either_stroke() -> None:
    claims = load_claims()
    twins = [found_claim for name, found_claim in claims.items() if name.startswith("twin_")]
    assert {"twin_mva", "twin_sarathi", "twin_distserve", "twin_alpaserve"} <= {each.name for each in twins}
    assert choose(claims, ["twin-*"]) == choose(claims, ["twin_*"]) == twins
    assert choose(claims, ["twin-mva"]) == [claims["twin_mva"]]


def test_the_committed_page_is_that_of_the_claims() -> None:
    """The texts of docs/claims.md are those of the files; its figures are of the last run."""
    page = (claims_folder().parent / "docs" / "claims.md").read_text(encoding="utf-8")
    for found_claim in load_claims().values():
        assert f"## {found_claim.name}\n" in page
        for text in (found_claim.published, found_claim.compared, found_claim.rule):
            assert text in page, f"docs/claims.md is out of date: run `armillary claims --write` ({found_claim.name})"
