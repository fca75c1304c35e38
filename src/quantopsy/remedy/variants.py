"""Where variants of a network are worked out and measured, image by image, against the float network."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, prod
from typing import Any, Literal

import numpy as np
from torch import Tensor

from quantopsy.analysis import significance
from quantopsy.analysis.phases import pieces
from quantopsy.analysis.progress import Progress
from quantopsy.analysis.screening import Scores
from quantopsy.analysis.significance import Interval
from quantopsy.analysis.subject import Subject
from quantopsy.analysis.work import tile_result
from quantopsy.core import Plan, QuantopsyError, Spec
from quantopsy.core.allocation import Decisions
from quantopsy.data import Batch
from quantopsy.engine.adaround import Effort, round_weights
from quantopsy.engine.blocks import round_blocks
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.engine.channel_statistics import channel_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.memory import GIB
from quantopsy.engine.screen import Candidates
from quantopsy.engine.sequential import bias_can_move, correct_biases
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.graph.operators import WEIGHTED_SUMS
from quantopsy.metrics import Agreement
from quantopsy.study import FLOAT, RunResult, Store
from quantopsy.transforms.transform import Transform, apply_checked

Correction = Literal["none", "analytic", "iterative", "adaround", "blocks"]

CORRECTION_PIXELS = 512 * 32 * 32
"""Pixels of the images that biases and roundings are found on, so that small images are many: 4-bit weights of a CIFAR
ResNet rounded on 64 make 1.4 times the noise of those rounded on 512."""

CORRECTION_IMAGES = 64, 512
"""The fewest and the most of them."""

SCREENED_IMAGES = 64


@dataclass(frozen=True)
class Variant:
    """What is done to a network: transforms (by name, :meth:`Variants.register`), a plan, what is corrected behind it.

    ``plan`` holds nothing that was found for particular values; ``correction`` says what is worked out for it.
    """

    plan: Plan
    transforms: tuple[str, ...] = ()
    correction: Correction = "none"


@dataclass(frozen=True)
class Transformed:
    """A transformed network with its engine and ranges; ``moved``: relative change of its float outputs."""

    network: Network
    engine: ExactEngine
    calibration: Calibration
    key: str
    moved: float
    plans: dict[tuple[Plan, Correction], Plan] = field(default_factory=dict)
    rounded: dict[Plan, Plan] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One variant against another over the same images.

    ``change`` of the degradation, positive is worse; ``noise``: the second's over the first's.
    """

    change: Interval
    noise: Interval


