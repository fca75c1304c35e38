"""An analysis as one JSON document: what ``--json`` prints."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from quantopsy.analysis.change import Change
from quantopsy.analysis.comparison import Compared, Difference, View
from quantopsy.analysis.results import Results
from quantopsy.analysis.significance import Interval
from quantopsy.core import Finding

WORST = 10


def document(results: Results) -> dict[str, Any]:
    """Plain JSON values; a number that is not finite is null.

    ``worst`` is ordered by noise, worst first, and its entries have the columns of ``Results.cells``:
    ``method`` says whether they were run, ``verdict`` what holds of them all the same.
    """
    return {
        "model": results.model,
        "data": results.data,
        "metric": results.metric,
        "unit": results.unit,
        "float": results.float_value,
        "float_interval": [results.float_low, results.float_high],
        "samples": results.samples,
        "complete": results.complete,
        "mode": results.settings.get("mode"),
        "level": results.level,
        "tolerance": _number(results.tolerance),
        "check": None if results.check is None else _plain(asdict(results.check)),
        "open_cells": results.open_cells,
        "whole": {str(row["bits"]): _plain(row) for row in results.whole.to_dict("records")},
        "worst": {str(bits): [_plain(row) for row in worst(results, bits).to_dict("records")] for bits in results.bits},
        "diagnosed": list(results.diagnosed),
        "findings": [_finding(finding) for finding in results.findings],
        "coverage": dict(results.coverage),
        "unquantized": [dict(item) for item in results.unquantized],
        "warnings": list(results.warnings),
        "settings": dict(results.settings),
        "provenance": dict(results.provenance),
        "passes": _number(results.passes),
        "seconds": results.seconds,
    }


def comparison_document(compared: Compared) -> dict[str, Any]:
    """Plain JSON values of a comparison; positive changes are worse, but for the SQNR's."""
    return {
        "level": compared.level,
        "tolerance": _number(compared.tolerance),
        "looks": compared.looks,
        "views": [_view(view) for view in compared.views],
        "differences": [_difference(difference) for difference in compared.differences],
    }


def _view(view: View) -> dict[str, Any]:
    results, whole = view.results, view.whole
    return {
        "study": view.label,
        "bits": view.bits,
        "model": results.model,
        "data": results.data,
        "metric": results.metric,
        "unit": results.unit,
        "float": results.float_value,
        "samples": results.samples,
        "whole": None if whole is None else _plain(whole.to_dict()),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    layers, (only_before, only_after) = difference.layers, difference.partnerless()
    return {
        "before": {"study": difference.before.label, "bits": difference.before.bits},
        "after": {"study": difference.after.label, "bits": difference.after.bits},
        "whole": None if difference.whole is None else _change(difference.whole),
        "verdicts": layers["verdict"].value_counts().to_dict(),
        "noise_verdicts": layers["noise_verdict"].value_counts().to_dict(),
        "rank_correlation": _number(difference.rank_correlation),
        "same_data": difference.same_data,
        "settings": {name: list(values) for name, values in difference.differing_settings().items()},
        "only_before": list(only_before),
        "only_after": list(only_after),
        "layers": [_plain(row) for row in layers.to_dict("records")],
    }


def _change(found: Change) -> dict[str, Any]:
    def plain(interval: Interval) -> list[float | None]:
        return [_number(interval.value), _number(interval.low), _number(interval.high)]

    return {
        "degradation": plain(found.degradation),
        "noise_db": plain(found.noise_db),
        "sqnr_db": plain(found.over_signal_db.scaled(-1.0)),
        "images": found.images,
    }


def worst(results: Results, bits: int, count: int = WORST) -> pd.DataFrame:
    """The ``count`` cells at ``bits`` with most noise."""
    cells = results.cells[results.cells["bits"] == bits]
    return cells.sort_values("noise", ascending=False, kind="stable").head(count)


def _finding(finding: Finding) -> dict[str, Any]:
    plain = finding.to_json()
    return {**plain, "evidence": _plain(plain["evidence"]), "shares": _plain(plain["shares"])}


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): _number(value) for key, value in row.items()}


def _number(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, tuple):
        return [_number(item) for item in value]
    if isinstance(value, float) or hasattr(value, "dtype"):
        value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
