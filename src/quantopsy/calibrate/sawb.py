"""Statistics-aware weight binning: a clip from two moments (SAWB, Choi et al. 2018)."""

from __future__ import annotations

from quantopsy.calibrate.range_estimator import Argument, Range, RangeEstimator
from quantopsy.core import Spec
from quantopsy.quant import Sample

# bits: (c1, c2), printed by scripts/derive_sawb.py. Published: 2 bits (3.212, 2.178), 4 (12.68, 12.80),
# 5 (17.74, 18.64).
COEFFICIENTS = {
    2: (3.108, 2.050),
    3: (7.492, 6.901),
    4: (12.406, 12.538),
    5: (17.604, 18.595),
    6: (22.986, 24.921),
    7: (28.478, 31.405),
    8: (34.122, 38.087),
}


def _estimate(spec: Spec, sample: Sample, _: Argument) -> Range:
    c1, c2 = COEFFICIENTS[spec.bits]
    alpha = c1 * sample.mean(sample.values.square()).sqrt() - c2 * sample.mean(sample.values.abs())
    # The line is one of bell-shaped distributions; beyond them it can fall below zero.
    alpha = alpha.where(alpha > 0, sample.reach)
    return -alpha, alpha


ESTIMATOR = RangeEstimator(
    name="sawb",
    summary="clip from E[w^2] and E|w|, regressed over six distributions (SAWB); for weights of 2 to 8 bits",
    estimate=_estimate,
    max_bits=max(COEFFICIENTS),
)
