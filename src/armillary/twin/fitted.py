"""The cost model of a machine that was measured."""

from __future__ import annotations

from typing import Literal

import numpy as np

from armillary.errors import ArmillaryError, Code
from armillary.twin.entering import NEAR_S
from armillary.twin.fit import (
    BESIDE,
    CONTEXT,
    PARTS,
    ZERO,
    Fit,
    Floats,
    Sum,
    fit_between,
    fit_designed,
    fit_line,
    fit_loaded,
)
from armillary.twin.hull import Hull
from armillary.twin.profile import Lived, Profile
from armillary.twin.profile_settings import FEWEST
from armillary.twin.work import COUNTED, StepWork

_UNSERVED = (0,) * (COUNTED - 5)
_READ = PARTS.index("read")
Through = Literal["server", "engine"]
_Knees = tuple[tuple[int, int, bool, float], ...]
"""Column, limit, whether beyond it, seconds of each."""


class FittedCost:
    """A `CostModel` from a profile.

    Designed steps give the shape of a step's seconds. Under load, steps take longer: scheduling, cold caches, other
    threads; steps as they came there scale that shape and add to it, and what passed between them is fitted alike.

    Args:
        through: `server` takes steps from a server whose clients ran on the same machine, `engine` from an engine with
            nothing around it. None takes the server where the profile has one.

    Attributes:
        designed, loaded, between: the fits; `loaded` is `designed` where nothing came under load.
        error: median and 95th percentile of the relative error on steps left out of the fit.
        hull: what was measured.
        spread: how single steps lie around what is predicted; None where the profile does not say.

    Raises ArmillaryError: INVALID_REQUEST where the profile is not complete enough.
    """

    provenance: Literal["measured", "fitted", "assumed"] = "fitted"
    steady = True  # no term is negative
    turns = True

    def __init__(self, profile: Profile, through: Through | None = None) -> None:
        if len(profile.steps) < FEWEST:
            raise _incomplete(f"at least {FEWEST} measured steps, given {len(profile.steps)}")
        self.through: Through = through or ("server" if profile.served.work else "engine")
        lived = profile.served if self.through == "server" else profile.lived
        if through is not None and not lived.work:
            raise _incomplete(f"steps of the {through} under load, given none")
        self.profile = profile
        self.spread = lived.spread
        self.name = profile.name
        self.designed = fit_designed(
            np.array([(*step.work, *_UNSERVED) for step in profile.steps], dtype=np.float64),
            np.array([step.quartile_s for step in profile.steps]),
        )
        self.loaded, self.between = self.designed, Fit(ZERO)
        if lived.work:
            work, seconds = np.array(lived.work, dtype=np.float64), np.array(lived.step_s)
            count = np.array(lived.count, dtype=np.float64)
            self.loaded = fit_loaded(work, seconds, count, self.designed.sum)
            self.between = _between(lived, work)
        self.hull = Hull([*(step.work for step in profile.steps), *(work[:5] for work in lived.work)])
        self.error: tuple[float, float] | None = self.loaded.error
        self._request, self.first_s = _requests(profile) if self.through == "server" else ((0.0, 0.0), 0.0)
        self._copy_s = _copy_s(profile)
        # Taken apart, because simulations ask a million times.
        self._step, self._knees = _apart(self.loaded.sum)
        self._gap, self._gap_knees = _apart(self.between.sum)
        self._alone, self._alone_knees = _apart(self.designed.sum)
        self.near_s = NEAR_S if self.through == "server" else 0.0

    def step_s(self, work: StepWork) -> float:
        """Seconds of the step, scheduling included."""
        sequences, tokens, rows, context, pairs, near, read, read_tokens, ended, _, _, copies = work
        step, sequence, token, row, per_context, pair, entering, reading, read_token, ending = self._step
        seconds = step + sequence * sequences + token * tokens + row * rows + per_context * context + pair * pairs
        if near:
            seconds += entering * near
        if read or ended:
            seconds += reading * read + read_token * read_tokens + ending * ended
        if self._knees:
            seconds += _bent(self._knees, sequences, tokens, context)
        return seconds + self._copy_s * copies if copies else seconds

    def alone_s(self, work: StepWork) -> float:
        """Seconds of the step as it was designed."""
        sequences, tokens, rows, context, pairs, *_ = work
        step, sequence, token, row, per_context, pair, *_ = self._alone
        seconds = step + sequence * sequences + token * tokens + row * rows + per_context * context + pair * pairs
        return seconds + _bent(self._alone_knees, sequences, tokens, context)

    def between_s(self, work: StepWork) -> float:
        """Seconds to the start of the next step: booking, handing out, taking in."""
        sequences, tokens = work.sequences, work.tokens
        step, sequence, token, *_, entering, reading, read_token, ending = self._gap
        seconds = step + sequence * sequences + token * tokens + entering * work.near
        seconds += reading * work.read + read_token * work.read_tokens + ending * work.ended
        return seconds + _bent(self._gap_knees, sequences, tokens, work.context)

    def request_s(self, prompt_tokens: int) -> float:
        """Of what a client waits for its first token beside the engine's own time all but `first_s`: reading,
        tokenizing, sending. Nothing where the engine is taken alone."""
        fixed, each = self._request
        return fixed + each * prompt_tokens

    def held_s(self, prompt_tokens: int) -> float:
        """What `read` and `read_tokens` add to the step and the pause after it."""
        fixed, each = (self._step[part] + self._gap[part] for part in (_READ, _READ + 1))
        return min(fixed + each * prompt_tokens, self.request_s(prompt_tokens))

    def inside(self, work: StepWork) -> bool:
        """Whether the step lies in the hull of what was measured."""
        return self.hull.holds(work)

    def refuse_outside(self, work: StepWork) -> None:
        """Raise where the step lies outside of what was measured.

        Raises ArmillaryError: INVALID_REQUEST with the limit that it breaks.
        """
        if (why := self.hull.why_not(work)) is not None:
            raise ArmillaryError(Code.INVALID_REQUEST, f"a step must lie within what was measured: {why}", "profile")


