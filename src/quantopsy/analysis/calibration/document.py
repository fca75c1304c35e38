"""A study of a calibration set as one JSON document: what ``--json`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quantopsy.analysis.calibration.result import CalibrationStudy
from quantopsy.core.plain import plain


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
        "verdict": plain(study.verdict),
        "images": study.images,
        "distinct": study.distinct,
        "samples": study.evaluation,
        "float": study.float_value.value,
        "float_interval": plain([study.float_value.low, study.float_value.high]),
        "given": plain(study.given),
        "own": plain(study.own),
        "cleaned": plain(study.cleaned),
        "cost": plain(study.cost),
        "noise_ratio": plain(study.noise_ratio),
        "growth": plain(study.growth),
        "activations": plain(study.activations),
        "shifts": plain(study.shifts),
        "outliers": {
            "odd": named(found.odd),
            "blank": named(found.blank),
            "setters": [{**plain(setter), "images": named(setter.images)} for setter in found.setters],
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
        "selection": None if chosen is None else {**plain(chosen), "images": list(chosen.entries)},
        "level": study.level,
        "tolerance": study.tolerance,
        "settings": plain(study.settings),
        "provenance": plain(study.provenance),
        "seconds": study.seconds,
    }
