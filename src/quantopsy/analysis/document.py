"""An analysis as one JSON document: what ``--json`` prints."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from quantopsy.analysis.results import Results
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
