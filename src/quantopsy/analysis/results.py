"""What an analysis found, as plain tables: all that the terminal, the page and notebooks show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from quantopsy.analysis.additivity import Additivity
from quantopsy.core import Finding
from quantopsy.core.allocation import Allocation
from quantopsy.core.recipe import Repair
from quantopsy.engine.layer_noise import Local

HEADLINE_BITS = 8
"""The bit-width that people deploy first, and that a verdict starts from."""

EVALUATION_IMAGES = "the evaluation images"
"""What calibration images are called where none were given."""

CELL_COLUMNS = (
    "layer",  # position in topological order, from 0
    "name",  # module path
    "op",
    "bits",  # of the weights
    "noise",  # mean over images of ||y - y_j||^2 (Algorithm 1)
    "noise_stderr",
    "sqnr_db",  # 10 log10(mean ||y||^2 / noise)
    "degradation",  # metric(float) - metric(quantized): positive is worse
    "degradation_low",
    "degradation_high",
    "agreement",  # share of images whose decision equals the float network's, NaN where there is none
    "samples",
    "method",  # "exact" or "screened": then all figures are predictions from gradients
    "verdict",  # "hurts", "harmless" or "undecided", corrected for looking at many cells
    "verdict_bits",  # at which it was found: others than ``bits`` where fewer bits cannot hurt less
    "linear",  # False where the noise is too large for a first-order prediction; None without a screen
    "screened_noise",  # the prediction, beside what was measured
    "screened_degradation",
    "loss_change",  # of the user's loss, predicted; NaN without one
    "seconds",
)

WHOLE_COLUMNS = (
    "bits",
    "noise",
    "noise_sum",
    "noise_stderr",
    "sqnr_db",
    "value",
    "float_value",  # of the float network on the same images
    "degradation",
    "degradation_low",
    "degradation_high",
    "degradation_sum",
    "degradation_sum_stderr",  # over images, of the sum less the whole; NaN where not all was run on the same images
    "noise_predicted",  # by the screen, with the interactions of all layers
    "agreement",
    "samples",
    "seconds",
)


def headline(bits: Iterable[int]) -> int:
    """Of ``bits``, :data:`HEADLINE_BITS` where it is there, else the next finer, else the finest there is."""
    known = set(bits)
    finer = [width for width in known if width >= HEADLINE_BITS]
    return min(finer) if finer else max(known)


@dataclass(frozen=True)
class Distribution:
    """What the tensors of one layer look like; ``None`` where the layer has no weight."""

    weight_edges: np.ndarray | None = None  # (bins + 1,) histogram edges of the folded weight
    weight_counts: np.ndarray | None = None  # (bins,)
    channel_low: np.ndarray | None = None  # (C_out,) per output channel
    channel_high: np.ndarray | None = None
    input_ranges: tuple[tuple[float, float], ...] = ()  # calibrated range of each quantized input
    output_range: tuple[float, float] | None = None
    weight_range: tuple[float, float] | None = None  # ends of the grid that the plan puts the weight on


@dataclass(frozen=True)
class Check:
    """How far the screen was from what was then run exactly."""

    cells: int  # measured exactly and in the linear regime
    random: int  # of all measured cells, those that were drawn at random for this check
    noise_ratio: tuple[float, float, float]  # predicted over measured: 10 %, 50 % and 90 % quantile over ``cells``
    noise_rank: float  # Spearman's correlation over ``cells``
    degradation_error: float  # mean distance of predicted from measured over all measured cells, the metric's unit
    random_degradation_error: float  # the same over the random ones
    covered: float  # share of ``cells`` whose noise lies within 1.96 standard errors of the prediction


@dataclass(frozen=True)
class Results:
    """One finished (or stopped) analysis.

    ``layers`` has a row per layer: ``layer, name, op, activation, source, weight_shape,
    output_shape, macs, parameters`` (shapes as tuples or None, without the batch dimension for
    outputs; ``source`` is ``file:line`` or None). ``cells`` has the columns of
    :data:`CELL_COLUMNS`; a layer without weights has the same measurement in every row of bits.
    ``whole`` has a row per bit-width, the network with every layer quantized beside the sum of the
    single layers, with the columns of :data:`WHOLE_COLUMNS`.
    """

    model: str
    data: str
    metric: str
    unit: str  # "points" where the metric is in percent, else ""
    float_value: float
    float_low: float
    float_high: float
    samples: int
    bits: tuple[int, ...]  # ascending
    layers: pd.DataFrame
    cells: pd.DataFrame
    whole: pd.DataFrame
    unquantized: tuple[Mapping[str, Any], ...] = ()  # {"name", "operator", "source"}: stays float
    coverage: Mapping[str, float] = field(default_factory=dict)  # layers, macs_share, ...
    distributions: Mapping[str, Distribution] = field(default_factory=dict)  # by layer name
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)  # versions, hashes, machine
    warnings: tuple[str, ...] = ()
    level: float = 0.95  # of intervals
    tolerance: float = 0.0  # loss that a harmless cell may have, in the metric's unit
    findings: tuple[Finding, ...] = ()  # of `quantopsy diagnose`, primary causes first within a layer
    diagnosed: tuple[int, ...] = ()  # bit-widths that it looked at
    locals: Mapping[int, Mapping[str, Local]] = field(default_factory=dict)  # by bit-width and layer
    check: Check | None = None  # None where nothing was both screened and run
    repaired: Repair | None = None  # None where no repair was tried
    allocated: Allocation | None = None  # None where no bit-widths were allocated
    additivity: Additivity | None = None  # None where no subsets of layers were run
    open_cells: int = 0  # whose verdict more measuring could change
    passes: float = 0.0
    seconds: float = 0.0
    complete: bool = True  # False where the run was stopped before every cell had every image
