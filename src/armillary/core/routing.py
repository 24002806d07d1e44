"""The ways to choose among replicas."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as ReadOnlyList
from hashlib import blake2b
from typing import Protocol

from armillary.core.prefix import Digest, Name, block_digest, root_digest
from armillary.core.request import Request
from armillary.errors import ArmillaryError, Code

SESSIONS_KEPT = 100_000


class Target:
    """A replica as the router sees it: what it was sent and has not given back."""

    __slots__ = ("index", "requests", "speed", "tokens", "up")

    def __init__(self, index: int, speed: float) -> None:
        self.index = index
        self.speed = speed
        self.up = True
        self.requests = 0
        self.tokens = 0

    @property
    def load(self) -> float:
        """Outstanding tokens for its speed."""
        return self.tokens / self.speed

    def __repr__(self) -> str:
        return f"Target({self.index}, {self.requests} requests, {self.tokens} tokens{'' if self.up else ', closed'})"


class Route(Protocol):
    """Chooses among replicas that take requests; there is at least one."""

    def choose(self, up: ReadOnlyList[Target], request: Request, session: str) -> Target: ...

    def lost(self, target: Target) -> None:
        """A replica has lost its state."""
        ...


class RoundRobin:
    """One after another, however long their queues are."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, up: ReadOnlyList[Target], request: Request, session: str) -> Target:
        chosen = next((target for target in up if target.index > self._last), up[0])
        self._last = chosen.index
        return chosen

    def lost(self, target: Target) -> None:
        pass


class LeastLoaded:
    """The one with the fewest outstanding tokens for its speed; the first of equals."""

    def choose(self, up: ReadOnlyList[Target], request: Request, session: str) -> Target:
        return min(up, key=lambda target: target.load)

    def lost(self, target: Target) -> None:
        pass


class PowerOfTwo:
    """The less loaded of two that are drawn: nearly as even as looking at all, and no herd runs to one replica
    where several routers share them (Mitzenmacher, "The power of two choices in randomized load balancing", 2001)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn = 0

    def choose(self, up: ReadOnlyList[Target], request: Request, session: str) -> Target:
        if len(up) == 1:
            return up[0]
        self._drawn += 1
        draw = int.from_bytes(blake2b(f"{self._seed}/{self._drawn}".encode(), digest_size=16).digest())
        first = draw % len(up)
        second = (first + 1 + draw // len(up) % (len(up) - 1)) % len(up)
        return min(up[first], up[second], key=lambda target: target.load)

    def lost(self, target: Target) -> None:
        pass


class PrefixAware:
    """The one that has least to do with this request added: outstanding tokens, and what of the prompt it was not sent
    before. A prefix draws its like to one replica until that is so busy that computing it elsewhere comes sooner.

    What replicas have cached is not asked but inferred from what they were sent, as far back as `memory` blocks.
    """

    def __init__(self, block_size: int, memory: int, digest: Digest = block_digest) -> None:
        self._block_size = block_size
        self._memory = memory
        self._digest = digest
        self._seen: dict[int, OrderedDict[Name, None]] = {}

    def choose(self, up: ReadOnlyList[Target], request: Request, session: str) -> Target:
        digests = self._digests(request)
        hits = {target.index: self._hits(target, digests) for target in up}
        length = len(request.prompt)
        chosen = min(up, key=lambda t: (t.tokens + length - hits[t.index] * self._block_size) / t.speed)
        seen = self._seen.setdefault(chosen.index, OrderedDict())
        for digest in reversed(digests):  # so that of one prompt, its beginning is the last to be forgotten
            seen[digest] = None
            seen.move_to_end(digest)
        while len(seen) > self._memory:
            seen.popitem(last=False)
        return chosen

    def lost(self, target: Target) -> None:
        self._seen.pop(target.index, None)

    def _digests(self, request: Request) -> list[Name]:
        """Of the full blocks that a hit can save: the last token is always computed."""
        size = self._block_size
        parent: Name = root_digest(request.identity)
        digests = []
        for start in range(0, (len(request.prompt) - 1) // size * size, size):
            parent = self._digest(parent, request.prompt[start : start + size])
            digests.append(parent)
        return digests

    def _hits(self, target: Target, digests: list[Name]) -> int:
        seen = self._seen.get(target.index)
        if seen is None:
            return 0
        return next((i for i, digest in enumerate(digests) if digest not in seen), len(digests))


class SessionSticky:
    """Where the session was before, while that replica is up; else, and without a session, the least loaded."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, int] = OrderedDict()
        self._other = LeastLoaded()

    def choose(self, up: ReadOnlyList[Target], request: Request, session: str) -> Target:
        home = self._homes.get(session) if session else None
        chosen = next((target for target in up if target.index == home), None)
        if chosen is None:
            chosen = self._other.choose(up, request, session)
        if session:
            self._homes[session] = chosen.index
            self._homes.move_to_end(session)
            if len(self._homes) > SESSIONS_KEPT:
                self._homes.popitem(last=False)
        return chosen

    def lost(self, target: Target) -> None:
        pass  # a closed replica is nobody's home; once it is back, its sessions may as well return


ROUTES = ("round_robin", "least_loaded", "power_of_two", "prefix_aware", "session_sticky")


def make_route(name: str, block_size: int, memory: int, seed: int, digest: Digest = block_digest) -> Route:
    """The route of that name.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT, with the names there are.
    """
    match name:
        case "round_robin":
            return RoundRobin()
        case "least_loaded":
            return LeastLoaded()
        case "power_of_two":
            return PowerOfTwo(seed)
        case "prefix_aware":
            return PrefixAware(block_size, memory, digest)
        case "session_sticky":
            return SessionSticky()
    raise ArmillaryError(Code.INVALID_DEPLOYMENT, f"route must be one of {', '.join(ROUTES)}, given {name!r}", "route")
