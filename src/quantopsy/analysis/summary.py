"""From per-image measurements to tables: nothing is run again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from quantopsy.analysis import significance
from quantopsy.analysis.results import CELL_COLUMNS, WHOLE_COLUMNS, Distribution, Results
from quantopsy.metrics import Metric, chance_level, is_at_chance
from quantopsy.study import FLOAT, RunResult, Store

LAYER_COLUMNS = (
    "layer",
    "name",
    "op",
    "activation",
    "source",
    "weight_shape",
    "output_shape",
    "macs",
    "parameters",
)


def summarise(store: Store, metric: Metric, *, complete: bool) -> Results:
    """The tables of a study, from what it holds so far.

    A cell appears once it has been measured on at least one image; its numbers are of the images
    that both it and the float network were measured on, within the samples last asked for.
    """
    wanted = np.sort(np.asarray(store.noted("order", []), dtype=np.int64))
    reference = _within(store.result(FLOAT), wanted)
    assert reference is not None
    layers = pd.DataFrame(store.noted("layers", [])).rename(columns={"index": "layer"})
    layers = layers.reindex(columns=list(LAYER_COLUMNS))
    settings = store.noted("settings", {})
    rows = [
        {
            "layer": cell["layer"],
            "name": layers["name"][cell["layer"]],
            "op": layers["op"][cell["layer"]],
            "bits": cell["bits"],
            **measured,
            "method": "exact",
        }
        for cell in store.noted("cells", [])
        if (measured := _measured(store, metric, cell["run"], reference, wanted)) is not None
    ]
    cells = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).sort_values(["layer", "bits"], ignore_index=True)
    sums = cells.groupby("bits")[["noise", "degradation"]].sum()
    whole = pd.DataFrame(
        [
            {
                "bits": entry["bits"],
                **measured,
                "noise_sum": sums["noise"].get(entry["bits"], np.nan),
                "degradation_sum": sums["degradation"].get(entry["bits"], np.nan),
            }
            for entry in store.noted("whole", [])
            if (measured := _measured(store, metric, entry["run"], reference, wanted)) is not None
        ],
        columns=list(WHOLE_COLUMNS),
    )
    interval = significance.metric_interval(metric, reference.statistics)
    runs = {entry["run"] for entry in (*store.noted("cells", []), *store.noted("whole", []))}
    enough = all(len(store.images(run)) >= len(wanted) for run in runs) and bool(runs)
    return Results(
        model=store.noted("model", ""),
        data=store.noted("data", ""),
        metric=metric.name,
        unit=metric.unit,
        float_value=interval.value,
        float_low=interval.low,
        float_high=interval.high,
        samples=len(reference.images),
        bits=tuple(sorted({cell["bits"] for cell in store.noted("cells", [])})),
        layers=layers,
        cells=cells,
        whole=whole,
        unquantized=tuple(store.noted("unquantized", [])),
        coverage=store.noted("coverage", {}),
        distributions={name: distribution_from_json(value) for name, value in store.noted("distributions", {}).items()},
        settings=settings,
        provenance=store.noted("provenance", {}),
        warnings=_warnings(store, metric, reference, settings),
        passes=_passes(store, runs, reference),
        seconds=store.noted("seconds", 0.0),
        complete=complete and enough,
    )


def _within(result: RunResult | None, wanted: np.ndarray) -> RunResult | None:
    if result is None:
        return None
    common = np.intersect1d(result.images, wanted)
    return result.on(common) if len(common) else None


def _measured(
    store: Store, metric: Metric, run: int, reference: RunResult, wanted: np.ndarray
) -> dict[str, Any] | None:
    result = _within(store.result(run), wanted)
    if result is None:
        return None
    on = reference.on(result.images)
    degradation = significance.degradation(metric, on.statistics, result.statistics)
    noise, stderr = significance.mean_stderr(result.energy)
    signal = float(on.energy.mean())
    return {
        "noise": noise,
        "noise_stderr": stderr,
        "sqnr_db": 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else np.inf,
        "value": metric.value(result.statistics),
        "degradation": degradation.value,
        "degradation_low": degradation.low,
        "degradation_high": degradation.high,
        "agreement": float(result.agreement.mean()),
        "samples": len(result.images),
        "seconds": result.seconds,
    }


def _passes(store: Store, runs: set[int], reference: RunResult) -> float:
    """Seconds in runs over seconds of one float forward of the same images."""
    per_image = reference.seconds / len(reference.images)
    total = sum(result.seconds for run in runs if (result := store.result(run)) is not None)
    return total / (per_image * len(reference.images)) if per_image > 0 else float("nan")


def _warnings(store: Store, metric: Metric, reference: RunResult, settings: Mapping[str, Any]) -> tuple[str, ...]:
    lines = []
    classes = store.noted("classes")
    if classes and is_at_chance(metric, reference.statistics, classes):
        lines.append(
            f"The float network's {metric.name} is at chance level ({chance_level(metric, classes):.3g}): check the "
            "preprocessing and the labels before reading anything else here."
        )
    if settings.get("calibration") == "the evaluation images":
        lines.append("Ranges were calibrated on the evaluation images; give --calibration for an honest figure.")
    if bad := store.noted("bad", []):
        lines.append(f"{len(bad)} unreadable images were left out: {', '.join(bad[:3])}.")
    return tuple(lines)


def distribution_json(distribution: Distribution) -> dict[str, Any]:
    """A JSON form of ``distribution``, six significant digits."""

    def numbers(values: np.ndarray | None) -> list[float] | None:
        return None if values is None else [float(f"{value:.6g}") for value in values]

    return {
        "weight_edges": numbers(distribution.weight_edges),
        "weight_counts": numbers(distribution.weight_counts),
        "weight_range": None if distribution.weight_range is None else list(distribution.weight_range),
        "channel_low": numbers(distribution.channel_low),
        "channel_high": numbers(distribution.channel_high),
        "input_ranges": [list(pair) for pair in distribution.input_ranges],
        "output_range": None if distribution.output_range is None else list(distribution.output_range),
    }


def distribution_from_json(data: Mapping[str, Any]) -> Distribution:
    """The inverse of :func:`distribution_json`."""

    def array(name: str) -> np.ndarray | None:
        return None if data[name] is None else np.asarray(data[name])

    return Distribution(
        array("weight_edges"),
        array("weight_counts"),
        array("channel_low"),
        array("channel_high"),
        tuple((low, high) for low, high in data["input_ranges"]),
        None if data["output_range"] is None else tuple(data["output_range"]),
        None if data["weight_range"] is None else tuple(data["weight_range"]),
    )
