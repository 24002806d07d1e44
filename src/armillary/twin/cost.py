"""How long things take: the seam between the twin and whatever predicts a machine, and the simplest such thing."""

from __future__ import annotations

from random import Random
from typing import Literal, Protocol

from armillary.twin.work import StepWork

Provenance = Literal["measured", "fitted", "assumed"]


class CostModel(Protocol):
    """Predicts seconds on a piece of hardware, and says how far it may be trusted.

    The twin asks once for every step, in the order of the steps, so that a model may draw from a seeded source.

    Attributes:
        name: for reports.
        provenance: where its figures come from.
        error: median and 95th percentile of the relative error on steps that it was not fitted on; None where
            nothing was held out.
        steady: whether a step's seconds follow from its work alone and never fall where nothing but context grows. A
            fleet then leaves a replica alone until a request may have ended there. Results do not change with it.
        turns: whether requests take their turn in `request_s`, because one server reads them all; else they are read
            side by side.
        near_s: seconds over which what a request costs beside its tokens is spread after the steps at which it comes
            or goes (`Entering`); 0: no server and no clients take processors from the engine.
        first_s: seconds that the first token of a request takes to its client longer than the last one, because an
            answer must be opened for it.
    """

    name: str
    provenance: Provenance
    error: tuple[float, float] | None
    steady: bool
    turns: bool
    near_s: float
    first_s: float

    def step_s(self, work: StepWork) -> float:
        """Seconds that the step takes, from the moment at which it is chosen to the moment at which it is known."""
        ...

    def alone_s(self, work: StepWork) -> float:
        """Seconds that the step would take with no server and no clients about: by them it gets its share of the time
        near a request (`near_s`)."""
        ...

    def between_s(self, work: StepWork) -> float:
        """Seconds between the end of this step and the start of the next, while there is more to do."""
        ...

    def request_s(self, prompt_tokens: int) -> float:
        """Seconds from a client's sending to submission: reading, tokenizing."""
        ...

    def held_s(self, prompt_tokens: int) -> float:
        """The last part of `request_s`, for which a step under way waits: what `StepWork.read` adds to a step."""
        ...

    def inside(self, work: StepWork) -> bool:
        """Whether the step lies within what was measured; elsewhere a prediction is an extrapolation."""
        ...


class IdealCost:
    """A server of textbooks: each step takes `step` seconds, and `per_sequence` more for each sequence in it.

    With `exponential` the step's duration is drawn from the exponential distribution of that mean. Nothing
    passes between steps unless `between` says so.
    """

    provenance: Provenance = "assumed"
    error: tuple[float, float] | None = None
    turns = True
    near_s = 0.0
    first_s = 0.0

    def __init__(
        self,
        step: float,
        per_sequence: float = 0.0,
        *,
        between: float = 0.0,
        exponential: bool = False,
        seed: int = 0,
    ) -> None:
        if step < 0 or per_sequence < 0 or between < 0 or step + per_sequence <= 0:
            raise ValueError(
                f"step, per_sequence and between must be 0 or more and a step must take time, given {step}, "
                f"{per_sequence} and {between}"
            )
        self.name = "ideal"
        self._step = step
        self._per_sequence = per_sequence
        self._between = between
        self._draw = Random(seed).expovariate if exponential else None
        self.steady = not exponential

    def step_s(self, work: StepWork) -> float:
        mean = self.alone_s(work)
        return mean if self._draw is None else self._draw(1.0 / mean)

    def alone_s(self, work: StepWork) -> float:
        return self._step + self._per_sequence * work.sequences

    def between_s(self, work: StepWork) -> float:
        return self._between

    def request_s(self, prompt_tokens: int) -> float:
        return 0.0

    def held_s(self, prompt_tokens: int) -> float:
        return 0.0

    def inside(self, work: StepWork) -> bool:
        return True


class Scaled:
    """Another model's steps and pauses, `factor` times as long, and requests' own times, `beside` times."""

    def __init__(self, cost: CostModel, factor: float, beside: float = 1.0) -> None:
        if not factor > 0:
            raise ValueError(f"factor must be above 0, given {factor}")
        self.name = cost.name
        self.provenance: Provenance = cost.provenance
        self.error = cost.error
        self.steady, self.turns, self.near_s = cost.steady, cost.turns, cost.near_s
        self.first_s = beside * cost.first_s
        self._cost = cost
        self._factor = factor
        self._beside = beside

    def step_s(self, work: StepWork) -> float:
        return self._factor * self._cost.step_s(work)

    def alone_s(self, work: StepWork) -> float:
        return self._cost.alone_s(work)

    def between_s(self, work: StepWork) -> float:
        return self._factor * self._cost.between_s(work)

    def request_s(self, prompt_tokens: int) -> float:
        return self._beside * self._cost.request_s(prompt_tokens)

    def held_s(self, prompt_tokens: int) -> float:
        return min(self._factor * self._cost.held_s(prompt_tokens), self.request_s(prompt_tokens))

    def inside(self, work: StepWork) -> bool:
        return self._cost.inside(work)
