"""An analysis as one JSON document: what ``--json`` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from quantopsy.analysis.additivity import Additivity, Relation
from quantopsy.analysis.change import Change
from quantopsy.analysis.comparison import Compared, Difference, View
from quantopsy.analysis.results import Results
from quantopsy.analysis.scheme_table import SchemeTable
from quantopsy.analysis.significance import Interval
from quantopsy.core import Finding
from quantopsy.core.plain import plain
from quantopsy.core.recipe import Expected

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
        "float_interval": plain([results.float_low, results.float_high]),
        "samples": results.samples,
        "complete": results.complete,
        "mode": results.settings.get("mode"),
        "level": results.level,
        "tolerance": plain(results.tolerance),
        "check": plain(results.check),
        "additivity": None if results.additivity is None else _additivity(results.additivity),
        "open_cells": results.open_cells,
        "whole": {str(row["bits"]): plain(row) for row in results.whole.to_dict("records")},
        "worst": {str(bits): plain(worst(results, bits)) for bits in results.bits},
        "repair": None if results.repaired is None else plain(results.repaired.to_json()),
        "allocation": None if results.allocated is None else plain(results.allocated.to_json()),
        "diagnosed": list(results.diagnosed),
        "findings": [_finding(finding) for finding in results.findings],
        "coverage": dict(results.coverage),
        "unquantized": [dict(item) for item in results.unquantized],
        "warnings": list(results.warnings),
        "settings": dict(results.settings),
        "provenance": dict(results.provenance),
        "passes": plain(results.passes),
        "seconds": results.seconds,
    }


def repair_document(results: Results) -> dict[str, Any]:
    """A repair as one JSON document; all of it but ``steps`` on images held out."""
    done = results.repaired
    assert done is not None
    rest = {name: value for name, value in done.to_json().items() if name != "expected"}
    return {**_proof(done.expected, "before", "after"), **rest}


def allocation_document(results: Results) -> dict[str, Any]:
    """An allocation as one JSON document; figures but those of ``rivals`` and the front on images held out."""
    done = results.allocated
    assert done is not None
    values = done.to_json()
    rest = {name: value for name, value in values.items() if name not in ("expected", "uniform")}
    return {**_proof(done.expected, "uniform", "mixed"), **rest, "uniform_widths": values["uniform"]}


def _proof(expected: Expected, before: str, after: str) -> dict[str, Any]:
    """What a network is worth; ``before`` and ``after`` are what its values are called."""
    return {
        "metric": expected.metric,
        "unit": expected.unit,
        "float": expected.float[0],
        before: expected.before[0],
        after: expected.after[0],
        "interval": list(expected.after[1:]),
        "gained": list(expected.gained),
        "lost": list(expected.lost),
        "samples": expected.samples,
    }


def comparison_document(compared: Compared) -> dict[str, Any]:
    """Plain JSON values of a comparison; positive changes are worse, but for the SQNR's."""
    return {
        "level": compared.level,
        "tolerance": plain(compared.tolerance),
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
        "whole": None if whole is None else plain(whole.to_dict()),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    layers, (only_before, only_after) = difference.layers, difference.partnerless()
    return {
        "before": {"study": difference.before.label, "bits": difference.before.bits},
        "after": {"study": difference.after.label, "bits": difference.after.bits},
        "whole": None if difference.whole is None else _change(difference.whole),
        "verdicts": layers["verdict"].value_counts().to_dict(),
        "noise_verdicts": layers["noise_verdict"].value_counts().to_dict(),
        "rank_correlation": plain(difference.rank_correlation),
        "same_data": difference.same_data,
        "settings": {name: list(values) for name, values in difference.differing_settings().items()},
        "only_before": list(only_before),
        "only_after": list(only_after),
        "layers": plain(layers),
    }


def _change(found: Change) -> dict[str, Any]:
    def numbers(interval: Interval) -> list[float | None]:
        found: list[float | None] = plain(list(interval.estimate))
        return found

    return {
        "degradation": numbers(found.degradation),
        "noise_db": numbers(found.noise_db),
        "sqnr_db": numbers(found.over_signal_db.scaled(-1.0)),
        "images": found.images,
    }


def scheme_document(table: SchemeTable) -> dict[str, Any]:
    """Plain JSON values of a table of schemes; positive degradations and changes are worse."""
    return {
        "model": table.model,
        "data": table.data,
        "metric": table.metric,
        "unit": table.unit,
        "float": table.float_value,
        "float_interval": plain([table.float_low, table.float_high]),
        "samples": table.samples,
        "complete": table.complete,
        "level": table.level,
        "tolerance": plain(table.tolerance),
        "schemes": plain(table.schemes),
        "questions": plain(table.questions),
        "settings": dict(table.settings),
        "seconds": table.seconds,
    }


def worst(results: Results, bits: int, count: int = WORST) -> pd.DataFrame:
    """The ``count`` cells at ``bits`` with most noise."""
    cells = results.cells[results.cells["bits"] == bits]
    return cells.sort_values("noise", ascending=False, kind="stable").head(count)


def _additivity(found: Additivity) -> dict[str, Any]:
    """All of it but which subset holds, which stands in the rows of ``subsets``."""

    def related(relation: Relation | None) -> Any:
        if relation is None:
            return None
        line = None if relation.fit is None else asdict(relation.fit)
        return {"limit": relation.limit, "reach": relation.reach, "largest": relation.largest, "fit": line}

    made: dict[str, Any] = plain(
        {
            "low": found.low_bits,
            "high": found.high_bits,
            "samples": found.samples,
            "signal": found.signal,
            "bias_shift": found.bias_shift,
            "noise_ratio": asdict(found.noise_ratio),
            "sum_error": found.sum_error,
            "screen_error": found.screen_error,
            "noise": related(found.noise),
            "degradation": related(found.degradation),
            "interaction": None if found.interaction is None else asdict(found.interaction),
            "subsets": found.table.to_dict("records"),
        }
    )
    return made


def _finding(finding: Finding) -> dict[str, Any]:
    found: dict[str, Any] = plain(finding.to_json())
    return found
