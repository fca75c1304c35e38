"""The tables behind words and pictures: which layers come first, the whole network beside their sum."""

from __future__ import annotations

import pandas as pd

from quantopsy.analysis.results import Results

HEADLINE_BITS = 8
"""The bit-width that people deploy first, and that a verdict starts from."""


def headline_bits(results: Results) -> int:
    """8 where it was analysed, else the next finer, else the finest there is."""
    finer = [bits for bits in results.bits if bits >= HEADLINE_BITS]
    return min(finer) if finer else max(results.bits)


def ranked(results: Results, bits: int) -> pd.DataFrame:
    """The cells at ``bits``, worst first, with what the tables show beside them.

    Guilty cells come first, by degradation; the rest by noise, which tells layers apart long before
    degradation does. Adds ``guilty`` and ``improves`` (measured exactly and the interval lies above or below
    zero), ``noise_share`` (of the noise of all cells at these bits) and the layer's ``source``.
    """
    cells = results.cells[results.cells["bits"] == bits].copy()
    exact = cells["method"] == "exact"
    cells["guilty"] = exact & (cells["degradation_low"] > 0)
    cells["improves"] = exact & (cells["degradation_high"] < 0)
    total = cells["noise"].sum()
    cells["noise_share"] = cells["noise"] / total if total > 0 else float("nan")
    cells["source"] = cells["layer"].map(results.layers.set_index("layer")["source"])
    cells["order"] = cells["degradation"].where(cells["guilty"])
    return cells.sort_values(["order", "noise", "layer"], ascending=[False, False, True], na_position="last").drop(
        columns="order"
    )


WHOLE_COLUMNS = (
    "bits",
    "value",
    "degradation",
    "degradation_low",
    "degradation_high",
    "degradation_sum",
    "noise",
    "noise_sum",
    "sqnr_db",
    "agreement",
    "samples",
)


def whole_network(results: Results) -> pd.DataFrame:
    """The whole network by bit-width, finest first; an empty table has its columns all the same."""
    return results.whole.reindex(columns=list(WHOLE_COLUMNS)).sort_values("bits", ascending=False)
