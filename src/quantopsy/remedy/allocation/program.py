"""The integer program: one option of each choice, limits on sums of costs, a convex quadratic objective.

V options x in {0, 1}, exactly one of each choice; m choices. HiGHS solves linear programs; the quadratic part is
approached from below by its tangents, each at a selection that was found before (outer approximation: M. Duran and
I. Grossmann, Mathematical Programming 36 (1986) 307-339), until bound and best selection meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, hstack, vstack

GAP = 1e-6
"""Relative distance of bound and best value at which a selection counts as the best there is."""

ROUNDS = 12
"""Tangents after which the best selection so far is taken, whether it is proven or not. Where there are few options a
round costs next to nothing, and as many are taken as make :data:`_WORTH` with them."""

_WORTH = 3000

_SECONDS = 20.0  # of one linear program
_ROUNDING = 1e-9  # by which a sum of costs may exceed its limit, as share of it

Selection = tuple[int, ...]
"""The number of the option taken at each choice."""


@dataclass(frozen=True)
class Product:
    """A cost of two choices together: ``factor`` (options of the first, options of the second)."""

    first: int
    second: int
    factor: np.ndarray


@dataclass(frozen=True)
class Cost:
    """What a selection costs: the sum of ``linear`` (V,) over its options, and ``products``."""

    linear: np.ndarray
    products: tuple[Product, ...] = ()
    constant: float = 0.0


@dataclass(frozen=True)
class Limit:
    """``cost`` at ``most``."""

    cost: Cost
    most: float


@dataclass(frozen=True)
class Objective:
    """x' quadratic x + linear' x + constant, ``quadratic`` (V, V) positive semi-definite, None where there is none."""

    linear: np.ndarray
    quadratic: np.ndarray | None = None
    constant: float = 0.0

    def value(self, x: np.ndarray) -> float:
        """Of options (V,)."""
        curved = 0.0 if self.quadratic is None else float(x @ self.quadratic @ x)
        return self.constant + float(self.linear @ x) + curved


@dataclass(frozen=True)
class Solution:
    """A selection with its objective's ``value``, and a ``bound`` below that of every selection within the limits."""

    selection: Selection
    value: float
    bound: float


