"""The router: which of several engines a request goes to.

It knows what any front door can know: what it sent where, and what has come back. It never looks into an
engine, and never at what a request has not generated yet. So the same object stands before real replicas and before
simulated ones.
"""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList

from armillary.core.prefix import Digest, block_digest
from armillary.core.request import Request
from armillary.core.routing import Target, make_route


class Router:
    """Chooses replicas and keeps the books of what each has to do.

    The work of a request is counted as its prompt and, for each choice, as many tokens as answers have had on
    average so far. A replica that is twice as fast carries twice as much before it counts as loaded as another.

    Args:
        route: a name in `armillary.core.routing.ROUTES`.
        speeds: of the replicas, relative to each other, each above 0. Their indices are the replicas' names.
        block_size: token positions a block, where prefixes are compared.
        memory: blocks of prompts that are remembered of each replica, where prefixes are compared. As many as its KV
            pool has, since what it has given up is then about what is forgotten here.
        seed: of the choices that are drawn.
        digest: by which blocks are compared, where prefixes are.
    """

    def __init__(
        self,
        route: str,
        speeds: ReadOnlyList[float] = (),
        *,
        block_size: int = 16,
        memory: int = 4096,
        seed: int = 0,
        digest: Digest = block_digest,
    ) -> None:
        self.targets: list[Target] = []
        self._route = make_route(route, block_size, memory, seed, digest)
        self._sent: dict[str, tuple[Target, int]] = {}
        self._answers = 0
        self._answer_tokens = 0
        for speed in speeds:
            self.add(speed)

    def add(self, speed: float = 1.0) -> int:
        """A new replica, which takes requests from now on; returns its index."""
        if not speed > 0:
            raise ValueError(f"speed must be above 0, given {speed}")
        self.targets.append(Target(len(self.targets), speed))
        return len(self.targets) - 1

    def open(self, index: int) -> None:
        """A replica takes requests again."""
        self.targets[index].up = True

    def close(self, index: int) -> None:
        """A replica takes no more requests. What it has, it finishes, or the caller reports as ended."""
        self.targets[index].up = False

    def lose(self, index: int) -> list[str]:
        """A replica has failed: closed, and forgotten what it had; returns the requests that were with it."""
        target = self.targets[index]
        target.up = False
        lost = [request_id for request_id, (owner, _) in self._sent.items() if owner is target]
        for request_id in lost:
            del self._sent[request_id]
        target.requests = target.tokens = 0
        self._route.lost(target)
        return lost

    def send(self, request: Request, session: str = "") -> int | None:
        """Choose a replica for a request and enter it in the books; None while no replica is up.

        Args:
            session: requests of one conversation have the same, for routes that keep them together.
        """
        up = [target for target in self.targets if target.up]
        if not up:
            return None
        target = self._route.choose(up, request, session)
        work = len(request.prompt) + request.n * self._expected(request)
        target.requests += 1
        target.tokens += work
        self._sent[request.id] = (target, work)
        return target.index

    def owner(self, request_id: str) -> int | None:
        """Which replica a request was sent to and has not come back from."""
        sent = self._sent.get(request_id)
        return None if sent is None else sent[0].index

    def ended(self, request_id: str, generated: int) -> None:
        """A request has come back, whole or not, with so many generated tokens. Unknown ids: nothing happens."""
        sent = self._sent.pop(request_id, None)
        if sent is None:
            return
        target, work = sent
        target.requests -= 1
        target.tokens -= work
        self._answers += 1
        self._answer_tokens += generated

    def _expected(self, request: Request) -> int:
        if not self._answers:
            return 0
        return min(request.max_tokens, self._answer_tokens // self._answers)
