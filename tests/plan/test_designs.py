"""The designs that are left open: whatever was given stays, and goes together with what is chosen."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from armillary.deployment import Deployment
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan import designs as designs_module
from armillary.plan.designs import Design, space
from armillary.plan.question import Question
from armillary.plan.whatif import NO_PREFIX, PREFIX, changes


def asked(deployment: dict[str, Any], hardware: str = "l4", changed: tuple[str, ...] = ()) -> Question:
    return Question(
        Deployment.model_validate(deployment), hardware, WorkloadSpec(), Slo.parse("ttft p95 1s"), changed=changed
    )


def engines(question: Question) -> list[tuple[int, int]]:
    """Sequences and tokens of what would be served, of each design."""
    served = [design.deployment(question) for design in space(question)]
    settings = [deployment.engine_of(deployment.model) for deployment in served]
    return [(engine.max_running, engine.max_step_tokens) for engine in settings]


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"max_step_tokens": 8}, lambda running, tokens: (running, tokens) == (8, 8)),
        ({"max_step_tokens": 40}, lambda running, tokens: running in (16, 32) and tokens == 40),
        ({"max_running": 10_000}, lambda running, tokens: (running, tokens) == (10_000, 10_000)),
        ({"max_chunk_tokens": 512}, lambda running, tokens: tokens >= 512),
    ],
)
def test_what_is_given_goes_together_with_what_is_chosen(given: dict[str, int], fits: Any) -> None:
    found = engines(asked({"engine": given}, changed=tuple(given)))
    assert found and all(fits(running, tokens) and running <= tokens for running, tokens in found)


def test_what_contradicts_itself_is_left_for_whoever_works_it_out_to_refuse() -> None:
    given = {"max_running": 64, "max_step_tokens": 8}
    assert set(engines(asked({"engine": given}, changed=tuple(given)))) == {(64, 8)}


def test_a_machine_on_which_little_was_measured_has_designs(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = SimpleNamespace(engine={"max_running": 8, "max_step_tokens": 128})
    monkeypatch.setattr(designs_module, "profile_of", lambda deployment: measured)
    assert [(d.max_running, d.max_step_tokens) for d in space(asked({}, "here"))] == [(8, 128)]


def test_settings_of_the_model_itself_do_not_hide_what_is_chosen() -> None:
    own = {"max_running": 4, "prefix_cache": False, "kv_memory": "1GiB"}
    question = asked({"models": [{"path": "isles", "engine": own}], "engine": {"order": "priority", "kv_blocks": 9}})
    found = Design(1, 64, 512, prefix_cache=False).deployment(question)
    engine = found.engine_of(found.model)
    assert (engine.max_running, engine.max_step_tokens, engine.order) == (64, 512, "priority")
    assert engine.kv_memory == 1 << 30 and engine.kv_blocks is None
    assert found.model.path == "isles" and found.model.engine is None


def test_a_prefix_cache_that_was_switched_off_stays_off() -> None:
    question = asked({"engine": {"prefix_cache": False}})
    design = space(question)[0]
    assert not design.prefix_cache and not design.deployment(question).engine.prefix_cache
    names = [change.name for change in changes(design)]
    assert PREFIX in names and NO_PREFIX not in names
    assert NO_PREFIX in [change.name for change in changes(replace(design, prefix_cache=True))]