def _incomplete(wanted: str) -> ArmillaryError:
    return ArmillaryError(
        Code.INVALID_REQUEST,
        f"a profile must hold {wanted}; run `armillary profile` again, which goes on where it stopped",
        "profile",
    )


def _between(lived: Lived, work: Floats) -> Fit:
    known = np.array([gap is not None and gap > 0 for gap in lived.between_s])
    if not known.any():
        return Fit(ZERO)
    seconds = np.array([gap for gap in lived.between_s if gap is not None and gap > 0])
    return fit_between(work[known], seconds, np.array(lived.count, dtype=np.float64)[known])


def _requests(profile: Profile) -> tuple[tuple[float, float], float]:
    """What passes before the engine knows of a request, fixed and for each token of its prompt; and `first_s`."""
    if not profile.requests:
        return (0.0, 0.0), 0.0
    tokens, seconds, late = (np.array(column, dtype=np.float64) for column in zip(*profile.requests, strict=True))
    fixed, each = fit_line(tokens, seconds)
    first = min(max(0.0, float(np.median(late))), fixed)
    return (fixed - first, each), first


def _copy_s(profile: Profile) -> float:
    """Seconds of copying a block: read once, written once."""
    size = float(profile.engine.get("block_bytes", 0))
    return 2.0 * size / profile.bandwidth[0] if profile.bandwidth else 0.0


def _apart(found: Sum) -> tuple[tuple[float, ...], _Knees]:
    knees = [(knee.column, knee.limit, knee.beyond, value) for knee, value in found.knees if value > 0]
    return found.parts, tuple(knees)


def _bent(knees: _Knees, sequences: int, tokens: int, context: int) -> float:
    """Seconds of the knees."""
    seconds = 0.0
    for column, limit, beyond, value in knees:
        if column == CONTEXT:
            seconds += value * context * (1.0 - limit / sequences) if sequences > limit else 0.0
            continue
        if column == BESIDE:
            others = sequences - 1
            seconds += value * (tokens - sequences) * (others if others < limit else limit)
            continue
        count = tokens if column else sequences
        if beyond:
            seconds += value * (count - limit) if count > limit else 0.0
        else:
            seconds += value * (count if count < limit else limit)
    return seconds
