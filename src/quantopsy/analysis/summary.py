"""From per-image measurements to tables: nothing is run again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from quantopsy.analysis import significance
from quantopsy.analysis.assessment import Assessment, assess_study, images_asked_for
from quantopsy.analysis.budget import passes_spent
from quantopsy.analysis.phases import half_refused
from quantopsy.analysis.results import CELL_COLUMNS, EVALUATION_IMAGES, WHOLE_COLUMNS, Check, Distribution, Results
from quantopsy.analysis.subsets import additivity_of
from quantopsy.analysis.verdicts import Measured
from quantopsy.core import Finding
from quantopsy.core.allocation import Allocation
from quantopsy.core.recipe import Repair
from quantopsy.engine.layer_noise import Edge, Local
from quantopsy.metrics import Metric, chance_level, is_at_chance
from quantopsy.study import RunResult, Store

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


def summarise(store: Store, metric: Metric, *, complete: bool, state: Assessment | None = None) -> Results:
    """The tables of a study, from what it holds so far; ``state`` is its assessment, where it has been made.

    A cell appears once it has been measured on at least one image, or screened; its numbers are of the
    images that both it and the float network were measured on, within the samples last asked for.
    """
    state = state or assess_study(store, metric)
    settings, reference = store.noted("settings", {}), state.reference
    interval = significance.metric_interval(metric, reference.statistics, level=state.level)
    layers = pd.DataFrame(store.noted("layers", [])).rename(columns={"index": "layer"})
    layers = layers.reindex(columns=list(LAYER_COLUMNS))
    noted = store.noted("cells", [])
    runs = {cell["run"] for cell in noted}
    bits_of = {cell["run"]: cell["bits"] for cell in noted}
    whole_runs = {entry["bits"]: entry["run"] for entry in store.noted("whole", [])}
    rows = [
        {
            "layer": cell["layer"],
            "name": layers["name"][cell["layer"]],
            "op": layers["op"][cell["layer"]],
            "bits": cell["bits"],
            **found,
            "verdict_bits": cell["bits"] if (by := state.found_by(cell["run"])) == cell["run"] else bits_of[by],
        }
        for cell in noted
        if (found := _cell(state, cell["run"])) is not None
    ]
    cells = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).sort_values(["layer", "bits"], ignore_index=True)
    sums = cells.groupby("bits")[["noise", "degradation"]].sum(skipna=False)
    whole = pd.DataFrame(
        [
            {
                "bits": bits,
                **measured_figures(state.measured[run], state.results[run].seconds),
                "float_value": _float_value(metric, state.measured[run]),
                "noise_sum": sums["noise"].get(bits, np.nan),
                "degradation_sum": sums["degradation"].get(bits, np.nan),
                "degradation_sum_stderr": _sum_stderr(
                    metric, state, run, [cell["run"] for cell in noted if cell["bits"] == bits]
                ),
                "noise_predicted": state.expected[run].noise if run in state.expected else np.nan,
            }
            for bits, run in whole_runs.items()
            if run in state.measured
        ],
        columns=list(WHOLE_COLUMNS),
    )
    return Results(
        model=store.noted("model", ""),
        data=store.noted("data", ""),
        metric=metric.name,
        unit=metric.unit,
        float_value=interval.value,
        float_low=interval.low,
        float_high=interval.high,
        samples=len(reference.images),
        bits=tuple(sorted({cell["bits"] for cell in noted})),
        layers=layers,
        cells=cells,
        whole=whole,
        unquantized=tuple(store.noted("unquantized", [])),
        coverage=store.noted("coverage", {}),
        distributions={name: distribution_from_json(value) for name, value in store.noted("distributions", {}).items()},
        settings=settings,
        provenance=store.noted("provenance", {}),
        warnings=_warnings(store, metric, reference, settings),
        level=state.level,
        tolerance=state.tolerance,
        findings=tuple(Finding.from_json(finding) for finding in store.noted("findings", [])),
        diagnosed=tuple(store.noted("diagnosed", [])),
        locals={
            bits: {name: local_from_json(local) for name, local in store.noted(f"local.{bits}", {}).items()}
            for bits in store.noted("diagnosed", [])
        },
        repaired=Repair.from_json(noted_repair) if (noted_repair := store.noted("repair")) else None,
        allocated=Allocation.from_json(noted_bits) if (noted_bits := store.noted("allocation")) else None,
        check=_check(state, runs, set(store.noted("checks", []))),
        additivity=additivity_of(store, metric, level=state.level, tolerance=state.tolerance),
        open_cells=sum(state.open(run) for run in runs),
        passes=passes_spent(store, len(reference.images)),
        seconds=store.noted("seconds", 0.0),
        complete=complete and _finished(store, runs | set(whole_runs.values()), settings),
    )


def _cell(state: Assessment, run: int) -> dict[str, Any] | None:
    """A cell's figures, measured where they are, else predicted."""
    expected, predicted = state.expected.get(run), state.predicted.get(run)
    beside = {
        "linear": expected.linear if expected else None,
        "screened_noise": expected.noise if expected else np.nan,
        "screened_degradation": predicted.value if predicted else np.nan,
        "loss_change": expected.loss_change if expected else np.nan,
        "verdict": state.verdict(run),
    }
    if run in state.measured:
        return {**measured_figures(state.measured[run], state.results[run].seconds), "method": "exact", **beside}
    if expected is None or predicted is None or not np.isfinite(expected.noise):
        return None
    return {
        "noise": expected.noise,
        "noise_stderr": expected.noise_stderr,
        "sqnr_db": _sqnr_db(expected.signal, expected.noise),
        "degradation": predicted.value,
        "degradation_low": predicted.low,
        "degradation_high": predicted.high,
        "agreement": expected.agreement,
        "samples": expected.images,
        "method": "screened",
        "seconds": 0.0,
        **beside,
    }


