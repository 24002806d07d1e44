"""What a running server is asked, from what it tells of its requests (`GET /v1/requests`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from armillary.errors import ArmillaryError, Code
from armillary.measure.client import connect
from armillary.measure.item import WorkItem
from armillary.measure.target import api_base
from armillary.measure.workload import Workload

PAUSE_S = 0.25
"""Between two looks: a server remembers the latest 1,000 that ended."""
MOST = 1000
"""That a server tells of at once."""
ANSWERED = frozenset({"stop", "length"})
FOUND = "found in the cache"
"""The run that all prompts are taken to begin with, as far as the server found them in its cache."""


async def overheard(
    url: str,
    seconds: float,
    model: str | None = None,
    api_key: str | None = None,
    progress: Callable[[float], None] = lambda _: None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Workload:
    """The requests that come to a server of Armillary within so many seconds: when, how long they and their answers
    were, how much of them was in its cache. As long again is waited for answers; what has none then, or was left or
    refused, is no part of it. Of a request with several prompts or choices each is one, as long as they are on average.

    Args:
        model: take only what is asked of this one.
        progress: is told which share of the time has passed.

    Raises ArmillaryError: UNREACHABLE where the server does not tell; UNAVAILABLE where it forgets requests between two
        looks; INVALID_REQUEST where none was answered.
    """
    asked = {"limit": MOST} | ({} if model is None else {"model": model})
    clock = asyncio.get_running_loop().time
    async with connect(api_key, transport) as client:

        async def look() -> dict[tuple[str, float], dict[str, Any]]:
            try:
                answer = await client.get(f"{api_base(url)}/requests", params=asked, timeout=10.0)
                answer.raise_for_status()
                return {(card["request_id"], card["created"]): card for card in answer.json()["data"]}
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise ArmillaryError(
                    Code.UNREACHABLE,
                    f"url must be a server of Armillary that tells of its requests, given {url!r}, so: "
                    f"{type(error).__name__}: {error}",
                    param="url",
                ) from error

        before = last = await look()
        began = clock()
        came: dict[tuple[str, float], dict[str, Any]] = {}
        while (passed := clock() - began) < 2 * seconds:
            await asyncio.sleep(PAUSE_S)
            now = await look()
            if len(now) >= MOST and not now.keys() & last.keys():
                raise ArmillaryError(
                    Code.UNAVAILABLE,
                    f"a server must get at most {MOST / PAUSE_S:,.0f} requests/s to be observed by its URL; let it "
                    "write a journal (`serve --journal FILE`), and observe that",
                    "url",
                )
            last = now
            for name, card in now.items():
                if name in came or (passed < seconds and name not in before):
                    came[name] = card
            progress(min(1.0, passed / seconds))
            if passed >= seconds and all(card["state"] == "ended" for card in came.values()):
                break
    return _workload([card for card in came.values() if card["finish_reason"] in ANSWERED])


def _workload(cards: list[dict[str, Any]]) -> Workload:
    answers = [card for card in cards if card["completion_tokens"]]
    if not answers:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "at least one request that comes meanwhile must be answered, given none; observe for longer",
            "seconds",
        )
    answers.sort(key=lambda card: card["created"])
    items: list[WorkItem] = []
    for card in answers:
        prompts, choices = card["prompts"], card["choices"]
        length = max(1, card["prompt_tokens"] // prompts)
        cached = min(length, card["cached_tokens"] // prompts)
        for _ in range(choices):
            items.append(
                WorkItem(
                    id=str(len(items)),
                    arrival=card["created"] - answers[0]["created"],
                    prompt_tokens=length,
                    output_tokens=max(1, card["completion_tokens"] // choices),
                    prefix=((FOUND, cached),) if cached else (),
                )
            )
    return Workload(tuple(items), origin={"observed": len(items)})
