"""Requests that generate nothing: computed, chunked, preempted, cancelled and journalled like others, and then over."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.request import FinishReason, Request
from armillary.errors import Code
from core_model import FAULTS, Client, random_config, random_request


def whole(config: SchedulerConfig) -> SchedulerConfig:
    """The same machine for a model that must see a prompt whole."""
    return replace(config, whole_prompts=True, max_chunk_tokens=None, max_step_tokens=64, prefix_cache=False)


def life(seed: int, chunked: bool = True) -> tuple[Client, Counter[str], list[str]]:
    """Requests of both kinds, with arrivals, cancellations and failures."""
    rnd = random.Random(seed)
    config = random_config(rnd)
    lines: list[str] = []
    client = Client(
        config if chunked else whole(config),
        lambda step: rnd.choice(FAULTS) if rnd.random() < 0.03 else None,
        journal=lines.append,
    )
    for number in range(60):
        request = random_request(rnd, f"r{number}", client.clock.now())
        if rnd.random() < 0.5 or not chunked:
            request = replace(request, max_tokens=0, n=1, min_tokens=0)
        client.submit(request)
        if rnd.random() < 0.2:
            client.cancel(f"r{rnd.randrange(number + 1)}", None, FinishReason.CANCELLED)
        client.step()
    client.finish()
    return client, client.executor.seen + Counter(preemptions=client.scheduler.stats.preemptions), lines


def test_they_end_once_with_what_was_found_and_give_everything_back() -> None:
    seen: Counter[str] = Counter()
    for seed in range(15):
        seen += life(seed)[1]
    for what in ("pooled", "chunks", "preemptions", "copies", "raise", "entries"):
        assert seen[what] > 2, seen


def test_a_prompt_may_have_to_enter_a_step_whole() -> None:
    """`CheckedExecutor` holds every entry of such a machine to the end of its prompt."""
    seen: Counter[str] = Counter()
    for seed in range(6):
        seen += life(seed, chunked=False)[1]
    assert seen["pooled"] > 200 and seen["raise"], seen


def test_the_journal_has_their_end_and_no_token() -> None:
    client, _, lines = life(3)
    quiet = {name for name, request in client.requests.items() if request.max_tokens == 0}
    steps = [line for line in map(json.loads, lines) if "step" in line]
    ended = [entry for line in steps for entry in line["ended"] if entry[0] in quiet]
    assert len(ended) > 5 and {reason for _, _, reason in ended} <= {"stop", "error"}
    assert not [entry for line in steps for entry in line["tokens"] if entry[0] in quiet]


def test_a_prompt_as_long_as_the_context_and_the_pool_is_taken_and_one_longer_is_not() -> None:
    client = Client(SchedulerConfig(num_blocks=4, max_context=20, block_size=4, max_step_tokens=64))
    assert client.submit(Request("a", (1,) * 16, 0))
    client.finish()
    refused = client.refuse(Request("b", (1,) * 17, 0))
    assert refused.code is Code.CANNOT_FIT and "at most 16" in refused.message
    refused = client.refuse(Request("c", (1,) * 21, 0))
    assert refused.code is Code.CONTEXT_LENGTH and refused.param == "prompt"
    assert refused.message.startswith("This model's maximum context length is 20 tokens.") and "21" in refused.message
    refused = client.refuse(Request("d", (1,), 0, n=2))
    assert refused.code is Code.INVALID_REQUEST and refused.param == "n"


def test_whole_prompts_need_a_step_that_holds_one() -> None:
    with pytest.raises(ValueError, match="whole_prompts needs"):
        SchedulerConfig(num_blocks=4, max_context=600, whole_prompts=True)
    with pytest.raises(ValueError, match="no max_chunk_tokens"):
        SchedulerConfig(num_blocks=4, max_context=60, whole_prompts=True, max_chunk_tokens=8)
