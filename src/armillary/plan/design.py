"""Designs: which combinations of levels to run so that effects can be told apart at the least cost.

Rows are coded: -1 is a factor's low level, 1 its high one, numbers lie between. Sources: D. C. Montgomery, "Design and
Analysis of Experiments"; Box, Hunter and Hunter, "Statistics for Experimenters"; the designs themselves are pyDOE3's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code
from armillary.plan.factors import Factor

Kind = Literal["full", "fractional", "plackett-burman", "central-composite", "latin-hypercube"]
Coded = NDArray[np.float64]

MOST_RUNS = 4096
_CENTRES = 3
_SEARCHED = 1 << 19
"""Words that a search for generators may look at."""


@dataclass(frozen=True)
class Design:
    """Coded rows [runs, factors], and what can be told from them.

    Attributes:
        kind: its name.
        rows: in the design's own order.
        resolution: length of the shortest word of the defining relation of a fraction; None for other designs. 3: main
            effects stand clear of each other, 4: of interactions of two as well, 5: those of each other too.
    """

    kind: Kind
    rows: Coded
    resolution: int | None = None

    @property
    def two_level(self) -> bool:
        return bool(np.isin(self.rows, (-1.0, 1.0)).all())


def make_design(
    kind: Kind, factors: Sequence[Factor], *, resolution: int = 4, points: int | None = None, seed: int = 0
) -> Design:
    """The design of a kind over factors.

    Args:
        resolution: what a fraction must reach; the smallest that does is taken.
        points: of a Latin hypercube; ten for each factor where absent.
        seed: of a Latin hypercube.
    """
    count = len(factors)
    for factor in factors:
        if kind not in ("full", "latin-hypercube") and len(factor.levels) != 2:
            raise _refused(f"a {kind} design must have two levels for each factor, given {list(factor.levels)} for "
                           f"{factor.path}; a full design takes more", factor.path)  # fmt: skip
        if kind in ("central-composite", "latin-hypercube") and not factor.numeric:
            raise _refused(f"a {kind} design must have numbers for levels, given {list(factor.levels)} for "
                           f"{factor.path}", factor.path)  # fmt: skip
    least = {"fractional": 3, "plackett-burman": 2, "central-composite": 2}.get(kind, 1)
    if count < least:
        raise _refused(f"a {kind} design must have at least {least} factors, given {count}; a full design takes fewer")
    if kind == "full":
        return Design(kind, _limited(_full(factors)))
    if kind == "fractional":
        return _fractional(count, resolution)
    import pyDOE3

    if kind == "plackett-burman":
        return Design(kind, np.asarray(pyDOE3.pbdesign(count), dtype=np.float64))
    if kind == "central-composite":
        if count > 8:
            raise _refused(f"a central-composite design must have at most 8 factors, given {count}; screen them first")
        # Face-centred: no run outside the levels that were given, which for settings are often hard limits.
        unit = np.asarray(pyDOE3.ccdesign(count, center=(0, _CENTRES), alpha="rotatable", face="ccf"))
        return Design(kind, _as_run(unit, factors))
    wanted = points if points is not None else 10 * count
    if not count < wanted <= MOST_RUNS:
        raise _refused(
            f"points must be more than the {count} factors and at most {MOST_RUNS}, given {wanted}", "points"
        )
    unit = 2 * np.asarray(pyDOE3.lhs(count, samples=wanted, criterion="maximin", iterations=20, seed=seed)) - 1
    return Design(kind, _as_run(unit, factors))


def _as_run(rows: Coded, factors: Sequence[Factor]) -> Coded:
    """Codes of the values that rows stand for: settings that are whole numbers move them a little."""
    return np.array([[f.code(f.decode(float(c))) for f, c in zip(factors, row, strict=True)] for row in rows])


def _full(factors: Sequence[Factor]) -> Coded:
    import pyDOE3

    sizes = [len(factor.levels) for factor in factors]
    if math.prod(sizes) > MOST_RUNS:
        return np.zeros((math.prod(sizes), 0))
    numbers = np.asarray(pyDOE3.fullfact(sizes), dtype=np.int64)
    return np.array([[f.code(f.levels[i]) for f, i in zip(factors, row, strict=True)] for row in numbers])


def _limited(rows: Coded) -> Coded:
    if len(rows) > MOST_RUNS:
        raise _refused(f"a design must have at most {MOST_RUNS} runs, given {len(rows)}; a fractional one has fewer")
    return rows


def _fractional(count: int, resolution: int) -> Design:
    if resolution < 3:
        raise _refused("resolution must be at least 3, or main effects hide each other, given "
                       f"{resolution}", "resolution")  # fmt: skip
    for basic in range(2, count):
        if 2**basic <= count:
            continue
        words = _generators(count, basic)
        reached = _resolution(words)
        if reached >= resolution:
            import pyDOE3

            letters = [_spelled(1 << i) for i in range(basic)] + [_spelled(word & ((1 << basic) - 1)) for word in words]
            rows = np.asarray(pyDOE3.fracfact(" ".join(letters)), dtype=np.float64)
            return Design("fractional", _limited(rows), reached)
    # No fraction is fine enough: every combination it is.
    if 2**count > MOST_RUNS:
        raise _refused(f"a design must have at most {MOST_RUNS} runs, given {2**count} for resolution {resolution}")
    rows = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))[:, ::-1]
    return Design("fractional", rows, count + 1)


def _generators(count: int, basic: int) -> list[int]:
    """One word of the defining relation for each factor beyond the basic ones, as bits, chosen for resolution, then for
    the fewest shortest words (Fries and Hunter, "Minimum aberration 2^(k-p) designs", Technometrics 22(4), 1980)."""
    products = [bits for bits in range(1 << basic) if bits.bit_count() >= 2]
    # Products of odd length first: together they reach resolution 4 wherever it can be reached.
    products.sort(key=lambda bits: (bits.bit_count() % 2 == 0, -bits.bit_count(), bits))
    extra = count - basic
    best: list[int] = []
    merit_of_best = (0, 0)
    for chosen in itertools.islice(itertools.combinations(products, extra), _SEARCHED >> extra):
        words = [product | 1 << (basic + i) for i, product in enumerate(chosen)]
        lengths = [word.bit_count() for word in _relation(words)]
        merit = (min(lengths), -lengths.count(min(lengths)))
        if merit > merit_of_best:
            best, merit_of_best = words, merit
    return best


def _relation(words: Sequence[int]) -> list[int]:
    """All products of the generating words: what the mean is aliased with."""
    found = [0]
    for word in words:
        found += [other ^ word for other in found]
    return found[1:]


def _resolution(words: Sequence[int]) -> int:
    return min(word.bit_count() for word in _relation(words))


def _spelled(bits: int) -> str:
    return "".join(chr(ord("a") + i) for i in range(bits.bit_length()) if bits >> i & 1)


Term = tuple[int, ...]
"""Indices of the factors that a term multiplies: (0,) a main effect, (0, 2) an interaction, (1, 1) a square."""


def column(rows: Coded, term: Term) -> Coded:
    """A term's column [runs]."""
    return np.asarray(np.prod(rows[:, list(term)], axis=1))


