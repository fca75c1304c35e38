"""The tables behind words and pictures: which layers come first, the whole network beside their sum."""

from __future__ import annotations

import numpy as np
import pandas as pd

from quantopsy.analysis.results import Results, headline


def headline_bits(results: Results) -> int:
    """The bit-width that a verdict starts from."""
    return headline(results.bits)


def ranked(results: Results, bits: int) -> pd.DataFrame:
    """The cells at ``bits``, worst first, with what the tables show beside them.

    Guilty cells come first, by degradation; the rest by noise, which tells layers apart long before
    degradation does. Adds ``guilty`` (the verdict, measured or predicted, is that it hurts), ``improves``
    (measured, and the interval lies below zero), ``screened`` and ``rough`` (see :func:`with_marks`),
    ``noise_share`` (of the noise of all cells at these bits) and the layer's ``source``.
    """
    cells = with_marks(results.cells[results.cells["bits"] == bits])
    cells["guilty"] = cells["verdict"] == "hurts"
    cells["improves"] = ~cells["screened"] & (cells["degradation_high"] < 0)
    total = cells["noise"].sum()
    cells["noise_share"] = cells["noise"] / total if total > 0 else float("nan")
    cells["source"] = cells["layer"].map(results.layers.set_index("layer")["source"])
    cells["order"] = cells["degradation"].where(cells["guilty"])
    return cells.sort_values(["order", "noise", "layer"], ascending=[False, False, True], na_position="last").drop(
        columns="order"
    )


def with_marks(cells: pd.DataFrame) -> pd.DataFrame:
    """``cells`` with ``screened`` (not run) and ``rough`` (besides, too much noise for a first-order prediction)."""
    screened = cells["method"] == "screened"
    # Without a screen the column holds None.
    return cells.assign(screened=screened, rough=screened & cells["linear"].isin([False]))


def run_and_screened(results: Results) -> pd.DataFrame:
    """The cells that were both run and screened, with noise of either kind; one row for a layer without weights.

    Adds ``beyond``: whether there is too much noise for a first-order prediction.
    """
    cells = results.cells
    both = cells[(cells["method"] == "exact") & _positive(cells["noise"]) & _positive(cells["screened_noise"])]
    # Its measurement stands in every row of bits, and would count as many times.
    both = both.sort_values(["layer", "bits"], ascending=[True, False])
    return both.drop_duplicates(["layer", "noise", "screened_noise"]).assign(
        beyond=lambda cells: cells["linear"].isin([False])
    )


def verdicts_given(results: Results) -> int:
    """For how many cells the verdicts are corrected: a layer without weights is one."""
    weighted = int(results.layers["weight_shape"].notna().sum())
    return weighted * len(results.bits) + len(results.layers) - weighted


def _positive(noise: pd.Series) -> pd.Series:
    return np.isfinite(noise) & (noise > 0)


WHOLE_COLUMNS = (
    "bits",
    "value",
    "float_value",
    "degradation",
    "degradation_low",
    "degradation_high",
    "degradation_sum",
    "degradation_sum_stderr",
    "noise",
    "noise_sum",
    "noise_predicted",
    "sqnr_db",
    "agreement",
    "samples",
)


def whole_network(results: Results) -> pd.DataFrame:
    """The whole network by bit-width, finest first; an empty table has its columns all the same."""
    return results.whole.reindex(columns=list(WHOLE_COLUMNS)).sort_values("bits", ascending=False)
