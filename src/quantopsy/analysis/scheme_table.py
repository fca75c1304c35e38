"""Whole networks under quantization schemes, against float and against each other (practical approach, Table 1)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quantopsy.analysis import significance
from quantopsy.analysis.assessment import tolerance_of, within
from quantopsy.analysis.change import Evidence, change, verdict_on
from quantopsy.analysis.phases import measure_float, measure_plans
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.schemes import WHOLE_NETWORK_SCHEMES, at_bits, changed, full_plan
from quantopsy.analysis.settings import Settings
from quantopsy.analysis.subject import Given, Subject, calibrated, make_ready, measuring, note_request
from quantopsy.analysis.summary import measured_figures
from quantopsy.analysis.verdicts import measured
from quantopsy.core import Plan
from quantopsy.study import FLOAT, Store, open_or_create

COLUMNS = (
    "scheme",
    "weight_bits",  # None where weights stay float
    "activation_bits",  # None where activations stay float
    "value",  # of the metric
    "degradation",  # metric(float) - metric(quantized): positive is worse
    "degradation_low",
    "degradation_high",
    "verdict",  # "hurts", "harmless" or "undecided", corrected for the number of schemes
    "noise",
    "noise_stderr",
    "sqnr_db",
    "agreement",
    "samples",
    "seconds",
)

QUESTION_COLUMNS = ("question", "before", "after", "weight_bits", "change", "change_low", "change_high", "verdict")

QUESTIONS = {
    "granularity": ("asymmetric per tensor", "symmetric per channel"),
    "symmetry": ("symmetric per channel", "asymmetric per channel"),
    "activations": ("weights only, symmetric per channel", "symmetric per channel"),
}
"""What the table is read for, each the difference between two schemes."""


@dataclass(frozen=True)
class SchemeTable:
    """``schemes`` has a row per scheme and bit-width of the weights, with the columns of :data:`COLUMNS`.

    ``questions`` has the paired differences of :data:`QUESTIONS`, with the columns of
    :data:`QUESTION_COLUMNS`: positive is worse. Intervals are at ``level``.
    """

    model: str
    data: str
    metric: str
    unit: str
    float_value: float
    float_low: float
    float_high: float
    samples: int
    schemes: pd.DataFrame
    questions: pd.DataFrame
    settings: Mapping[str, Any] = field(default_factory=dict)
    level: float = 0.95
    tolerance: float = 0.0
    seconds: float = 0.0
    complete: bool = True


def plans_of(subject: Subject) -> dict[tuple[str, int | None], Plan]:
    """The plan of every scheme, by its name and the bit-width of its weights."""
    settings = subject.settings
    found: dict[tuple[str, int | None], Plan] = {}
    for bits in sorted(settings.bits, reverse=True):
        for name, specs in WHOLE_NETWORK_SCHEMES.items():
            plan = full_plan(subject.network, changed(specs, settings.activation_bits, settings.changes))
            found[name, bits if "weight" in specs else None] = at_bits(plan, bits)
    return found


def evaluate(
    given: Given,
    settings: Settings,
    *,
    out: str | Path,
    fresh: bool = False,
    progress: Progress | None = None,
) -> SchemeTable:
    """Measure every scheme on every image; ``out`` is the study folder, in which a stopped one goes on.

    The network is captured and calibrated once, and all schemes run on the same tiles beside one float pass.
    Of ``settings``: ``bits``, ``activation_bits``, ``changes``, images, and where it runs. Raises
    :class:`QuantopsyError` for whatever the user can mend.
    """
    progress = progress or Silent()
    begin = time.perf_counter()
    subject = make_ready(given, settings, progress)
    plans = plans_of(subject)
    same = ("model", "data", "calibration", "calibration samples", "metric", "metric code")
    whole = subject.identity
    identity = {"experiment": "schemes", **{key: whole[key] for key in same}}
    with open_or_create(Path(out), identity, fresh=fresh) as store:
        ranges = calibrated(subject, plans.values(), progress)
        note_request(store, subject)
        store.note("order", [int(index) for index in subject.order])
        runs = {key: store.run(plan) for key, plan in plans.items()}
        stopped = False
        with measuring(subject, store, ranges, progress) as bench:
            try:
                measure_float(bench)
                measure_plans(bench, {run: plans[key] for key, run in runs.items()})
            except KeyboardInterrupt:
                stopped = True
        store.note("seconds", store.noted("seconds", 0.0) + time.perf_counter() - begin)
        if len(store.images(FLOAT)) == 0:
            raise KeyboardInterrupt
        return _table(store, subject, runs, complete=not stopped)


def _table(
    store: Store, subject: Subject, runs: Mapping[tuple[str, int | None], int], *, complete: bool
) -> SchemeTable:
    settings, metric = subject.settings, subject.metric
    reference = within(store.result(FLOAT), np.sort(subject.order))
    assert reference is not None
    value = significance.metric_interval(metric, reference.statistics, level=settings.level)
    tolerance = tolerance_of(metric, value.value) if settings.tolerance is None else settings.tolerance
    results = {
        key: result for key, run in runs.items() if (result := within(store.result(run), reference.images)) is not None
    }
    rows = []
    for (name, bits), result in results.items():
        found = measured(metric, reference, result, level=settings.level, cells=len(runs), tolerance=tolerance)
        rows.append(
            {
                "scheme": name,
                "weight_bits": bits,
                "activation_bits": settings.activation_bits if "input" in WHOLE_NETWORK_SCHEMES[name] else None,
                "verdict": found.verdict,
                **measured_figures(found, result.seconds),
            }
        )
    known = {key: Evidence(metric, "", reference, result) for key, result in results.items()}
    return SchemeTable(
        model=subject.model_name,
        data=subject.data_name,
        metric=metric.name,
        unit=metric.unit,
        float_value=value.value,
        float_low=value.low,
        float_high=value.high,
        samples=len(reference.images),
        schemes=pd.DataFrame(rows, columns=list(COLUMNS)).astype({"weight_bits": "Int64", "activation_bits": "Int64"}),
        questions=_questions(known, settings.bits, settings.level, tolerance),
        settings={
            "bits": list(settings.bits),
            "activation_bits": settings.activation_bits,
            "changes": dict(settings.changes),
            "calibration": subject.calibration_name,
            "calibration_samples": len(subject.calibration_order),
        },
        level=settings.level,
        tolerance=tolerance,
        seconds=store.noted("seconds", 0.0),
        complete=complete and all(len(result.images) == len(subject.order) for result in results.values()),
    )


def _questions(
    known: Mapping[tuple[str, int | None], Evidence], widths: Sequence[int], level: float, tolerance: float
) -> pd.DataFrame:
    strict = significance.corrected_level(level, len(QUESTIONS) * len(widths))
    rows = []
    for bits in sorted(widths, reverse=True):
        for question, (first, second) in QUESTIONS.items():
            if (first, bits) not in known or (second, bits) not in known:
                continue
            before, after = known[first, bits], known[second, bits]
            found = change(before, after, level).degradation
            verdict = verdict_on(change(before, after, strict).degradation, tolerance)
            rows.append((question, first, second, bits, found.value, found.low, found.high, verdict))
    return pd.DataFrame(rows, columns=list(QUESTION_COLUMNS))
