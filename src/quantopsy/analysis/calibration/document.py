"""A study of a calibration set as one JSON document: what ``--json`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd

from quantopsy.analysis.calibration.result import CalibrationStudy


def document(study: CalibrationStudy) -> dict[str, Any]:
    """Plain JSON values; a number that is not finite is null. Images stand by their file, or number in the data."""
    found, duplicates, chosen = study.outliers, study.duplicates, study.selection

    def named(images: Iterable[int]) -> list[str]:
        return [study.names[image] for image in images]

    return {
        "model": study.model,
        "data": study.data,
        "calibration": study.calibration,
        "metric": study.metric,
        "unit": study.unit,
        "bits": study.bits,
        "verdict": _plain(study.verdict),
        "images": study.images,
        "distinct": study.distinct,
        "samples": study.evaluation,
        "float": study.float_value.value,
        "float_interval": _plain([study.float_value.low, study.float_value.high]),
        "given": _plain(study.given),
        "own": _plain(study.own),
        "cleaned": _plain(study.cleaned),
        "cost": _plain(study.cost),
        "noise_ratio": _plain(study.noise_ratio),
        "growth": _plain(study.growth),
        "activations": _plain(study.activations),
        "shifts": _plain(study.shifts),
        "outliers": {
            "odd": named(found.odd),
            "blank": named(found.blank),
            "setters": [{**_plain(setter), "images": named(setter.images)} for setter in found.setters],
            "factor": found.factor,
            "widest": found.widest,
        },
        "duplicates": {
            "equal": [named(group) for group in duplicates.equal],
            "near": [named(group) for group in duplicates.near],
            "shared": named(duplicates.shared),
            "nearly_shared": named(duplicates.nearly_shared),
        },
        "bad": list(study.bad),
        "selection": None if chosen is None else {**_plain(chosen), "images": list(chosen.entries)},
        "level": study.level,
        "tolerance": study.tolerance,
        "settings": _plain(study.settings),
        "provenance": _plain(study.provenance),
        "seconds": study.seconds,
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, pd.DataFrame):
        return [_plain(row) for row in value.to_dict("records")]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