def label(term: Term, factors: Sequence[Factor]) -> str:
    """A term in words."""
    if len(term) == 2 and term[0] == term[1]:
        return f"{factors[term[0]].path}²"
    return " × ".join(factors[i].path for i in term)


def aliases(rows: Coded, order: int = 2) -> dict[Term, list[Term]]:
    """Which main effects and interactions up to `order` cannot be told from which others, in either direction.

    The key is the simplest of each group; only groups of more than one are there. Interactions of more than two
    factors are usually small and are not listed unless `order` asks for them.
    """
    count = rows.shape[1]
    groups: dict[bytes, list[Term]] = {}
    for size in range(1, order + 1):
        for term in itertools.combinations(range(count), size):
            values = column(rows, term)
            if values[0] < 0:
                values = -values
            groups.setdefault(np.round(values, 9).tobytes(), []).append(term)
    return {group[0]: group[1:] for group in groups.values() if len(group) > 1}


def model_terms(design: Design) -> list[Term]:
    """The terms that a design can estimate: main effects, then interactions of two, then squares, each only while it
    adds something that the ones before do not say. Plackett-Burman designs are for main effects alone."""
    rows, count = design.rows, design.rows.shape[1]
    terms: list[Term] = [(i,) for i in range(count)]
    pairs: list[Term] = list(itertools.combinations(range(count), 2))
    squares: list[Term] = [(i, i) for i in range(count) if len(np.unique(np.round(rows[:, i], 9))) > 2]
    distinct = len(np.unique(np.round(rows, 9), axis=0))
    wanted = len(pairs) + len(squares)
    if design.kind == "plackett-burman" or (design.kind == "latin-hypercube" and distinct < count + wanted + 4):
        # A Latin hypercube with too few points for the whole second order gets none of it.
        return terms
    kept: list[Coded] = [np.ones(len(rows))]
    found: list[Term] = []
    for term in [*terms, *pairs, *squares]:
        candidate = np.column_stack([*kept, column(rows, term)])
        if np.linalg.matrix_rank(candidate) == candidate.shape[1]:
            kept.append(column(rows, term))
            found.append(term)
    return found


def _refused(message: str, param: str | None = None) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, message, param=param)
