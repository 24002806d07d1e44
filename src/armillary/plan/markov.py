"""Markov chains with finitely many states: where they are in the long run, after a time, and when they end.

`matrix` is either a transition matrix (discrete time: rows sum to 1) or a generator (continuous time: rows sum to 0,
off the diagonal rates per second). Shapes: n states, matrix [n, n], distributions [n].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.plan.checks import at_least, invalid, not_negative

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def stationary(matrix: ArrayLike) -> Vector:
    """The long-run distribution of an irreducible chain in discrete or continuous time.

    By Grassmann, Taksar and Heyman, "Regenerative analysis and steady state distributions for Markov chains",
    Operations Research 33(5), 1985: an elimination without subtractions, so that even probabilities of 1e-200 have
    full relative precision.

    Raises:
        ArmillaryError: INVALID_REQUEST where some state cannot be reached from every other.
    """
    work = _square(matrix).copy()
    n = len(work)
    _kind(work)
    leaving = np.zeros(n)
    for k in range(n - 1, 0, -1):
        leaving[k] = work[k, :k].sum()
        if not leaving[k] > 0:
            raise invalid("matrix", "must lead from every state to every other", f"one without a way down from {k}")
        work[:k, :k] += np.outer(work[:k, k], work[k, :k] / leaving[k])
    found = np.zeros(n)
    found[0] = 1.0
    for k in range(1, n):
        found[k] = found[:k] @ work[:k, k] / leaving[k]
        if not found[k] > 0:
            raise invalid("matrix", "must lead from every state to every other", f"one without a way up to {k}")
        found /= found[: k + 1].sum()
    return found


def after_steps(matrix: ArrayLike, start: ArrayLike, steps: int) -> Vector:
    """The distribution after `steps` steps of a chain in discrete time that begins with the distribution `start`."""
    chain = _square(matrix)
    if _kind(chain) != "transitions":
        raise invalid("matrix", "must be a transition matrix, whose rows sum to 1", "a generator")
    at_least("steps", steps, 0)
    return np.asarray(_distribution(start, len(chain)) @ np.linalg.matrix_power(chain, steps))


def after_seconds(matrix: ArrayLike, start: ArrayLike, seconds: float, tolerance: float = 1e-12) -> Vector:
    """The distribution after `seconds` of a chain in continuous time, to `tolerance` in total.

    By uniformisation (A. Jensen, "Markoff chains as an aid in the study of Markoff processes", Skandinavisk
    Aktuarietidskrift 36, 1953): the chain looked at in the moments of a Poisson process faster than any of its rates.
    Only products of numbers of 0 and more are added up. The time is split where very many moments fall into it.
    """
    generator = _square(matrix)
    if _kind(generator) != "generator":
        raise invalid("matrix", "must be a generator, whose rows sum to 0", "a transition matrix")
    not_negative("seconds", seconds)
    found = _distribution(start, len(generator))
    fastest = float(-generator.diagonal().min(initial=0.0))
    if fastest == 0 or seconds == 0:
        return found
    jumps = np.eye(len(generator)) + generator / fastest
    np.fill_diagonal(jumps, np.maximum(jumps.diagonal(), 0.0))
    parts = max(1, math.ceil(fastest * seconds / 300))
    mean = fastest * seconds / parts
    for _ in range(parts):
        weight = math.exp(-mean)
        total, power, n, held = weight, found, 0, weight * found
        while total < 1 - tolerance / parts and n < mean + 60 * math.sqrt(mean) + 200:
            n += 1
            weight *= mean / n
            power = power @ jumps
            total += weight
            held = held + weight * power
        found = np.asarray(held / held.sum())
    return found


def absorption(matrix: ArrayLike, absorbing: list[int]) -> tuple[Vector, Matrix]:
    """(mean time until one of the states `absorbing` is entered, probability that it is this one) from every state.

    Time is steps for a transition matrix and seconds for a generator. Shapes [n] and [n, len(absorbing)]; rows of
    absorbing states are 0 and the unit vectors. What the matrix says of the absorbing states themselves is not read.

    Raises:
        ArmillaryError: INVALID_REQUEST where some state leads to none of `absorbing`.
    """
    chain = _square(matrix)
    discrete = _kind(chain) == "transitions"
    n = len(chain)
    if not absorbing or not all(0 <= state < n for state in absorbing) or len(set(absorbing)) != len(absorbing):
        raise invalid("absorbing", f"must name different states from 0 to {n - 1}", absorbing)
    passing = [state for state in range(n) if state not in set(absorbing)]
    reached = set(absorbing)
    while more := [s for s in passing if s not in reached and any(chain[s, t] > 0 for t in reached)]:
        reached.update(more)
    if stuck := [state for state in passing if state not in reached]:
        raise invalid("matrix", "must lead from every state to an absorbing one", f"states {stuck[:5]} that do not")
    inner = chain[np.ix_(passing, passing)]
    system = np.eye(len(passing)) - inner if discrete else -inner
    right = np.column_stack([np.ones(len(passing)), chain[np.ix_(passing, absorbing)]])
    solved = np.linalg.solve(system, right)
    times, shares = np.zeros(n), np.zeros((n, len(absorbing)))
    times[passing], shares[passing] = solved[:, 0], solved[:, 1:]
    shares[absorbing, np.arange(len(absorbing))] = 1.0
    return times, shares


def _square(matrix: ArrayLike) -> Matrix:
    found = np.asarray(matrix, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not found.size:
        raise invalid("matrix", "must be square", found.shape)
    return found


def _kind(matrix: Matrix) -> str:
    """`transitions` or `generator`, or a refusal."""
    outside = matrix - np.diag(matrix.diagonal())
    sums = matrix.sum(axis=1)
    scale = np.abs(matrix).max(axis=1)
    if np.all(np.isfinite(matrix)) and (outside >= 0).all():
        if (np.abs(sums - 1) < 1e-9).all() and (matrix.diagonal() >= 0).all():
            return "transitions"
        if (np.abs(sums) <= 1e-9 * np.maximum(scale, 1e-300)).all():
            return "generator"
    raise invalid("matrix", "must hold nothing negative off the diagonal, and rows that sum to 1, or all to 0",
                  f"row sums {sums[:5].tolist()}")  # fmt: skip


def _distribution(start: ArrayLike, n: int) -> Vector:
    found = np.asarray(start, dtype=np.float64)
    if found.shape != (n,) or not (found >= 0).all() or abs(found.sum() - 1) > 1e-9:
        raise invalid("start", f"must be {n} probabilities that sum to 1", start)
    return found