def measured_figures(found: Measured, seconds: float) -> dict[str, Any]:
    """What tables hold of a plan that was measured, by column."""
    return {
        "noise": found.noise,
        "noise_stderr": found.noise_stderr,
        "sqnr_db": _sqnr_db(found.signal, found.noise),
        "value": found.value,
        "degradation": found.degradation.value,
        "degradation_low": found.degradation.low,
        "degradation_high": found.degradation.high,
        "agreement": found.agreement,
        "samples": found.samples,
        "seconds": seconds,
    }


def _float_value(metric: Metric, found: Measured) -> float:
    """The float network's value on the images that a plan was measured on."""
    return found.value + metric.sign * found.degradation.value


def _sum_stderr(metric: Metric, state: Assessment, whole: int, cells: Iterable[int]) -> float:
    """Standard error over images of the sum of all cells' degradations less the whole network's.

    NaN where not all of them were run on the same images, and for metrics that are no mean over images. Cells
    lose and gain the same images of small margin, so that their errors add up rather than cancel.
    """
    found = [state.results.get(run) for run in (whole, *cells)]
    images = state.results[whole].images
    if not metric.linear or any(result is None or not np.array_equal(result.images, images) for result in found):
        return float("nan")
    before = state.reference.on(images).statistics[:, 0]
    lost = np.stack([before - result.statistics[:, 0] for result in found if result is not None])
    return metric.scale * significance.mean_stderr(lost[1:].sum(0) - lost[0])[1]


def _sqnr_db(signal: float, noise: float) -> float:
    return float(10 * np.log10(signal / noise)) if noise > 0 and signal > 0 else float("inf")


def _check(state: Assessment, runs: Iterable[int], drawn: set[int]) -> Check | None:
    """The screen against all cells that were run exactly."""
    both = [run for run in runs if run in state.measured and run in state.expected]
    if not both:
        return None
    linear = [run for run in both if state.expected[run].linear and state.measured[run].noise > 0]
    predicted = np.array([state.expected[run].noise for run in linear])
    found = np.array([state.measured[run].noise for run in linear])
    stderr = np.array([state.expected[run].noise_stderr for run in linear])
    low, middle, high = np.quantile(predicted / found, (0.1, 0.5, 0.9)) if linear else (np.nan,) * 3

    def error(some: list[int]) -> float:
        distances = [abs(state.predicted[run].value - state.measured[run].degradation.value) for run in some]
        return float(np.mean(distances)) if distances else float("nan")

    return Check(
        cells=len(linear),
        random=len(drawn & set(both)),
        noise_ratio=(float(low), float(middle), float(high)),
        noise_rank=float(spearmanr(predicted, found).statistic) if len(linear) > 2 else float("nan"),
        degradation_error=error(both),
        random_degradation_error=error([run for run in both if run in drawn]),
        covered=float(np.mean(np.abs(predicted - found) <= 1.96 * stderr)) if linear else float("nan"),
    )


def _finished(store: Store, runs: Iterable[int], settings: Mapping[str, Any]) -> bool:
    """Whether everything that the mode asks for is there."""
    wanted = images_asked_for(store)
    if settings.get("mode") == "exact":
        return all(len(np.intersect1d(store.images(run), wanted)) == len(wanted) for run in runs) and bool(runs)
    number = store.noted("screen")
    return number is not None and bool(np.isin(wanted, store.screened_images(number)).all())


def _warnings(store: Store, metric: Metric, reference: RunResult, settings: Mapping[str, Any]) -> tuple[str, ...]:
    lines = []
    classes = store.noted("classes")
    if classes and is_at_chance(metric, reference.statistics, classes):
        lines.append(
            f"The float network's {metric.name} is at chance level ({chance_level(metric, classes):.3g}): check the "
            "preprocessing and the labels before reading anything else here."
        )
    if settings.get("calibration") == EVALUATION_IMAGES:
        lines.append("Ranges were calibrated on the evaluation images; give --calibration for an honest figure.")
    if refused := half_refused(store):
        lines.append(refused)
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


def local_json(local: Local) -> dict[str, Any]:
    """A JSON form of ``local``, six significant digits in arrays."""
    return {
        key: [float(f"{v:.6g}") for v in value] if isinstance(value, np.ndarray) else value
        for key, value in asdict(local).items()
    }


def local_from_json(data: Mapping[str, Any]) -> Local:
    """The inverse of :func:`local_json`."""
    arrays = {key: np.asarray(data[key]) for key in ("shift", "variance", "low", "high", "heard")}
    inputs = tuple(Edge(**edge) for edge in data["inputs"])
    output = None if data["output"] is None else Edge(**data["output"])
    return Local(**{**data, **arrays, "inputs": inputs, "output": output})
