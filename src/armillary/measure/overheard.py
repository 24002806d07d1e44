"""What a running server is asked, from what it tells of its requests (`GET /v1/requests`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx

from armillary.errors import ArmillaryError, Code
from armillary.measure.client import connect
from armillary.measure.item import WorkItem
from armillary.measure.target import api_base
from armillary.measure.workload import Workload

PAUSE_S = 0.5
"""Between two looks."""
PATIENCE_S = 30.0
"""For which a server may fail to answer before it is given up."""
MOST = 1000
"""Requests that a server remembers after their end, and tells of at once."""
ANSWERED = frozenset({"stop", "length"})
FOUND = "found in the cache"
"""The run that all prompts are taken to begin with, as far as the server found them in its cache."""


class Look(NamedTuple):
    """What a server told of its requests.

    Attributes:
        time: the server's, in Unix seconds.
        ended: how many of all have ended since it was started.
        cards: as in the API, by their name and arrival.
    """

    time: float
    ended: int
    cards: dict[tuple[str, float], dict[str, Any]]


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

    Raises ArmillaryError: UNREACHABLE where the server does not tell, at first or for half a minute; UNAVAILABLE where
        it forgets requests between two looks or is started anew; INVALID_REQUEST where none was answered.
    """
    clock = asyncio.get_running_loop().time
    async with connect(api_key, transport) as client:
        last = await _look(client, url, "ended", model)
        begin, heard = last.time, clock()
        end, passed = begin + seconds, 0.0
        came: dict[tuple[str, float], dict[str, Any]] = {}
        while passed < 2 * seconds:
            await asyncio.sleep(PAUSE_S)
            try:
                # Those in flight first: who ends between the two is among those that have ended.
                live = await _look(client, url, "live", model) if passed >= seconds else None
                now = await _look(client, url, "ended", model)
            except ArmillaryError:
                if clock() - heard > PATIENCE_S:
                    raise
                continue
            heard = clock()
            _check_all_seen(last, now)
            last, passed = now, now.time - begin
            came.update((name, card) for name, card in now.cards.items() if begin <= card["created"] < end)
            progress(min(1.0, passed / seconds))
            if live is not None and not any(begin <= card["created"] < end for card in live.cards.values()):
                break
    return _workload([card for card in came.values() if card["finish_reason"] in ANSWERED])


async def _look(client: httpx.AsyncClient, url: str, state: str, model: str | None) -> Look:
    asked = {"limit": str(MOST), "state": state} | ({} if model is None else {"model": model})
    try:
        answer = await client.get(f"{api_base(url)}/requests", params=asked, timeout=10.0)
        answer.raise_for_status()
        told = answer.json()
        cards = {(str(card["request_id"]), float(card["created"])): _read(card) for card in told["data"]}
        return Look(float(told["time"]), int(told["ended"]), cards)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ArmillaryError(
            Code.UNREACHABLE,
            f"url must be a server of this version of Armillary, which tells of its requests, given {url!r}, so: "
            f"{type(error).__name__}: {error}",
            param="url",
        ) from error


def _read(card: dict[str, Any]) -> dict[str, Any]:
    """What is used of a card; counts are 0 where the server has none."""
    counts = {
        name: int(card[name] or 0)
        for name in ("prompts", "choices", "prompt_tokens", "cached_tokens", "completion_tokens")
    }
    return {"created": float(card["created"]), "finish_reason": card["finish_reason"], **counts}


def _check_all_seen(last: Look, now: Look) -> None:
    if now.ended < last.ended:
        raise ArmillaryError(Code.UNAVAILABLE, "the server must not be started anew while it is observed", "url")
    if now.ended - last.ended > MOST:
        raise ArmillaryError(
            Code.UNAVAILABLE,
            f"a server must end at most {MOST / PAUSE_S:,.0f} requests/s to be observed by its URL, given "
            f"{now.ended - last.ended} within {now.time - last.time:.1f} s; let it write a journal "
            "(`serve --journal FILE`), and observe that",
            "url",
        )


def _workload(cards: list[dict[str, Any]]) -> Workload:
    answers = sorted((card for card in cards if card["completion_tokens"]), key=lambda card: float(card["created"]))
    if not answers:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "at least one request that comes meanwhile must be answered, given none; observe for longer",
            "seconds",
        )
    items: list[WorkItem] = []
    for card in answers:
        prompts, choices = max(1, card["prompts"]), max(1, card["choices"])
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
