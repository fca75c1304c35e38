"""What a variant is worth, on images that nothing was decided on, and the recipe that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from quantopsy.analysis import significance
from quantopsy.analysis.recipes import encodings_of, given_of, model_of, portable
from quantopsy.analysis.results import Results
from quantopsy.analysis.subject import Subject
from quantopsy.core import QuantopsyError
from quantopsy.core.recipe import Estimate, Expected, Proof, Recipe, Step, StoredTensor
from quantopsy.metrics import Metric
from quantopsy.remedy.variants import Variant, Variants

SHARES = 0.2, 0.3
"""Of the images: those that proposals are compared on, and those that keep or drop one. The rest is for the end."""

LEAST_IMAGES = 20  # in each of the three parts
PROOF_VALUES = 100_000  # that a recipe keeps of its proof, image by image


@dataclass(frozen=True)
class Parts:
    """Three disjoint sets of images, each ascending and spread evenly over the data."""

    search: np.ndarray
    confirm: np.ndarray
    report: np.ndarray

    @classmethod
    def of(cls, order: np.ndarray) -> Parts:
        """``order`` in three; any beginning of it is spread evenly. Raises where one would be too small."""
        first = int(SHARES[0] * len(order))
        second = first + int(SHARES[1] * len(order))
        parts = cls(*(np.sort(part) for part in (order[:first], order[first:second], order[second:])))
        least = min(len(part) for part in (parts.search, parts.confirm, parts.report))
        if least < LEAST_IMAGES:
            raise QuantopsyError(
                f"{len(order)} images of the study",
                "too few to decide on one part and prove on another",
                f"analyze with at least {ceil(LEAST_IMAGES / min(SHARES))}",
            )
        return parts


def proof(variants: Variants, before: Variant, after: Variant, images: np.ndarray, level: float) -> Expected:
    """What ``after`` is worth beside ``before``, on ``images`` that nothing was decided on."""
    held = (variants.result(variant, images).statistics for variant in (None, before, after))
    return expectation(variants.subject.metric, *held, level=level)


def expectation(metric: Metric, exact: np.ndarray, before: np.ndarray, after: np.ndarray, *, level: float) -> Expected:
    """The worth of a network by the statistics (n, K) of the same images: float, as it was quantized first, and now."""

    def value(found: np.ndarray) -> Estimate:
        return significance.metric_interval(metric, found, level=level).estimate

    def lost(reference: np.ndarray, found: np.ndarray) -> Estimate:
        return significance.degradation(metric, reference, found, level=level).estimate

    return Expected(
        metric=metric.name,
        unit=metric.unit,
        samples=len(exact),
        level=level,
        float=value(exact),
        before=value(before),
        after=value(after),
        lost_before=lost(exact, before),
        lost=lost(exact, after),
        gained=lost(after, before),
    )


def written(
    variants: Variants,
    variant: Variant,
    expected: Expected,
    images: np.ndarray,
    steps: tuple[Step, ...],
    provenance: Mapping[str, Any],
) -> Recipe:
    """The recipe of ``variant``, which ``images`` have proven to be worth ``expected``."""
    transformed = variants.transformed(variant.transforms)
    plan = portable(transformed.network, variants.plan(variant), transformed.calibration)
    return Recipe(
        plan=plan,
        transforms=tuple(variants.transform(name).to_json() for name in variant.transforms),
        encodings=encodings_of(transformed.network, plan, transformed.calibration),
        given=given_of(plan, transformed.calibration),
        model=model_of(variants.subject.network, variants.subject.model_name),
        expected=expected,
        proof=by_image(images, *(variants.result(found, images).statistics for found in (None, variant))),
        steps=steps,
        provenance=provenance,
    )


def by_image(images: np.ndarray, exact: np.ndarray, quantized: np.ndarray) -> Proof | None:
    """What ``images`` (n,) gave, one by one: the metric's statistics (n, K) of the float network and of the quantized
    one; None where that would be more than the rest of a recipe."""
    if exact.size > PROOF_VALUES:
        return None
    positions, *statistics = (
        StoredTensor.of(str(array.dtype), array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes())
        for array in (images.astype(np.int32), exact.astype(np.float64), quantized.astype(np.float64))
    )
    return Proof(positions, *statistics)


def provenance_of(results: Results, subject: Subject, parts: Parts) -> dict[str, Any]:
    """Of a recipe that was worked out from a study: versions, data, how many images decided what."""
    return {
        **results.provenance,
        "given": subject.given.to_json(),
        "images": {name: len(part) for name, part in vars(parts).items()},
    }
