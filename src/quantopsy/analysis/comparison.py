"""Studies side by side: which layers changed by more than chance explains. From the stores alone, nothing is run.

A *view* is one study at one bit-width, a line of a profile. Views of several studies are held against the first
study's at the same bit-width, views of a single study against its finest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from quantopsy.analysis.assessment import Assessment, assess_study
from quantopsy.analysis.change import Change, Evidence, change, verdict_on
from quantopsy.analysis.matching import Matching, match_layers
from quantopsy.analysis.results import Results, headline
from quantopsy.analysis.significance import Interval, corrected_level
from quantopsy.analysis.summary import summarise
from quantopsy.core import QuantopsyError
from quantopsy.metrics import Metric
from quantopsy.study import Draw, Store

NOISE_TOLERANCE_DB = 1.0
"""Noise over signal that changes by less counts as unchanged: a sixth of a bit."""

_MATERIAL = (
    "scheme",
    "activation_bits",
    "changes",
    "plan",
    "split_channels",
    "samples",
    "calibration",
    "calibration_samples",
    "metric",
)
"""Settings that decide what is measured."""

COLUMNS = (
    "layer",  # position in the first study
    "name",
    "layer_after",  # position and name in the second
    "name_after",
    "op",
    "matched",  # by "name" or by "shape"
    "degradation_before",
    "degradation_after",
    "degradation_change",  # positive is worse
    "degradation_change_low",
    "degradation_change_high",
    "verdict",  # on the degradation: "worse", "better", "unchanged", "undecided", corrected for all that was looked at
    "noise_before",
    "noise_after",
    "noise_change_db",  # 10 log10(noise after / noise before)
    "noise_change_db_low",
    "noise_change_db_high",
    "sqnr_db_before",
    "sqnr_db_after",
    "sqnr_change_db",  # negative is worse
    "sqnr_change_db_low",
    "sqnr_change_db_high",
    "noise_verdict",  # the same on the SQNR
    "images",  # measured in both, image by image; 0 where the two are held against each other as they are
    "method_before",
    "method_after",
)


@dataclass(frozen=True)
class Recorded:
    """A study as it was left: its tables, and what it knows of every plan."""

    label: str
    metric: Metric
    results: Results
    state: Assessment
    draws: Mapping[int, Draw]
    cells: Mapping[tuple[int, int], int]  # run by (layer, bits)
    whole: Mapping[int, int]  # run by bits

    @classmethod
    def of(cls, store: Store, metric: Metric, label: str) -> Recorded:
        """All that a comparison needs, so that the store can be closed."""
        state = assess_study(store, metric)
        noted, whole = store.noted("cells", []), store.noted("whole", [])
        runs = {entry["run"] for entry in (*noted, *whole)}
        return cls(
            label=label,
            metric=metric,
            results=summarise(store, metric, complete=True, state=state),
            state=state,
            draws={run: draw for run in runs if (draw := store.draw(run)) is not None},
            cells={(cell["layer"], cell["bits"]): cell["run"] for cell in noted},
            whole={entry["bits"]: entry["run"] for entry in whole},
        )

    def evidence(self, run: int) -> Evidence:
        """What is known of the plan of ``run``."""
        state = self.state
        return Evidence(
            metric=self.metric,
            data=str(self.results.provenance.get("data", self.label)),
            reference=state.reference,
            result=state.results.get(run),
            draw=self.draws.get(run),
            expected=state.expected.get(run),
            error=state.error,
        )


@dataclass(frozen=True)
class View:
    """One line of a profile: the layers of a study at one bit-width of the weights."""

    label: str
    results: Results
    bits: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.label} at {self.bits} bits"

    @property
    def cells(self) -> pd.DataFrame:
        """Its cells, a row per layer, by position in topological order."""
        cells = self.results.cells
        return cells[cells["bits"] == self.bits].set_index("layer", drop=False)

    @property
    def whole(self) -> pd.Series | None:
        """The whole network; None where it was not measured."""
        table = self.results.whole
        rows = table[table["bits"] == self.bits]
        return None if rows.empty else rows.iloc[0]


@dataclass(frozen=True)
class Difference:
    """What changed from one view to another: ``layers`` has the columns of :data:`COLUMNS`.

    ``whole`` is the change of the whole network, None where it was not measured in both.
    """

    before: View
    after: View
    matching: Matching
    layers: pd.DataFrame
    whole: Change | None

    @property
    def same_metric(self) -> bool:
        """Whether degradations can be compared at all."""
        return self.before.results.metric == self.after.results.metric

    @property
    def same_data(self) -> bool:
        """Whether both were measured on images of the same data."""
        return _provenance(self.before, "data") == _provenance(self.after, "data")

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of the partners' SQNR: how alike the two profiles are; NaN for fewer than three."""
        both = self.layers[["sqnr_db_before", "sqnr_db_after"]].replace([np.inf, -np.inf], np.nan).dropna()
        return float(spearmanr(both).statistic) if len(both) > 2 else float("nan")

    def partnerless(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the layers of either that have no partner in the other."""
        sides = ((self.before, self.matching.only_before), (self.after, self.matching.only_after))
        first, second = (tuple(view.results.layers["name"].iloc[list(rows)]) for view, rows in sides)
        return first, second

    def differing_settings(self) -> dict[str, tuple[str, str]]:
        """What the studies were made with, where it is not the same."""
        mine, other = self.before.results, self.after.results
        found = {
            name: (str(mine.settings.get(name, "none")), str(other.settings.get(name, "none")))
            for name in _MATERIAL
            if mine.settings.get(name) != other.settings.get(name)
        }
        for name in ("model", "data"):
            if _provenance(self.before, name) != _provenance(self.after, name):
                texts = getattr(mine, name), getattr(other, name)
                found[name] = texts if texts[0] != texts[1] else (texts[0], "of other content")
        return found


@dataclass(frozen=True)
class Compared:
    """Views side by side, and what changed between those that can be held against each other.

    Intervals are at ``level``; verdicts are corrected for ``looks``, the number of changes looked at in all.
    ``tolerance`` is the change of degradation that does not matter, in the metric's unit.
    """

    views: tuple[View, ...]
    differences: tuple[Difference, ...]
    level: float
    tolerance: float
    looks: int


def compare(
    studies: Sequence[Recorded],
    bits: Sequence[int] | None = None,
    *,
    level: float | None = None,
    tolerance: float | None = None,
) -> Compared:
    """Every study against the first at each of ``bits``; a single study's bit-widths against its finest.

    Without ``bits``: of several studies 8 where all have it, else the finest that they share; of one all that
    it has. ``level`` and ``tolerance`` are the first study's where they are not given. Raises
    :class:`QuantopsyError` for bits that a study lacks.
    """
    first = studies[0]
    level = first.results.level if level is None else level
    tolerance = first.results.tolerance if tolerance is None else tolerance
    widths = _widths(studies, bits)
    sides = [[(study, width) for study in studies] for width in widths]
    if len(studies) == 1:
        sides = [[(first, width) for width in widths]]
    looks = 2 * sum(
        len(_pairs(before, after, match_layers(before[0].results.layers, after[0].results.layers)))
        for before, *others in sides
        for after in others
    )
    differences = tuple(
        _difference(before, after, level, tolerance, looks) for before, *others in sides for after in others
    )
    views = [View(study.label, study.results, width) for study in studies for width in widths]
    return Compared(tuple(views), differences, level, tolerance, looks)


Side = tuple[Recorded, int]


def _widths(studies: Sequence[Recorded], wanted: Sequence[int] | None) -> list[int]:
    """The bit-widths to look at, finest first."""
    shared = set.intersection(*(set(study.results.bits) for study in studies))
    if wanted is not None:
        for study in studies:
            if lacking := sorted(set(wanted) - set(study.results.bits)):
                known = ", ".join(map(str, study.results.bits))
                raise QuantopsyError(f"{lacking[0]} bits", f"study {study.label!r} has {known}", "give --bits it has")
        return sorted(set(wanted), reverse=True)
    if not shared:
        known = "; ".join(f"{study.label}: {', '.join(map(str, study.results.bits))}" for study in studies)
        raise QuantopsyError("studies", f"they share no bit-width ({known})", "analyze one of them at the other's")
    if len(studies) == 1:
        return sorted(shared, reverse=True)
    return [headline(shared)]


def _pairs(before: Side, after: Side, matching: Matching) -> list[tuple[int, int, str]]:
    """Partners of which both were looked at: position in either, and by what they were matched.

    Not those that are the same measurement: a layer without weights at two bit-widths of one study.
    """
    (mine, bits), (other, other_bits) = before, after
    return [
        (pair.before, pair.after, pair.by)
        for pair in matching.pairs
        if (pair.before, bits) in mine.cells
        and (pair.after, other_bits) in other.cells
        and not (mine is other and mine.cells[pair.before, bits] == other.cells[pair.after, other_bits])
    ]


def _difference(before: Side, after: Side, level: float, tolerance: float, looks: int) -> Difference:
    (mine, bits), (other, other_bits) = before, after
    matching = match_layers(mine.results.layers, other.results.layers)
    views = View(mine.label, mine.results, bits), View(other.label, other.results, other_bits)
    cells = [view.cells for view in views]
    rows = []
    for layer, layer_after, by in _pairs(before, after, matching):
        if layer not in cells[0].index or layer_after not in cells[1].index:
            continue
        evidence = mine.evidence(mine.cells[layer, bits]), other.evidence(other.cells[layer_after, other_bits])
        found = change(*evidence, level)
        strict = change(*evidence, corrected_level(level, looks))
        rows.append(
            {
                **_described(cells[0].loc[layer], "before"),
                **_described(cells[1].loc[layer_after], "after"),
                "layer": layer,
                "name": cells[0]["name"][layer],
                "layer_after": layer_after,
                "name_after": cells[1]["name"][layer_after],
                "op": cells[0]["op"][layer],
                "matched": by,
                **_interval("degradation_change", found.degradation),
                **_interval("noise_change_db", found.noise_db),
                **_interval("sqnr_change_db", found.over_signal_db.scaled(-1.0)),
                "verdict": verdict_on(strict.degradation, tolerance),
                "noise_verdict": verdict_on(strict.over_signal_db, NOISE_TOLERANCE_DB),
                "images": found.images,
            }
        )
    whole = None
    if all(view.whole is not None for view in views):
        whole = change(mine.evidence(mine.whole[bits]), other.evidence(other.whole[other_bits]), level)
    return Difference(*views, matching, pd.DataFrame(rows, columns=list(COLUMNS)), whole)


def _described(cell: pd.Series, side: str) -> dict[str, object]:
    return {f"{name}_{side}": cell[name] for name in ("degradation", "noise", "sqnr_db", "method")}


def _interval(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _provenance(view: View, name: str) -> object:
    return view.results.provenance.get(name, view.label)
