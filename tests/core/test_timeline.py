"""Timelines say what the journal says, whatever happened; the ring that they are made from forgets honestly."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from armillary.core.recent import Recent
from armillary.core.timeline import Span, spans_of
from core_model import FAULTS, Client, random_config, random_life

PLENTY = 1_000_000


def lived(seed: int, most_steps: int) -> tuple[list[dict[str, Any]], Client, Recent]:
    """A life with everything that can happen in it: its journal, and the ring."""
    rnd = random.Random(seed)
    fault_rnd = random.Random(-seed)
    lines: list[str] = []
    fault = (lambda step: fault_rnd.choice(FAULTS) if fault_rnd.random() < 0.05 else None) if seed % 2 else None
    client = Client(random_config(rnd), fault, journal=lines.append)
    client.engine.recent = recent = Recent(most_steps)
    random_life(rnd, client, steps=80, arrivals=50, cancels=0.1)
    return [json.loads(line) for line in lines], client, recent


def from_journal(lines: list[dict[str, Any]], name: str, choice: int) -> list[tuple[str, float, float, Any, Any]]:
    """The spans of a choice, worked out from the lines in the most direct way."""
    begun = next(i for i, line in enumerate(lines) if line.get("submit") == name)
    prompt = len(lines[begun]["prompt"])
    cursor, state, reached, found = lines[begun]["at"], "queued", 0, []

    def extend(phase: str, until: float, step: Any = None, tokens: Any = None) -> None:
        nonlocal cursor
        if until > cursor:
            if found and step is None and found[-1][0] == phase and found[-1][3] is None:
                found[-1] = (phase, found[-1][1], until, None, None)
            else:
                found.append((phase, cursor, until, step, tokens))
            cursor = until

    for line in lines[begun + 1 :]:
        if line.get("cancel") == name and line["index"] in (None, choice):
            extend(state, line["at"])
            return found
        if "step" not in line:
            continue
        extend(state, line["at"])
        me = [name, choice if reached >= prompt else 0]
        if me in line["preempted"]:
            state = "preempted"
        if me in [entry[:2] for entry in line["admitted"]]:
            state = "between"
        share = next((entry for entry in line["run"] if entry[:2] == me), None)
        if share is not None:
            start, count = share[2:]
            phase = "recompute" if start < reached else "prefill" if start < prompt else "decode"
            reached = max(reached, start + count)
            extend(phase, line["until"], line["step"], count)
        elif state == "between":
            extend("waiting", line["until"], line["step"])
        else:
            extend(state, line["until"])
        if [name, choice] in [entry[:2] for entry in line["ended"]]:
            return found
    raise AssertionError("it must have ended")


def shown(spans: list[Span]) -> list[tuple[str, float, float, Any, Any]]:
    return [(span.phase.value, span.start, span.end, span.step, span.tokens) for span in spans]


def test_every_boundary_is_the_journals() -> None:
    met: Counter[str] = Counter()
    for seed in range(24):
        lines, client, recent = lived(seed, PLENTY)
        for name, choice in client.choices:
            prompt = len(client.requests[name].prompt)
            spans = spans_of(recent.lives[name], prompt, choice, list(recent.steps), 1e9)
            assert shown(spans) == from_journal(lines, name, choice), (seed, name, choice)
            met.update(span.phase.value for span in spans)
            met["second choices in prefill"] += choice > 0 and any(span.phase == "prefill" for span in spans)
    for what in ("queued", "prefill", "decode", "recompute", "preempted", "between", "second choices in prefill"):
        assert met[what] > 30, met


def test_steps_are_summed_as_the_journal_sums_them() -> None:
    for seed in range(8):
        lines, client, recent = lived(seed, PLENTY)
        steps = [line for line in lines if "step" in line]
        assert [(s.number, s.started, s.ended) for s in recent.steps] == [
            (s["step"], s["at"], s["until"]) for s in steps
        ]
        for record, line in zip(recent.steps, steps, strict=True):
            prompts = {name: len(request.prompt) for name, request in client.requests.items()}
            prefill = sum(max(0, min(s + c, prompts[name]) - s) for name, _, s, c in line["run"])
            assert record.prefill == prefill
            assert record.decode == sum(entry[3] for entry in line["run"]) - prefill
            assert record.sequences == len(line["run"])
            assert (record.admitted, record.preempted) == (len(line["admitted"]), len(line["preempted"]))


@pytest.mark.parametrize("most", [1, 7, 40])
def test_a_short_ring_says_what_it_has_forgotten(most: int) -> None:
    met: Counter[str] = Counter()
    for seed in range(6):
        _, client, recent = lived(seed, most)
        _, _, whole = lived(seed, PLENTY)
        assert len(recent.steps) <= most
        for name, choice in client.choices:
            prompt = len(client.requests[name].prompt)
            spans = spans_of(recent.lives[name], prompt, choice, list(recent.steps), 1e9)
            full = spans_of(whole.lives[name], prompt, choice, list(whole.steps), 1e9)
            assert all(a.end == b.start for a, b in zip(spans, spans[1:], strict=False))
            assert bool(spans) == bool(full)
            if full:
                assert (spans[0].start, spans[-1].end) == (full[0].start, full[-1].end)
            known = [span for span in shown(spans) if span[0] in ("prefill", "decode", "recompute", "waiting")]
            assert {span[1:] for span in known} <= {span[1:] for span in shown(full)}
            queued = [[span for span in shown(each) if span[0] == "queued"] for each in (spans, full)]
            assert queued[0] == queued[1]
            met.update(span.phase.value for span in spans)
    assert met["unrecorded"] > 30, met


def test_the_ended_are_forgotten_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armillary.core.recent.ENDED_KEPT", 5)
    _, client, recent = lived(2, PLENTY)
    assert len(client.requests) > 10 and len(recent.lives) == 5
    with pytest.raises(ValueError, match="most_steps must be at least 1, given 0"):
        Recent(0)
