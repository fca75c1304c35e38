"""What the screen says of any plan: noise with its error, interactions, how far it can be believed.

n images, R random probes, S columns of scores, m plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from quantopsy.analysis import significance
from quantopsy.core import Plan, Site, Spec
from quantopsy.data import Batch
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.screen import Candidates, Column, ScreenEngine, columns
from quantopsy.graph.execute import Program
from quantopsy.study import ScreenTile

LINEAR_SQNR_DB = 15.0
"""Where the predicted noise comes closer to the signal than this, a first-order prediction is not
believed: on the networks of ``benchmarks/screen.py`` it is off by up to 1.7 times just beyond, and by 3
to 100 times where noise exceeds the signal."""

LINEAR_MOVED = 0.1
"""Nor is it where a quantizer moves more than this share of its weight's energy, whatever becomes of that at the
output: on SqueezeNet 95 % intervals hold the noise of half of such cells, and of 88 % of the others (six seeds)."""


@dataclass(frozen=True)
class Scores:
    """The screen's scores on n images, in ascending order.

    ``noise`` (S, n, R): e of the random probes. ``decision`` (S, n): e of the decision probe, NaN for
    images without one. ``margins`` (n, M): what the decision's change is compared with, NaN likewise;
    ``kind`` says of what (:data:`quantopsy.engine.probes.Kind`). ``hidden``: layers that no gradient
    reaches, with the operator that stops it; their columns are NaN. ``moved`` (S,): the share of a weight's energy
    that its quantizer moves, 0 of activations; none where that is not known.
    """

    columns: tuple[Column, ...]
    images: np.ndarray
    noise: np.ndarray
    decision: np.ndarray
    margins: np.ndarray
    kind: str
    hidden: Mapping[str, str] = field(default_factory=dict)
    moved: Sequence[float] = ()

    @classmethod
    def of_tiles(
        cls,
        columns: Sequence[Column],
        tiles: Sequence[ScreenTile],
        probes: int,
        hidden: Mapping[str, str],
        moved: Sequence[float] = (),
    ) -> Scores:
        """Scores from the tiles of a study, ``probes`` random ones first in each."""
        images = np.concatenate([tile.images for tile in tiles])
        order = np.argsort(images, kind="stable")
        width = max(tile.margins.shape[1] for tile in tiles)
        margins = [
            tile.margins if tile.margins.shape[1] else np.full((len(tile.images), width), np.nan) for tile in tiles
        ]
        decision = [
            tile.e[:, :, probes] if tile.e.shape[2] > probes else np.full(tile.e.shape[:2], np.nan) for tile in tiles
        ]
        return cls(
            tuple(columns),
            images[order],
            np.concatenate([tile.e[:, :, :probes] for tile in tiles], 1)[:, order],
            np.concatenate(decision, 1)[:, order],
            np.concatenate(margins)[order],
            next((tile.kind for tile in tiles if tile.kind != "none"), "none"),
            dict(hidden),
            tuple(moved),
        )

    @classmethod
    def of_batches(
        cls,
        program: Program,
        calibration: Calibration,
        batches: Iterable[Batch],
        candidates: Candidates,
        *,
        noise_probes: int = 1,
        decision: bool = True,
        seed: int = 0,
    ) -> Scores:
        """Scores of any list of specs per site: what repair and mixed precision choose from.

        ``calibration`` must have seen what the specs of activations need
        (:func:`quantopsy.engine.calibration.wanted_statistics`). The float network runs forward once and
        backward once a probe, whatever the number of specs; each costs a dot product per image and probe.
        """
        engine = ScreenEngine(program, calibration, noise_probes=noise_probes, decision=decision, seed=seed)
        tiles: list[ScreenTile] = []
        hidden: dict[str, str] = {}
        moved: tuple[float, ...] = ()
        for batch in batches:
            found = engine.run_tile(batch.inputs, batch.indices, candidates, batch.labels)
            tiles.append(ScreenTile(batch.indices, found.margins, found.e, found.kind))
            hidden.update(found.hidden)
            moved = found.moved
        return cls.of_tiles(columns(program.network, candidates), tiles, noise_probes, hidden, moved)

    def on(self, images: np.ndarray) -> Scores:
        """The part of it on ``images``, as far as they were screened."""
        kept = np.isin(self.images, images)
        if kept.all():
            return self
        return Scores(
            self.columns,
            self.images[kept],
            self.noise[:, kept],
            self.decision[:, kept],
            self.margins[kept],
            self.kind,
            self.hidden,
            self.moved,
        )

    def covers(self, plan: Plan) -> bool:
        """Whether every site of ``plan`` was scored."""
        return all(site in self._by_site and spec in self._by_site[site] for site, spec in plan.sites)

    def rows(self, plan: Plan) -> list[int]:
        """The columns whose sum is the plan's e.

        A value that leaves its producer on a grid enters its readers on it: there it is not perturbed
        again, as in the network that the plan makes. What leaves a layer without weights is rounded after
        its inputs, where that was scored. Raises KeyError for a site that was not scored.
        """
        leaving = {
            (spec, self.columns[row].value)
            for site, spec in plan.sites
            if site.role == "output"
            for row in self._by_site[site][spec]
        }
        entering = {site.layer: spec for site, spec in plan.sites if site.role == "input"}
        found = []
        for site, spec in plan.sites:
            rows = self._by_site[site][spec]
            if site.role == "input":
                rows = [row for row in rows if (spec, self.columns[row].value) not in leaving]
            elif site.role == "output":
                given = {self.columns[row].given for row in rows} & {entering.get(site.layer)}
                rows = [row for row in rows if self.columns[row].given in (given or {None})]
            found += rows
        return found

    def e(self, plan: Plan) -> np.ndarray:
        """(n, R): first-order change of every random probe's value under ``plan``."""
        found: np.ndarray = self.noise[self.rows(plan)].sum(0, dtype=np.float64)
        return found

    def by_layer(self, plan: Plan) -> dict[str, np.ndarray]:
        """{layer: (n, R)}: what of :meth:`e` is each layer's; of a value between two, the one's that it leaves."""
        found: dict[str, np.ndarray] = {}
        for row in self.rows(plan):
            layer = self.columns[row].site.layer
            found[layer] = found.get(layer, 0.0) + self.noise[row].astype(np.float64)
        return found

    def change(self, plan: Plan) -> np.ndarray:
        """(n,): first-order change of the decision's value; NaN without its probe."""
        found: np.ndarray = self.decision[self.rows(plan)].sum(0, dtype=np.float64)
        return found

    def per_image(self, plan: Plan) -> np.ndarray:
        """(n,): an unbiased estimate of every image's ||J d||^2, the mean of e^2 over probes."""
        return np.square(self.e(plan)).mean(1)

    def predicted(self, plan: Plan) -> tuple[float, float]:
        """Predicted noise of ``plan`` with its cross terms, and its standard error over images and probes."""
        return significance.mean_stderr(self.per_image(plan))

    def most_moved(self, plan: Plan) -> float:
        """The largest share of its energy that ``plan`` moves a weight by; 0 where that is not known."""
        return max((self.moved[row] for row in self.rows(plan)), default=0.0) if self.moved else 0.0

    def gram(self, plans: Iterable[Plan]) -> np.ndarray:
        """(m, m): mean over images and probes of e_a e_b, an estimate of <J d_a, J d_b>.

        Its diagonal holds the predicted noises. The noise of several plans together (of disjoint sites)
        is the sum of all its entries: where entries off the diagonal are large, noises do not add up.
        """
        e = np.stack([self.e(plan).ravel() for plan in plans])
        return e @ e.T / e.shape[1]

    @cached_property
    def _by_site(self) -> dict[Site, dict[Spec, list[int]]]:
        found: dict[Site, dict[Spec, list[int]]] = {}
        for row, column in enumerate(self.columns):
            found.setdefault(column.site, {}).setdefault(column.spec, []).append(row)
        return found


def is_linear(noise: float, signal: float, moved: float) -> bool:
    """Whether a first-order prediction is to be believed: its noise is far enough below the mean squared output
    ``signal`` (:data:`LINEAR_SQNR_DB`), and no weight is ``moved`` by much (:data:`LINEAR_MOVED`).

    A prediction of exactly nothing is not believed either: the gradient may have vanished.
    """
    return 0.0 < noise < signal * 10 ** (-LINEAR_SQNR_DB / 10) and moved <= LINEAR_MOVED


def columns_json(columns: Iterable[Column]) -> list[Any]:
    """A JSON form of ``columns``."""
    return [[c.site.layer, c.site.role, c.spec.to_json(), c.value, c.given and c.given.to_json()] for c in columns]


def columns_from_json(data: Iterable[Any]) -> tuple[Column, ...]:
    """The inverse of :func:`columns_json`."""
    return tuple(
        Column(Site(layer, role), Spec.from_json(spec), value, given and Spec.from_json(given))
        for layer, role, spec, value, given in data
    )