class Variants:
    """Works out and measures variants of a subject. Measured results stay in the study."""

    def __init__(
        self,
        subject: Subject,
        store: Store,
        alternatives: Iterable[Spec],
        effort: Effort,
        progress: Progress,
        end: float = inf,
    ) -> None:
        """``end``: of the time, as :func:`time.monotonic`, after which no more roundings are looked for."""
        self.end = end
        self.subject, self.store, self.progress, self.effort = subject, store, progress, effort
        self._alternatives = tuple(dict.fromkeys(alternatives))
        self._transforms: dict[str, Transform] = {}
        self._transformed: dict[tuple[str, ...], Transformed] = {}
        self._batches: dict[bytes, Batch] = {}
        self._references: dict[bytes, tuple[Any, ...]] = {}
        self._room = int(subject.settings.max_memory * GIB / 4)
        self._float = ExactEngine(subject.program, Calibration())

    @property
    def over(self) -> bool:
        """Whether time is up."""
        return time.monotonic() > self.end

    def register(self, transform: Transform) -> str:
        """The name that variants have for ``transform``: of what it does, not of which object it is."""
        name = hashlib.sha256(json.dumps(transform.to_json(), sort_keys=True).encode()).hexdigest()[:16]
        self._transforms[name] = transform
        return name

    def transform(self, name: str) -> Transform:
        """The transform that :meth:`register` named."""
        return self._transforms[name]

    def transformed(self, transforms: tuple[str, ...]) -> Transformed:
        """The network under ``transforms``, calibrated; checked to be the float network still.

        Raises :class:`QuantopsyError` where an exact transform moves the float outputs beyond rounding.
        """
        if transforms not in self._transformed:
            self._transformed[transforms] = self._transform(transforms)
        return self._transformed[transforms]

    def _transform(self, transforms: tuple[str, ...]) -> Transformed:
        subject = self.subject
        network, moved = subject.network, 0.0
        few = [subject.calibration_images.batch(subject.calibration_order[:8]).inputs]
        for transform in transforms:
            network, step = apply_checked(self._transforms[transform], network, few)
            moved += step
        program = compile_network(network, subject.settings.device) if transforms else subject.program
        plans = [subject.full, *self._wide_plans()]
        self.progress.start("calibration", len(subject.calibration_order))
        calibration = calibrate(
            program,
            (self._batch(piece, calibration=True).inputs for piece in pieces(subject.calibration_order, subject.tile)),
            wanted_statistics(network, plans),
            self.progress.advance,
        )
        return Transformed(
            network, ExactEngine(program, calibration), calibration, " ".join(("repair", *transforms)), moved
        )

    def channel_ranges(self, transforms: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
        """By value the least and greatest number of every channel, (C,) each, over the calibration images."""
        base = self.transformed(transforms)
        order = self.subject.calibration_order
        self.progress.start("channels", len(order))
        batches = (self._batch(piece, calibration=True).inputs for piece in pieces(order, self.subject.tile))
        statistics = channel_statistics(base.engine.program, batches, self.progress.advance)
        return {value: (found.low, found.high) for value, found in statistics.items()}

    def _wide_plans(self) -> list[Plan]:
        """Plans that ask for every statistic that an alternative may want."""
        activations = [site for site in self.subject.full if site.role != "weight"]
        wide = [Plan.of(dict.fromkeys(activations, spec)) for spec in self._alternatives]
        return [*wide, self.corrected(self.subject.full)]

    def corrected(self, plan: Plan) -> Plan:
        """``plan`` with every bias corrected in closed form, where the layer's algebra is known."""
        able = {x.name for x in self.subject.network.layers if x.op in WEIGHTED_SUMS}
        return Plan.of(
            {
                site: replace(spec, correction="bias")
                if site.role == "weight" and site.layer in able and spec.correction == "none"
                else spec
                for site, spec in plan.sites
            }
        )

    def plan(self, variant: Variant) -> Plan:
        """The variant's plan with what its correction found."""
        base = self.transformed(variant.transforms)
        key = variant.plan, variant.correction
        if key not in base.plans:
            base.plans[key] = self._worked_out(base, variant)
        return base.plans[key]

    def _worked_out(self, base: Transformed, variant: Variant) -> Plan:
        if variant.correction == "none":
            return variant.plan
        if variant.correction == "analytic":
            return self.corrected(variant.plan)
        order = self.subject.calibration_order
        some = order[np.linspace(0, len(order) - 1, min(self._correction_images, len(order))).astype(int)]
        batches = [self._batch(piece, calibration=True).inputs for piece in pieces(some, min(32, self.subject.tile))]
        layers = {layer.name for layer in base.network.layers if bias_can_move(layer)}
        steps = len(base.engine.program.steps)
        if variant.correction == "iterative":
            self.progress.start("bias correction", steps)
            return correct_biases(base.engine, variant.plan, batches, layers, self.progress.advance)
        self.progress.start("rounding", steps)
        rounding = (batches, layers, self.effort, self.progress.advance, lambda: self.over)
        if variant.plan not in base.rounded:
            base.rounded[variant.plan] = round_weights(base.engine, variant.plan, *rounding)
        rounded = base.rounded[variant.plan]
        if variant.correction == "blocks":
            self.progress.start("blocks", steps)
            return round_blocks(base.engine, rounded, *rounding)
        return rounded

    @property
    def _correction_images(self) -> int:
        fewest, most = CORRECTION_IMAGES
        pixels = max((prod(shape[1:]) for shape in self.subject.network.input_shapes), default=1)
        return min(max(CORRECTION_PIXELS // max(pixels, 1), fewest), most)

    def result(self, variant: Variant | None, images: np.ndarray) -> RunResult:
        """The variant (None: the float network) on ``images`` (ascending); what the study has is not run again."""
        if variant is None:
            return self._held(FLOAT, images)
        base, plan = self.transformed(variant.transforms), self.plan(variant)
        if not plan:
            return self._held(FLOAT, images)
        run = self.store.run(plan, base.key)
        todo = images[~np.isin(images, self.store.images(run))]
        if len(todo):
            prepared = base.engine.prepare(plan)
            self.progress.start("network", len(todo))
            for piece in pieces(todo, self.subject.tile):
                batch = self._batch(piece)
                reference = self._reference(batch)
                outputs = base.engine.whole_pass(batch.inputs, prepared)
                found = tile_result(
                    base.network,
                    self.subject.images,
                    self.subject.metric,
                    run,
                    batch,
                    None,
                    outputs,
                    reference,
                    0.0,
                )
                self.store.append([found])
                self.progress.advance(len(piece))
        return self._held(run, images)

    def _held(self, run: int, images: np.ndarray) -> RunResult:
        result = self.store.result(run)
        if result is None or not np.isin(images, result.images).all():
            raise QuantopsyError(
                f"study {str(self.store.path.parent)!r}",
                "it lacks the float network on some images",
                "run the same `quantopsy analyze` again: it goes on",
            )
        found = result.on(images)
        return replace(found, energy=np.zeros_like(found.energy)) if run == FLOAT else found

    def noise(self, variant: Variant, images: np.ndarray) -> float:
        """Mean over ``images`` of the squared distance of the outputs from float's."""
        return float(self.result(variant, images).energy.mean())

    def degradation(self, variant: Variant, images: np.ndarray, level: float) -> Interval:
        """What the variant loses against the float network."""
        float_, own = self.result(None, images), self.result(variant, images)
        return significance.degradation(self.subject.metric, float_.statistics, own.statistics, level=level)

    def difference(self, before: Variant, after: Variant, images: np.ndarray, level: float) -> Difference:
        """``after`` against ``before``, paired image by image."""
        old, new = self.result(before, images), self.result(after, images)
        change = significance.degradation(self.subject.metric, old.statistics, new.statistics, level=level)
        return Difference(change, significance.ratio_of_means(new.energy, old.energy, level))

    def decisions(self, before: Variant, after: Variant, images: np.ndarray, level: float) -> Decisions | None:
        """How many more ``images`` are decided as in float ``after`` than ``before``; None where nothing is decided.

        Of few flips that the labels call neither better nor worse the metric says nothing; this does.
        """
        old, new = (self.result(variant, images).agreement[:, None] for variant in (before, after))
        if not np.isfinite(old).all():
            return None
        agreement = Agreement()
        gained = significance.degradation(agreement, new, old, level=level)
        return Decisions(agreement.value(old), agreement.value(new), gained.estimate)

    def screened(
        self,
        variant: Variant,
        candidates: Candidates,
        images: np.ndarray,
        *,
        noise_probes: int = 1,
        decision: bool = False,
    ) -> Scores:
        """First-order scores of ``candidates`` on the variant, of at most :data:`SCREENED_IMAGES`."""
        base = self.transformed(variant.transforms)
        some = images[:SCREENED_IMAGES]
        self.progress.start("screen", len(some))

        def batches() -> Iterable[Batch]:
            for piece in pieces(np.sort(some), self.subject.screen_tile):
                yield self._batch(piece)
                self.progress.advance(len(piece))

        return Scores.of_batches(
            base.engine.program,
            base.calibration,
            batches(),
            candidates,
            noise_probes=noise_probes,
            decision=decision,
        )

    def _batch(self, piece: np.ndarray, calibration: bool = False) -> Batch:
        """A batch, kept as long as there is room: the same images are looked at again and again."""
        key = bytes([calibration]) + piece.tobytes()
        if key not in self._batches:
            images = self.subject.calibration_images if calibration else self.subject.images
            batch = images.batch(piece)
            size = sum(x.nbytes for x in _tensors(batch.inputs))
            if size > self._room:
                return batch
            self._room -= size
            self._batches[key] = batch
        return self._batches[key]

    def _reference(self, batch: Batch) -> tuple[Any, ...]:
        """Outputs of the float network as it was given, whatever has been done to it."""
        key = batch.indices.tobytes()
        if key not in self._references:
            outputs, _ = self._float.float_pass(batch.inputs)
            size = sum(x.nbytes for x in _tensors(outputs))
            if size > self._room:
                return outputs
            self._room -= size
            self._references[key] = outputs
        return self._references[key]


def _tensors(values: Any) -> Sequence[Any]:
    found = values.values() if isinstance(values, dict) else values
    return [value for value in found if hasattr(value, "nbytes")]
