"""What requests that begin to run take beside their tokens, and which steps it is taken from."""

from __future__ import annotations

from armillary.twin.work import StepWork

NEAR_S = 0.005
"""Seconds of steps over which a server and its clients take processors from the engine for requests that begin."""
LEAST = 0.02
"""Less of a request than that is not left for later steps."""


class Entering:
    """Hands out requests that begin to run to the step that admits them and to those that follow, each by the length
    that it would have alone.

    By that length and not by the one that it had: a step that is long for another reason would otherwise be given more
    of the request, and the request would seem to be the reason.

    Args:
        near_s: the time near them: a step that takes as long gets half, and so on.
    """

    def __init__(self, near_s: float) -> None:
        self.near_s = near_s
        self._requests = self._near = 0.0
        """Left for later steps."""

    def __bool__(self) -> bool:
        """Whether something is left."""
        return self._requests > 0

    def share(self, work: StepWork, alone_s: float) -> StepWork:
        """The next step with its share of the requests, those that it admits among them, and of the time near them.

        Args:
            alone_s: seconds that it takes if none begins.
        """
        requests, near = self._requests + work.admitted, 1.0 if work.admitted else self._near
        share = alone_s / (alone_s + self.near_s)
        if (1 - share) * requests < LEAST:
            share = 1.0
        self._requests, self._near = (1 - share) * requests, (1 - share) * near
        return work._replace(admitted=share * requests, near=share * near)
