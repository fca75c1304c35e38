"""What is done on one tile of images, in this process or on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantopsy.analysis.pace import Pace
from quantopsy.core import Plan, QuantopsyError
from quantopsy.data import Batch, Images
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.probes import Loss, runner_up_in_front, top_gaps
from quantopsy.engine.screen import Candidates, ScreenEngine
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.graph.outputs import output_tensors, squared_norms
from quantopsy.metrics import Metric, agreement, measure
from quantopsy.study import FLOAT, RunnerUp, ScreenTile, TileResult


@dataclass(frozen=True)
class Setup:
    """All that a worker needs, wherever it is. ``candidates`` are what the screen scores."""

    network: Network
    calibration: Calibration
    images: Images
    metric: Metric
    candidates: Candidates = field(default_factory=dict)
    device: str = "cpu"
    noise_probes: int = 1
    precision: str = "float32"
    loss: Loss | None = None
    seed: int = 0


@dataclass(frozen=True)
class BaselineTask:
    """The float network on ``images``."""

    images: np.ndarray


@dataclass(frozen=True)
class ExactTask:
    """``plans`` by run on ``images``; a run in ``rows`` only on those of them (positions, ascending).

    A run in ``ranges`` has those instead of the set-up's.
    """

    images: np.ndarray
    plans: Mapping[int, Plan]
    rows: Mapping[int, np.ndarray] = field(default_factory=dict)
    ranges: Mapping[int, Calibration] = field(default_factory=dict)


@dataclass(frozen=True)
class ScreenTask:
    """The candidates on ``images``, with the probe of the decision or without; with ``half`` in bfloat16."""

    images: np.ndarray
    decision: bool
    half: bool = False


Task = BaselineTask | ExactTask | ScreenTask


@dataclass(frozen=True)
class Done:
    """What a task gave, the seconds it took, and ``pace``: those that an image of a float pass took meanwhile."""

    task: Task
    seconds: float
    pace: float
    results: tuple[TileResult, ...] = ()
    runner_up: RunnerUp | None = None
    classes: int | None = None
    screened: ScreenTile | None = None
    hidden: Mapping[str, str] = field(default_factory=dict)
    moved: tuple[float, ...] = ()


class Worker:
    """Does tasks on one device, with ``exact`` where there is such an engine already.

    ``advance`` hears of every run of a task as it is done, with its images.
    """

    def __init__(
        self, setup: Setup, exact: ExactEngine | None = None, advance: Callable[[int, int], None] | None = None
    ) -> None:
        self.setup = setup
        self.exact = exact or ExactEngine(compile_network(setup.network, setup.device), setup.calibration)
        self.program = self.exact.program
        self.advance = advance
        self.pace = Pace(self.exact)
        self._screens: dict[tuple[bool, bool], ScreenEngine] = {}

    def load(self, task: Task) -> Batch:
        """The task's images."""
        return self.setup.images.batch(task.images)

    def run(self, task: Task, batch: Batch) -> Done:
        """Do ``task``."""
        match task:
            case BaselineTask():
                return self._baseline(task, batch)
            case ExactTask():
                return self._exact(task, batch)
            case ScreenTask():
                return self._screen(task, batch)

    def _baseline(self, task: BaselineTask, batch: Batch) -> Done:
        outputs, seconds = self.exact.float_pass(batch.inputs)
        check_finite(outputs, batch, self.setup.images)
        result = self._measured(FLOAT, batch, None, outputs, outputs, seconds)
        turned = runner_up_in_front(outputs)
        statistics = np.empty((len(task.images), 0))
        if turned is not None:
            statistics = self._measured(FLOAT, batch, None, turned, outputs, 0.0).statistics
        self._advanced(FLOAT, len(task.images))
        runner_up = RunnerUp(task.images, top_gaps(outputs), statistics)
        return Done(task, seconds, seconds / len(task.images), (result,), runner_up, _classes(outputs))

    def _exact(self, task: ExactTask, batch: Batch) -> Done:
        pace = self.pace.beside(batch.inputs, len(task.images))
        begin = time.perf_counter()
        runs = list(task.plans)
        prepared = [self.exact.prepare(plan, task.ranges.get(run)) for run, plan in task.plans.items()]
        rows = [task.rows.get(run) for run in runs]
        results: list[TileResult] = []
        reference: tuple[Any, ...] = ()
        for measured in self.exact.run_tile(batch.inputs, prepared, rows):
            if measured.run < 0:
                reference = measured.outputs
                continue
            run, own = runs[measured.run], rows[measured.run]
            results.append(self._measured(run, batch, own, measured.outputs, reference, measured.seconds))
            self._advanced(run, len(results[-1].images))
        seconds = time.perf_counter() - begin
        self.pace.worked(seconds)
        return Done(task, seconds, pace, tuple(results))

    def _screen(self, task: ScreenTask, batch: Batch) -> Done:
        pace = self.pace.beside(batch.inputs, len(task.images))
        begin = time.perf_counter()
        setup = self.setup
        kind = task.decision, task.half
        if kind not in self._screens:
            self._screens[kind] = ScreenEngine(
                self.program,
                setup.calibration,
                noise_probes=setup.noise_probes,
                decision=task.decision,
                loss=setup.loss if task.decision else None,
                half=task.half,
                seed=setup.seed,
            )
        labels = _to(batch.labels, self.program.device)
        found = self._screens[kind].run_tile(batch.inputs, task.images, setup.candidates, labels)
        self._advanced(FLOAT, len(task.images))
        tile = ScreenTile(task.images, found.margins, found.e, found.kind)
        seconds = time.perf_counter() - begin
        self.pace.worked(seconds)
        return Done(task, seconds, pace, screened=tile, hidden=found.hidden, moved=found.moved)

    def _measured(
        self,
        run: int,
        batch: Batch,
        rows: np.ndarray | None,
        outputs: tuple[Any, ...],
        reference: tuple[Any, ...],
        seconds: float,
    ) -> TileResult:
        """Statistics of a run's ``outputs`` on ``rows`` of the batch, against the float ones of all of it."""
        setup = self.setup
        return tile_result(setup.network, setup.images, setup.metric, run, batch, rows, outputs, reference, seconds)

    def _advanced(self, run: int, images: int) -> None:
        if self.advance is not None:
            self.advance(run, images)


