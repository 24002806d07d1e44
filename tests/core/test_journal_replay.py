"""The journal is enough to live the same life again, byte for byte."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.request import FinishReason, Request
from armillary.twin.replay import replay
from core_model import FAULTS, Client, random_config, random_life, random_request


def record(seed: int) -> tuple[list[str], Client]:
    """A life with arrivals, cancellations, failures and irregular time; its journal."""
    rnd = random.Random(seed)
    fault_rnd = random.Random(-seed)
    lines: list[str] = []
    client = Client(
        random_config(rnd),
        lambda step: fault_rnd.choice(FAULTS) if fault_rnd.random() < 0.1 else None,
        journal=lines.append,
    )
    random_life(rnd, client, steps=100, arrivals=60, cancels=0.2)
    return lines, client


def test_a_replay_writes_the_same_journal() -> None:
    met: Counter[str] = Counter()
    for seed in range(60):
        lines, client = record(seed)
        again = replay(lines)
        assert again == lines
        for line in map(json.loads, lines[1:]):
            met[next(iter(line))] += 1
            met["failed"] += line.get("failed") is not None
            met["errors"] += bool(line.get("errors")) and line["failed"] is None
            met["copies"] += bool(line.get("copies"))
            met["preempted"] += bool(line.get("preempted"))
    for what in ("submit", "cancel", "step", "failed", "errors", "copies", "preempted"):
        assert met[what] > 30, met


def test_requests_that_generate_nothing_are_replayed_too() -> None:
    for seed in range(8):
        rnd = random.Random(seed)
        lines: list[str] = []
        client = Client(random_config(rnd), journal=lines.append)
        for number in range(30):
            request = random_request(rnd, f"r{number}", client.clock.now())
            client.submit(replace(request, max_tokens=0, n=1, min_tokens=0) if number % 2 else request)
            client.step()
        client.finish()
        assert replay(lines) == lines


def test_another_input_makes_another_journal() -> None:
    """The replay depends on what it reads: a request that may go on for one more token does."""
    lines, client = next(r for r in map(record, range(50)) if r[1].scheduler.config.max_waiting == 100)
    name = next(name for (name, _), choice in client.choices.items() if choice.finish is FinishReason.LENGTH)
    changed = next(i for i, line in enumerate(lines) if json.loads(line).get("submit") == name)
    fields = json.loads(lines[changed])
    fields["max_tokens"] += 1
    lines[changed] = json.dumps(fields, separators=(",", ":"))
    assert replay(lines) != lines


def test_lines_are_strict_json_that_says_everything() -> None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    lines, client = record(11)
    told = [json.loads(line, parse_constant=refuse) for line in lines]
    assert all("\n" not in line for line in lines)
    assert SchedulerConfig(**told[0]["scheduler"]) == client.scheduler.config
    steps = [line for line in told if "step" in line]
    assert [line["step"] for line in steps] == list(range(len(steps)))
    assert all(line["at"] <= line["until"] for line in steps)
    assert sum(len(line["tokens"]) for line in steps) == client.scheduler.stats.generated_tokens
    assert sum(len(line["preempted"]) for line in steps) == client.scheduler.stats.preemptions
    assert {line["submit"] for line in told if "submit" in line} == set(client.requests)
    cancelled = {tuple(key) for key in client.cancelled}
    ended = {(name, index) for line in steps for name, index, _ in line["ended"]}
    assert ended | cancelled == set(client.choices) and not ended & cancelled


def test_names_of_any_characters_survive() -> None:
    lines: list[str] = []
    client = Client(SchedulerConfig(num_blocks=8, max_context=16, max_step_tokens=64), journal=lines.append)
    for name in ('"quoted"\n', "\ud800 lone", "\u2028", ""):
        client.submit(Request(name, (1, 0), 2, identity=""))
    client.finish()
    assert replay(lines) == lines


def test_without_a_journal_the_same_happens() -> None:
    for seed in range(10):
        outcomes = []
        for journal in (None, lambda line: None):
            rnd = random.Random(seed)
            client = Client(random_config(rnd), journal=journal)
            for i in range(12):
                client.submit(random_request(rnd, f"r{i}", 0.0))
            client.finish()
            outcomes.append((client.choices, client.scheduler.stats, client.clock.now()))
        assert outcomes[0] == outcomes[1]


@pytest.mark.slow
def test_many_replays() -> None:
    for seed in range(100, 250):
        lines, _ = record(seed)
        assert replay(lines) == lines
