"""What is known of a network that may be deployed, be it from a study or from a recipe. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
from scipy.stats import norm

from quantopsy.analysis.change import Evidence, degradation
from quantopsy.analysis.comparison import Recorded
from quantopsy.analysis.significance import Interval
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.core.recipe import Estimate, Expected, Recipe, StoredTensor
from quantopsy.engine.calibration import ends_of
from quantopsy.metrics import Metric
from quantopsy.quant.encoding import qparams_from_json
from quantopsy.quant.registry import stored_bits
from quantopsy.study import RunResult, Store

FLOAT_BITS = 32

Grids = Mapping[Site, tuple[np.ndarray, ...]]
"""By site, for each of its values, (number of grids, 2): the lowest and the highest level of every grid."""


@dataclass(frozen=True)
class StudySource:
    """A study with what :class:`Recorded` leaves out: the plans of its whole networks, and their grids."""

    recorded: Recorded
    plans: Mapping[int, Plan]  # by bits of the weights
    grids: Grids | None  # with weights at 8 bits; None in a study that did not keep them

    @classmethod
    def of(cls, store: Store, metric: Metric, label: str) -> StudySource:
        """All that a gate needs, so that the store can be closed."""
        recorded = Recorded.of(store, metric, label)
        plans = {bits: store.plan(run) for bits, run in recorded.whole.items()}
        noted = store.noted("grids")
        return cls(recorded, plans, None if noted is None else _grids(noted))


@dataclass(frozen=True)
class RecipeSource:
    """A recipe, what to call it, and the metric of its proof; None where nobody has it at hand."""

    recipe: Recipe
    label: str
    metric: Metric | None = None

    @property
    def evidence(self) -> Evidence | None:
        """Its proof, image by image, as a study holds its own; None where it was not kept. No noise is known."""
        recipe, metric = self.recipe, self.metric
        if recipe.proof is None or metric is None:
            return None
        images = _array(recipe.proof.images)
        reference, result = (
            RunResult(images, np.full(len(images), np.nan), np.full(len(images), np.nan), _array(statistics), 0.0)
            for statistics in (recipe.proof.float, recipe.proof.after)
        )
        return Evidence(metric, str(recipe.provenance.get("data", self.label)), reference, result)


Source = StudySource | RecipeSource


@dataclass(frozen=True)
class Candidate:
    """One network, quantized as it may be deployed.

    ``weights``: how many values each layer's weight has. ``macs`` by layer and ``total_macs``: of an image, None where
    nobody noted them. ``float_value`` and ``value``: of the metric, float and quantized; ``lost`` the difference, NaN
    where none was measured or predicted. ``source`` is what it was read from.
    """

    label: str
    kind: Literal["study", "recipe"]
    model: str  # fingerprint of the float network
    bits: int | None  # of the weights; None where they differ by layer
    plan: Plan
    weights: Mapping[str, int]
    macs: Mapping[str, float] | None
    total_macs: float | None
    metric: str
    unit: str
    float_value: float
    value: float
    lost: Interval
    samples: int
    source: Source = field(repr=False)
    grids: Grids | None = field(repr=False, default=None)

    @property
    def evidence(self) -> Evidence | None:
        """What is held of the whole network, image by image; None of a recipe that did not keep its proof."""
        return self.source.evidence if isinstance(self.source, RecipeSource) else evidence_at(self.source, self.bits)

    @property
    def bytes(self) -> float:
        """Of all weights: their codes, and 4 bytes for each value of one that stays float. Scales are not counted."""
        return sum(count * _bits(self.plan.get(Site(name, "weight"))) / 8 for name, count in self.weights.items())

    @property
    def coverage(self) -> float | None:
        """Share of the network's MACs whose operands are quantized: a layer's input, and its weight if it has one."""
        if self.macs is None or not self.total_macs:
            return None
        return sum(self.macs.get(name, 0.0) for name in self.quantized) / self.total_macs

    @property
    def quantized(self) -> frozenset[str]:
        """Layers that compute with quantized operands."""
        sites = {site for site, _ in self.plan.sites}
        return frozenset(
            name
            for name in self.layers
            if Site(name, "input") in sites and (name not in self.weights or Site(name, "weight") in sites)
        )

    @property
    def layers(self) -> frozenset[str]:
        """Names of all layers that are known."""
        return frozenset(self.weights) | self.plan.layers | frozenset(self.macs or ())


def candidate(source: Source, bits: int | None, level: float) -> Candidate:
    """What ``source`` holds; of a study the network with weights at ``bits``, intervals at ``level``."""
    if isinstance(source, RecipeSource):
        return _of_recipe(source, level)
    assert bits is not None
    return _of_study(source, bits, level)


def evidence_at(source: Source, bits: int | None) -> Evidence | None:
    """What a study holds of the whole network at ``bits``; None where it has not that, and of recipes."""
    if isinstance(source, RecipeSource) or bits is None or bits not in source.recorded.whole:
        return None
    return source.recorded.evidence(source.recorded.whole[bits])


def _of_study(source: StudySource, bits: int, level: float) -> Candidate:
    recorded = source.recorded
    if bits not in source.plans:
        known = ", ".join(map(str, sorted(source.plans)))
        raise QuantopsyError(f"{bits} bits", f"study {recorded.label!r} has {known}", "give --bits it has")
    results = recorded.results
    lost = degradation(recorded.evidence(recorded.whole[bits]), level)
    rows = results.whole[results.whole["bits"] == bits]
    layers = results.layers
    return Candidate(
        label=recorded.label,
        kind="study",
        model=str(results.provenance.get("model", recorded.label)),
        bits=bits,
        plan=source.plans[bits],
        weights={
            name: prod(shape)
            for name, shape in zip(layers["name"], layers["weight_shape"], strict=True)
            if isinstance(shape, list | tuple)
        },
        macs=dict(zip(layers["name"], layers["macs"].astype(float), strict=True)),
        total_macs=results.coverage.get("macs"),
        metric=results.metric,
        unit=results.unit,
        float_value=results.float_value,
        value=float("nan") if rows.empty else float(rows.iloc[0]["value"]),
        lost=lost,
        samples=0 if rows.empty else int(rows.iloc[0]["samples"]),
        source=source,
        grids=source.grids,
    )


def _of_recipe(source: RecipeSource, level: float) -> Candidate:
    recipe = source.recipe
    expected: Expected | None = recipe.expected
    nothing = float("nan")
    shapes: Mapping[str, Sequence[int]] = recipe.model.get("weights", {})
    widths = {spec.bits for site, spec in recipe.plan.sites if site.role == "weight"}
    return Candidate(
        label=source.label,
        kind="recipe",
        model=str(recipe.model.get("fingerprint", source.label)),
        bits=widths.pop() if len(widths) == 1 else None,
        plan=recipe.plan,
        weights={name: prod(shape) for name, shape in shapes.items()},
        macs=recipe.model.get("macs"),
        total_macs=recipe.model.get("total_macs"),
        metric=expected.metric if expected else "",
        unit=expected.unit if expected else "",
        float_value=expected.float[0] if expected else nothing,
        value=expected.after[0] if expected else nothing,
        lost=at_level(expected.lost, expected.level, level) if expected else Interval(nothing, nothing, nothing, level),
        samples=expected.samples if expected else 0,
        source=source,
        grids=_decoded(recipe),
    )


def at_level(estimate: Estimate, level: float, wanted: float) -> Interval:
    """The interval at ``wanted`` of an estimate that was kept at ``level``: ends move as a normal distribution's."""
    value, low, high = estimate
    factor = float(norm.isf((1.0 - wanted) / 2.0) / norm.isf((1.0 - level) / 2.0))
    return Interval(value, value - factor * (value - low), value + factor * (high - value), wanted)


def _array(given: StoredTensor) -> np.ndarray:
    try:
        return np.frombuffer(given.raw, dtype=np.dtype(given.dtype).newbyteorder("<")).reshape(given.shape)
    except Exception as error:
        raise QuantopsyError("recipe's proof", f"it does not decode ({error})", "write the recipe again") from None


def _bits(spec: Spec | None) -> int:
    return FLOAT_BITS if spec is None else stored_bits(spec)


def _grids(noted: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[Site, tuple[np.ndarray, ...]]:
    return {
        Site(layer, role): tuple(np.asarray(value, dtype=np.float64).reshape(-1, 2) for value in values)  # type: ignore[arg-type]
        for layer, roles in noted.items()
        for role, values in roles.items()
    }


def _decoded(recipe: Recipe) -> Grids:
    """The ends of the grids that a recipe's encodings are of."""
    return _grids(
        {
            layer: {role: [ends_of(qparams_from_json(grid)) for grid in grids] for role, grids in roles.items()}
            for layer, roles in recipe.encodings.items()
        }
    )