@dataclass(frozen=True)
class Options:
    """How many options each choice has."""

    sizes: tuple[int, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """(m,): where the options of each choice begin."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(int)

    @cached_property
    def owner(self) -> np.ndarray:
        """(V,): the choice that every option belongs to."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def indicator(self, selection: Selection) -> np.ndarray:
        """(V,) of zeros and ones."""
        x = np.zeros(sum(self.sizes))
        x[self.starts + np.asarray(selection)] = 1.0
        return x

    def selection(self, x: np.ndarray) -> Selection:
        """The inverse of :meth:`indicator`, from values that are nearly so."""
        return tuple(int(x[start : start + size].argmax()) for start, size in zip(self.starts, self.sizes, strict=True))

    def cost(self, cost: Cost, selection: Selection) -> float:
        """What ``selection`` costs."""
        products = sum(float(p.factor[selection[p.first], selection[p.second]]) for p in cost.products)
        return cost.constant + float(cost.linear @ self.indicator(selection)) + products

    def within(self, limits: Iterable[Limit], selection: Selection) -> bool:
        """Whether ``selection`` keeps to all limits."""
        return all(self.cost(limit.cost, selection) <= limit.most * (1 + _ROUNDING) for limit in limits)


def minimise(
    options: Options, objective: Objective, limits: Sequence[Limit], start: Selection | None = None
) -> Solution | None:
    """The selection within ``limits`` of least objective; None where none is within them.

    ``start``: a selection within them, to begin from; what is returned is never worse.
    """
    curved, straight = _split(objective)
    program = _Program(options, limits)
    best = None if start is None else Solution(start, objective.value(options.indicator(start)), -np.inf)
    bound = -np.inf
    tangents: list[np.ndarray] = [] if best is None or curved is None else [options.indicator(best.selection)]
    rounds = max(ROUNDS, _WORTH // sum(options.sizes))
    for _ in range(rounds if curved is not None else 1):
        found = program.solve(straight, curved, tangents)
        if found is None:
            return best
        selection, lowest = found
        bound = max(bound, lowest + objective.constant)
        selection = _descended(options, objective, limits, selection)
        value = objective.value(options.indicator(selection))
        if best is None or value < best.value:
            best = Solution(selection, value, bound)
        tangents += [options.indicator(found[0]), options.indicator(selection)]
        if best.value - bound <= GAP * max(abs(best.value), 1e-300):
            break
    assert best is not None
    return Solution(best.selection, best.value, min(bound, best.value) if curved is not None else best.value)


def nearest(options: Options, limits: Sequence[Limit]) -> Selection:
    """The selection that exceeds the limits least, as share of each: what to answer where none is within them."""
    if len(limits) == 1 and not limits[0].cost.products:
        parts = np.split(limits[0].cost.linear, options.starts[1:])
        return tuple(int(part.argmin()) for part in parts)
    return _Program(options, limits).excess()


def greedy(options: Options, linear: np.ndarray, limits: Sequence[Limit]) -> Selection | None:
    """From the dearest options the step of least loss per saving, again and again, until all limits are kept.

    The baseline that the program is held against: ``linear`` (V,) adds up, and an option costs less the earlier it
    comes. None where it ends beyond a limit.
    """
    selection = [size - 1 for size in options.sizes]
    while not options.within(limits, tuple(selection)):
        now = [options.cost(limit.cost, tuple(selection)) for limit in limits]
        steps: list[tuple[float, int, int]] = []
        for choice, taken in enumerate(selection):
            for lower in range(taken):
                other = [*selection[:choice], lower, *selection[choice + 1 :]]
                # Savings count where a limit is exceeded still, as share of it.
                saved = sum(
                    (was - options.cost(limit.cost, tuple(other))) / limit.most
                    for limit, was in zip(limits, now, strict=True)
                    if was > limit.most
                )
                if saved > 0:
                    start = options.starts[choice]
                    steps.append(((linear[start + lower] - linear[start + taken]) / saved, choice, lower))
        if not steps:
            return None
        _, choice, lower = min(steps)
        selection[choice] = lower
    return tuple(selection)


def shrunk(e: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Gram matrix (V, V) of scores e (V, N), mean over N, what lies off the diagonal shrunk towards zero.

    The share that is taken away is sum var(g_ab) / sum g_ab^2 over options of different choices (``same`` (V, V) is
    true within one): what their scatter over N makes of nothing (J. Schäfer and K. Strimmer, Statistical Applications
    in Genetics and Molecular Biology 4 (2005) 32, section 2.2, of correlations). Positive semi-definite.
    """
    n = e.shape[1]
    scale = np.sqrt(np.maximum(np.square(e).mean(1), 1e-300))
    z = e / scale[:, None]
    correlation = z @ z.T / n
    scatter = (np.square(z) @ np.square(z).T / n - np.square(correlation)) / max(n - 1, 1)
    total = float(np.square(correlation[~same]).sum())
    share = 1.0 if total == 0 else min(1.0, max(0.0, float(scatter[~same].sum()) / total))
    kept: np.ndarray = (1.0 - share) * correlation
    np.fill_diagonal(kept, 1.0)
    return kept * scale[:, None] * scale[None, :]


def _split(objective: Objective) -> tuple[np.ndarray | None, np.ndarray]:
    """The objective with as much as can be of its diagonal taken to the linear part: x^2 = x where x is 0 or 1.

    Tangents of what is left lie the closer, the less it is curved.
    """
    if objective.quadratic is None or not objective.quadratic.any():
        return None, objective.linear
    diagonal = np.diag(objective.quadratic)
    scale = np.sqrt(np.maximum(diagonal, 1e-300))
    least = float(np.linalg.eigvalsh(objective.quadratic / scale[:, None] / scale[None, :])[0])
    moved = max(0.0, least - 1e-9) * diagonal
    return objective.quadratic - np.diag(moved), objective.linear + moved


class _Program:
    """The linear program of the choices and limits: columns are x, then one per pair of options of a product."""

    def __init__(self, options: Options, limits: Sequence[Limit]) -> None:
        self.options, self.limits = options, limits
        self.products = list({(p.first, p.second) for limit in limits for p in limit.cost.products})
        self.columns = sum(options.sizes) + sum(options.sizes[a] * options.sizes[b] for a, b in self.products)
        self.equal, self.right = self._equalities()
        rows = np.stack([self._row(limit.cost) for limit in limits]) if limits else np.zeros((0, self.columns))
        most = np.array([limit.most - limit.cost.constant for limit in limits])
        # Rows near 1, so that the solver's tolerances are relative.
        scale = np.maximum(np.abs(rows).max(1, initial=0.0), 1e-300)
        self.scale, self.rows, self.most = scale, rows / scale[:, None], most / scale

    def _offsets(self) -> dict[tuple[int, int], int]:
        found, at = {}, sum(self.options.sizes)
        for a, b in self.products:
            found[a, b] = at
            at += self.options.sizes[a] * self.options.sizes[b]
        return found

    def _row(self, cost: Cost) -> np.ndarray:
        row = np.zeros(self.columns)
        row[: len(cost.linear)] = cost.linear
        offsets = self._offsets()
        for p in cost.products:
            row[offsets[p.first, p.second] :][: p.factor.size] += p.factor.ravel()
        return row

    def _equalities(self) -> tuple[csr_array, np.ndarray]:
        """One option of each choice; a pair of options is taken where both are."""
        options, rows, right = self.options, [], []
        for start, size in zip(options.starts, options.sizes, strict=True):
            row = np.zeros(self.columns)
            row[start : start + size] = 1.0
            rows.append(row)
            right.append(1.0)
        for (a, b), offset in self._offsets().items():
            pairs = offset + np.arange(options.sizes[a] * options.sizes[b]).reshape(options.sizes[a], -1)
            for choice, members in ((a, pairs), (b, pairs.T)):
                for option, columns in enumerate(members):
                    row = np.zeros(self.columns)
                    row[columns] = 1.0
                    row[options.starts[choice] + option] = -1.0
                    rows.append(row)
                    right.append(0.0)
        return csr_array(np.stack(rows)), np.array(right)

    def solve(
        self, linear: np.ndarray, curved: np.ndarray | None, tangents: Sequence[np.ndarray]
    ) -> tuple[Selection, float] | None:
        """The best under the tangents, and a bound on the objective less its constant."""
        objective = np.zeros(self.columns + 1)
        objective[: len(linear)] = linear
        rows, high = [np.append(row, 0.0) for row in self.rows], list(self.most * (1 + _ROUNDING))
        if curved is not None:
            objective[-1] = 1.0
            for x in tangents:
                # t >= 2 (Q x_k)' x - x_k' Q x_k
                row = np.zeros(self.columns + 1)
                row[: len(linear)], row[-1] = 2.0 * curved @ x, -1.0
                rows.append(row)
                high.append(float(x @ curved @ x))
        size = float(np.abs(objective[:-1]).max(initial=0.0)) or 1.0
        found = self._run(objective / size, np.stack(rows) if rows else None, np.array(high), extra_from=0.0)
        if found is None:
            return None
        x, bound = found
        return self.options.selection(x), bound * size

    def excess(self) -> Selection:
        """The selection of least largest excess over the limits, as share of each."""
        rows = [np.append(row, -most) for row, most in zip(self.rows, self.most, strict=True)]
        found = self._run(np.append(np.zeros(self.columns), 1.0), np.stack(rows), self.most, extra_from=-1.0)
        assert found is not None
        return self.options.selection(found[0])

    def _run(
        self, objective: np.ndarray, rows: np.ndarray | None, high: np.ndarray, extra_from: float
    ) -> tuple[np.ndarray, float] | None:
        """Columns of the program and one more, continuous, from ``extra_from`` up."""
        binary = sum(self.options.sizes)
        equal = hstack([self.equal, csr_array((self.equal.shape[0], 1))])
        matrix, low, most = equal, self.right, self.right
        if rows is not None:
            matrix = vstack([equal, csr_array(rows)])
            low, most = np.append(low, np.full(len(high), -np.inf)), np.append(most, high)
        upper = np.append(np.ones(self.columns), np.inf)
        lower = np.append(np.zeros(self.columns), extra_from)
        found = milp(
            objective,
            integrality=np.append(np.ones(binary), np.zeros(self.columns - binary + 1)),
            bounds=Bounds(lower, upper),
            constraints=LinearConstraint(matrix, low, most),
            # HiGHS 1.12's presolve writes a line of its own on standard output now and then.
            options={"mip_rel_gap": GAP / 10, "time_limit": _SECONDS, "presolve": False},
        )
        if found.x is None:
            return None
        bound = found.mip_dual_bound if found.mip_dual_bound is not None else found.fun
        return found.x[:binary], float(bound)


def _descended(options: Options, objective: Objective, limits: Sequence[Limit], selection: Selection) -> Selection:
    """Options changed one or two at a time as long as the objective falls and the limits are kept."""
    if objective.quadratic is None or any(limit.cost.products for limit in limits):
        return selection
    Q, owner = objective.quadratic, options.owner
    costs = np.stack([limit.cost.linear for limit in limits]) if limits else np.zeros((0, len(owner)))
    most = np.array([limit.most - limit.cost.constant for limit in limits]) * (1 + _ROUNDING)
    while True:
        x = options.indicator(selection)
        taken = options.starts + np.asarray(selection)
        own = taken[owner]  # (V,): the option that each would take the place of
        slope = objective.linear + 2.0 * Q @ x
        diagonal = np.diag(Q)
        alone = slope - slope[own] + diagonal + diagonal[own] - 2.0 * Q[np.arange(len(own)), own]
        both = alone[:, None] + alone[None, :] + 2.0 * (Q - Q[:, own] - Q[own, :] + Q[np.ix_(own, own)])
        # Of one choice only one option can change: the diagonal stands for a change alone.
        both[owner[:, None] == owner[None, :]] = np.inf
        np.fill_diagonal(both, alone)
        for row, end in zip(costs, most, strict=True):
            change = row - row[own]
            spent = float(row @ x)
            together = change[:, None] + change[None, :]
            np.fill_diagonal(together, change)
            both[spent + together > end] = np.inf
        first, second = np.unravel_index(int(both.argmin()), both.shape)
        if not both[first, second] < -GAP * abs(objective.value(x)):
            return selection
        changed = list(selection)
        for option in {int(first), int(second)}:
            changed[owner[option]] = option - int(options.starts[owner[option]])
        selection = tuple(changed)
