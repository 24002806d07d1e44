"""What requests take beside their tokens when they come and go, and which steps it is taken from."""

from __future__ import annotations

from armillary.twin.work import StepWork

NEAR_S = 0.002
"""Seconds of steps over which a server and its clients take processors and caches from the engine."""
LEAST = 0.02
"""Less of that time is not left for later steps."""


class Entering:
    """Hands out the time near requests that come or go to the step at which they do and to those that follow, each by
    the length that it would have alone.

    A request comes with the step that admits it, is answered for the first time with the step after its first token,
    and goes with the step after its last. By that length and not by the one that a step had: a step that is long for
    another reason would otherwise be given more of the request, and the request would seem to be the reason.

    Args:
        near_s: the time near them: a step that takes as long gets half, and so on.
    """

    def __init__(self, near_s: float) -> None:
        self.near_s = near_s
        self._left = 0.0
        """For later steps."""

    def __bool__(self) -> bool:
        """Whether something is left."""
        return self._left > 0

    def share(self, work: StepWork, alone_s: float) -> StepWork:
        """The next step with its share.

        Args:
            alone_s: seconds that it takes if no request comes or goes.
        """
        near = 1.0 if work.eventful else self._left
        share = alone_s / (alone_s + self.near_s)
        if (1 - share) * near < LEAST:
            share = 1.0
        self._left = (1 - share) * near
        return work._replace(near=share * near)
