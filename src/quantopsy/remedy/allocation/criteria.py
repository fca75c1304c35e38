"""What a bit-width at a site is worth: objectives for the integer program, by name.

V options, n images, R random probes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from quantopsy.analysis.prediction import Baseline, outlook
from quantopsy.analysis.screening import Scores
from quantopsy.core import Plan, QuantopsyError, Site, Spec
from quantopsy.engine.calibration import Calibration
from quantopsy.graph.network import Network
from quantopsy.metrics import Metric
from quantopsy.remedy.allocation.choices import Choices
from quantopsy.remedy.allocation.program import Objective, shrunk

Criterion = Literal["noise", "additive", "degradation", "hawq", "greedy"]
CRITERIA: Mapping[str, str] = {
    "noise": "noise of the outputs with the interactions of layers",
    "additive": "noise of the outputs, layers adding up",
    "degradation": "predicted degradation, layers adding up",
    "hawq": "mean curvature times squared change of the weight (HAWQ-V2)",
    "greedy": "noise, layers adding up, one step after another",
}
assert set(CRITERIA) == set(get_args(Criterion))


@dataclass(frozen=True)
class Values:
    """What was found of every option, on images that decide and on nothing else.

    ``scores`` hold every option and all that is fixed. ``curvature``: by layer, mean of the Hessian's diagonal.
    """

    choices: Choices
    scores: Scores
    baseline: Baseline
    metric: Metric
    network: Network
    calibration: Calibration
    curvature: Mapping[str, float]

    def objective(self, criterion: Criterion) -> Objective:
        """What ``criterion`` minimises.

        Raises :class:`QuantopsyError` for the degradation of a network whose outputs are no scores of classes.
        """
        if criterion == "noise":
            return self._noise(self._gram)
        if criterion in ("additive", "greedy"):
            return Objective(np.square(self._e[:-1]).mean(1))
        return Objective(self._degradation() if criterion == "degradation" else self._hawq())

    @cached_property
    def _e(self) -> np.ndarray:
        """(V + 1, n R): first-order change of every probe by option, last of all that is fixed."""
        decided = self.choices.by_site
        fixed = Plan(tuple((site, spec) for site, spec in self.choices.plan.sites if site not in decided))
        rows = [self.scores.e(Plan.of(self.choices.specs(choice, bits))) for choice, bits in self.choices.options()]
        return np.stack([*(row.ravel() for row in rows), self.scores.e(fixed).ravel()])

    @cached_property
    def _gram(self) -> np.ndarray:
        owner = np.append(self.choices.shape.owner, -1)
        return shrunk(self._e, owner[:, None] == owner[None, :])

    @staticmethod
    def _noise(gram: np.ndarray) -> Objective:
        """x' G x + 2 g' x + c, g and c the fixed sites' rows of the whole matrix."""
        return Objective(2.0 * gram[:-1, -1], gram[:-1, :-1], float(gram[-1, -1]))

    def _degradation(self) -> np.ndarray:
        """(V,): what each option alone is predicted to lose of the metric; no more bits lose more."""

        def value(plan: Plan) -> float:
            return outlook(self.scores, self.scores.change(plan), self.baseline, self.metric).value

        untouched = value(Plan())
        options = self.choices.options()
        found = [
            self.metric.sign * (untouched - value(Plan.of(self.choices.specs(choice, bits))))
            for choice, bits in options
        ]
        values = np.array(found)
        if not np.isfinite(values).all():
            raise QuantopsyError(
                "criterion degradation", "the outputs are no scores that a change could turn", "take noise"
            )
        parts = np.split(values, self.choices.shape.starts[1:])
        return np.concatenate([np.maximum.accumulate(np.maximum(part, 0.0)[::-1])[::-1] for part in parts])

    def _hawq(self) -> np.ndarray:
        """(V,): mean(diag H) ||Q(W) - W||^2 (Z. Dong et al., HAWQ-V2, 2020, equation 5, H approximated by Fisher's
        information); 0 for activations, of which it says nothing."""
        found = []
        for choice, bits in self.choices.options():
            specs = self.choices.specs(choice, bits) if choice.of_weight else {}
            found.append(sum(self._bent(site, spec) for site, spec in specs.items()))
        return np.array(found)

    def _bent(self, site: Site, spec: Spec) -> float:
        """Mean curvature times squared change of a layer's weight."""
        layer = self.network.layer(site.layer)
        weight = self.network.weight(layer)
        assert weight is not None
        change = self.calibration.quantized_weight(layer, spec, weight) - weight
        return self.curvature[layer.name] * float(change.square().sum())
