"""Whether the float network is the reference that a quantized one should be measured against.

After fine-tuning with quantization it no longer is: the training has compensated for the noise of one
bit-width instead of lessening it (layer-wise paper, section 4.3, Figures 7 and 8).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import binomtest, spearmanr

BY_CHANCE = 0.025
"""Share of harmless layers whose two-sided 95 % interval lies below zero by chance."""

CERTAIN = 0.01
"""How improbable chance must be."""

_LEAST = 5  # cells that certainly change, from which a rank correlation is taken


def reference_doubt(cells: pd.DataFrame) -> str:
    """What speaks against the float network as reference, in words; empty where nothing does.

    ``cells`` of one bit-width with columns ``noise, degradation, degradation_low, degradation_high,
    method``. More layers than chance allows improve the metric (binomial test); or among cells that
    certainly change it, more noise does not go with more loss (Spearman's correlation not above zero).
    Screened cells are left out: first order predicts no improvement.
    """
    run = cells[(cells["method"] == "exact") & np.isfinite(cells["degradation_low"])].drop_duplicates(["name", "noise"])
    improving = int((run["degradation_high"] < 0).sum())
    if improving > 1 and binomtest(improving, len(run), BY_CHANCE, alternative="greater").pvalue < CERTAIN:
        return f"{improving} of {len(run)} layers improve the metric when quantized, more than chance allows"
    certain = run[(run["degradation_low"] > 0) | (run["degradation_high"] < 0)]
    if len(certain) >= _LEAST and spearmanr(certain["noise"], certain["degradation"]).statistic <= 0:
        return f"of {len(certain)} layers that certainly change the metric, those with more noise do not lose more"
    return ""