def tile_result(
    network: Network,
    images: Images,
    metric: Metric,
    run: int,
    batch: Batch,
    rows: np.ndarray | None,
    outputs: tuple[Any, ...],
    reference: tuple[Any, ...],
    seconds: float,
) -> TileResult:
    """What a run's ``outputs`` on ``rows`` of the batch are worth, against the float ones of all of it."""
    begin = time.perf_counter()
    device = output_tensors(outputs)[0].device
    indices, labels = batch.indices, _to(batch.labels, device)
    if rows is not None:
        kept = torch.from_numpy(rows).to(device)
        reference = tuple(value[kept] if isinstance(value, Tensor) and value.dim() else value for value in reference)
        indices, labels = indices[rows], None if labels is None else labels[kept]
    energy = squared_norms(outputs) if run == FLOAT else squared_norms(outputs, reference)
    whole, float_whole = network.unflatten(outputs), network.unflatten(reference)
    statistics = measure(metric, whole, labels, float_whole, lambda row: images.name(int(indices[row])))
    return TileResult(
        run=run,
        images=indices,
        energy=energy.cpu().numpy(),
        agreement=agreement(whole, float_whole),
        statistics=statistics,
        seconds=seconds + time.perf_counter() - begin,
    )


def check_finite(outputs: tuple[Any, ...] | list[Any], batch: Batch, images: Images) -> None:
    """Raise :class:`QuantopsyError` naming the first image for which ``outputs`` are not all finite."""
    for tensor in output_tensors(outputs):
        bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1).cpu().numpy()
        if bad.any():
            raise QuantopsyError(
                f"float network's output for {images.name(int(batch.indices[bad][0]))}",
                "has NaN or infinite values",
                "check the model and the preprocessing with that image",
            )


def _classes(outputs: tuple[Any, ...]) -> int | None:
    """Number of classes where the first output is scores of classes (B, C, ...)."""
    scores = outputs[0]
    return int(scores.shape[1]) if isinstance(scores, Tensor) and scores.dim() >= 2 else None


def _to(labels: Tensor | None, device: torch.device) -> Tensor | None:
    return None if labels is None else labels.to(device)
