"""The Python interface: ``analyze`` and the study that it leaves."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from quantopsy.analysis import analyze as _analyze
from quantopsy.analysis import check as _check
from quantopsy.analysis import comparison as _comparison
from quantopsy.analysis import diagnose as _diagnose
from quantopsy.analysis import measure_additivity as _measure_additivity
from quantopsy.analysis import scheme_table as _scheme_table
from quantopsy.analysis.calibration.result import CalibrationStudy
from quantopsy.analysis.calibration.study import Choices, study_calibration
from quantopsy.analysis.check import Checked
from quantopsy.analysis.comparison import Compared, Recorded
from quantopsy.analysis.gate.candidate import RecipeSource, Source, StudySource
from quantopsy.analysis.gate.judge import Judged, judge
from quantopsy.analysis.gate.rules import Rules
from quantopsy.analysis.progress import Progress
from quantopsy.analysis.results import Results
from quantopsy.analysis.scheme_table import SchemeTable
from quantopsy.analysis.settings import DEFAULT_BITS, Settings
from quantopsy.analysis.subject import Given
from quantopsy.analysis.summary import summarise
from quantopsy.core import QuantopsyError, names
from quantopsy.core.files import write_file
from quantopsy.core.recipe import RECIPE, Recipe
from quantopsy.metrics import Metric, resolve_metric
from quantopsy.study import FILE, Store, check_folder, open_existing

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from quantopsy.export.onnx.parity import Parity
    from quantopsy.export.onnx.recipe import Delivered
    from quantopsy.export.pt2.recipe import SavedProgram
    from quantopsy.remedy.applied import Applied
    from quantopsy.training.result import Trained

REPORT = "report.html"
CELLS = "cells.csv"
SELECTED = "selected.txt"
SCHEMES_REPORT = "schemes.html"
SCHEMES = "schemes.csv"


@dataclass(frozen=True)
class Study:
    """A finished (or stopped) analysis: its folder and its tables."""

    folder: Path
    results: Results

    def __repr__(self) -> str:
        from quantopsy.report.verdict import statements

        return f"<Study {self.folder}: {statements(self.results)[0]}>"

    def frame(self) -> pd.DataFrame:
        """A row per (layer, bits) cell, the columns of ``cells.csv``."""
        return self.results.cells.copy()

    def whole(self) -> pd.DataFrame:
        """A row per bit-width: every layer quantized, beside the sum of the single layers."""
        return self.results.whole.copy()

    def layers(self) -> pd.DataFrame:
        """A row per layer: name, operation, source line, shapes, MACs, parameters."""
        return self.results.layers.copy()

    def findings(self) -> pd.DataFrame:
        """A row per finding of :func:`diagnose`: layer, bits, cause, what its test removed, fixes."""
        columns = ["layer", "bits", "cause", "primary", "severity", "sites", "change", "removed", "fixes", "evidence"]
        return pd.DataFrame([finding.to_json() for finding in self.results.findings], columns=columns)

    def steps(self) -> pd.DataFrame:
        """A row per step of :func:`repair`: what was tried, whether it was kept and why, what it changed."""
        done = self.results.repaired
        steps = [] if done is None else [asdict(step) for step in done.steps]
        columns = ["words", "layers", "cost", "kept", "why", "change", "noise", "degradation", "seconds"]
        return pd.DataFrame(steps, columns=columns)

    def allocation(self) -> pd.DataFrame:
        """A row per layer with a weight: the bits that :func:`allocate` gave it; empty where it has not run."""
        done = self.results.allocated
        bits = {} if done is None else done.bits
        rows = [
            {"name": name, "bits": width, "activation_bits": done.activation_bits.get(name) if done else None}
            for name, width in bits.items()
        ]
        return pd.DataFrame(rows, columns=["name", "bits", "activation_bits"])

    def heatmap(self, view: Literal["degradation", "noise"] = "degradation") -> go.Figure:
        """Bit-widths by layers, as in Figure 3 of the layer-wise paper; ``view`` may be ``noise``."""
        from quantopsy.report.figures import heatmap

        return heatmap(self.results, view)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the self-contained page, to ``report.html`` of the folder where no ``path`` is given."""
        from quantopsy.report.page import write

        target = Path(path) if path is not None else self.folder / REPORT
        write(self.results, target)
        return target


@dataclass(frozen=True)
class Comparison:
    """Studies side by side."""

    compared: Compared

    def __repr__(self) -> str:
        return f"<Comparison: {' '.join(self.words()[:1])}>"

    def frame(self) -> pd.DataFrame:
        """A row per pair of partners: degradation, noise and SQNR before and after, their change and its verdict."""
        return pd.concat(
            [
                difference.layers.assign(
                    before=difference.before.label,
                    after=difference.after.label,
                    bits_before=difference.before.bits,
                    bits_after=difference.after.bits,
                )
                for difference in self.compared.differences
            ]
            or [pd.DataFrame(columns=[*_comparison.COLUMNS, "before", "after", "bits_before", "bits_after"])],
            ignore_index=True,
        )

    def words(self) -> list[str]:
        """What changed and what limits that, in sentences."""
        from quantopsy.report.compared.words import cautions, statements

        return [
            sentence
            for difference in self.compared.differences
            for sentence in (*statements(difference, self.compared), *cautions(difference, self.compared))
        ]

    def figure(self, view: Literal["degradation", "noise"] = "noise") -> go.Figure:
        """The profiles over one another: layers in order against degradation, or noise over signal."""
        from quantopsy.report.compared.profile import profile_chart
        from quantopsy.report.figures import chart

        return chart(profile_chart(self.compared, view))

    def report(self, path: str | Path) -> Path:
        """Write a self-contained page to ``path``."""
        from quantopsy.report.compared.page import write

        return write(self.compared, path)


@dataclass(frozen=True)
class Gate:
    """Whether a new network may replace an old one: a check for each rule."""

    judged: Judged

    def __repr__(self) -> str:
        return f"<Gate: {self.words()[0]}>"

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return self.judged.passed

    def frame(self) -> pd.DataFrame:
        """A row per check: rule, status, finding, limit, value with its interval, and the reason in words."""
        columns = ["name", "status", "finding", "limit", "value", "low", "high", "images", "reason"]
        rows = [
            {**check, "low": low, "high": high}
            for check in self.document()["checks"]
            for low, high in [check["interval"] or (None, None)]
        ]
        return pd.DataFrame(rows, columns=columns)

    def words(self) -> list[str]:
        """The outcome, every check that was judged, and what limits it, in sentences."""
        from quantopsy.report.gate.words import cautions, outcome, sentence

        judged = self.judged
        told = [f"{check.name} {check.status}: {sentence(check, judged)}" for check in judged.checks]
        return [outcome(judged), *told, *cautions(judged)]

    def document(self) -> dict[str, Any]:
        """Plain JSON values: what ``quantopsy gate --json`` prints."""
        from quantopsy.report.gate.document import gate_document

        return gate_document(self.judged)

    def junit(self, path: str | Path) -> Path:
        """Write JUnit XML to ``path``, a test case for each check."""
        from quantopsy.report.gate.junit import write_junit

        return write_junit(self.judged, path)


@dataclass(frozen=True)
class Schemes:
    """Whole networks under quantization schemes: a folder and its table."""

    folder: Path
    table: SchemeTable

    def __repr__(self) -> str:
        return f"<Schemes {self.folder}: {self.words()[0]}>"

    def frame(self) -> pd.DataFrame:
        """A row per scheme and bit-width, the columns of ``schemes.csv``."""
        return self.table.schemes.copy()

    def questions(self) -> pd.DataFrame:
        """What granularity, symmetry and activations do: paired differences between schemes, positive is worse."""
        return self.table.questions.copy()

    def words(self) -> list[str]:
        """The table in sentences."""
        from quantopsy.report.schemes import cautions, statements

        return [*statements(self.table), *cautions(self.table)]

    def figure(self) -> go.Figure:
        """The metric under every scheme, with its paired interval (practical approach, Figure 8)."""
        from quantopsy.report.figures import chart as drawn
        from quantopsy.report.schemes import chart

        return drawn(chart(self.table))

    def report(self, path: str | Path | None = None) -> Path:
        """Write the self-contained page, to ``schemes.html`` of the folder where no ``path`` is given."""
        from quantopsy.report.schemes import write

        return write(self.table, path if path is not None else self.folder / SCHEMES_REPORT)


@dataclass(frozen=True)
class Training:
    """A finished training: ``trained`` has its history, its recipe and what the network is worth."""

    trained: Trained

    def __repr__(self) -> str:
        return f"<Training {self.folder}: {self.words()[0]}>"

    @property
    def folder(self) -> Path:
        """Where ``network.pt2`` and ``recipe.json`` are."""
        return self.trained.folder

    def frame(self) -> pd.DataFrame:
        """A row per epoch, number 0 the network as it started: loss, metric on the validation images, mean bits."""
        columns = ["number", "step", "loss", "value", "within", "scales_kept", "frozen", "seconds"]
        rows = [{name: getattr(epoch, name) for name in columns} for epoch in self.trained.history.epochs]
        return pd.DataFrame(rows, columns=columns)

    def layers(self) -> pd.DataFrame:
        """A row per layer with a weight on a grid: bits and quantization error of the epoch that was kept."""
        kept = self.trained.history.epochs[self.trained.history.best]
        rows = [{"name": name, "bits": bits, "error": kept.errors[name]} for name, bits in kept.bits.items()]
        return pd.DataFrame(rows, columns=["name", "bits", "error"])

    def words(self) -> list[str]:
        """What the training came to and what limits that, in sentences."""
        from quantopsy.report.trained import cautions, statements

        return [*statements(self.trained), *cautions(self.trained)]

    def report(self, path: str | Path | None = None) -> Path:
        """Write the self-contained page, to ``report.html`` of the folder where no ``path`` is given."""
        from quantopsy.report.trained import write

        return write(self.trained, path if path is not None else self.folder / REPORT)


def check(
    model: Any,
    data: Any,
    *,
    metric: Any = None,
    bits: int | Sequence[int] = DEFAULT_BITS,
    preprocess: Any = None,
    skip_bad: bool = False,
    unfused: Sequence[str] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Checked:
    """Before an analysis, in seconds: what can be quantized, what the float network is worth, what a study will cost.

    Arguments as of :func:`analyze`; ``samples`` images are run, 64 unless told otherwise. Raises
    :class:`QuantopsyError` for whatever would stop an analysis before it begins.
    """
    _check_names(check, settings, Settings)
    given = Given(model, data, metric, None, preprocess, skip_bad, None, tuple(unfused))
    return _check.check(given, Settings(bits=_widths(bits), **settings), progress)


def analyze(
    model: Any,
    data: Any,
    *,
    metric: Any = None,
    bits: int | Sequence[int] = DEFAULT_BITS,
    out: str | Path | None = None,
    calibration: Any = None,
    preprocess: Any = None,
    skip_bad: bool = False,
    fresh: bool = False,
    loss: Any = None,
    unfused: Sequence[str] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Study:
    """Quantize one layer at a time and measure what it does to the network.

    ``model``
        an ``nn.Module``, an ``.onnx`` or ``.pt2`` file or ``package.module:callable``.
    ``data``
        a torch ``Dataset`` or ``DataLoader``, an iterable of tensors, tuples or dicts, a folder, or
        ``package.module:callable``; ``calibration`` likewise, for the ranges.
    ``metric``
        ``top1``, ``top5``, ``agreement``, a ``torchmetrics.Metric``, or a callable
        ``(outputs, labels) -> scores (B,)``.
    ``loss``
        a differentiable ``(outputs, labels) -> (B,)``; the screen then predicts its change.
    ``unfused``
        activation functions (``hardswish``, ``silu``, ...) that the runtime does not compute together with the layer
        in front: layers of their own, with values rounded in between.
    ``out``
        the study folder; without it the study lives in a temporary one.
    ``settings``
        fields of :class:`quantopsy.analysis.settings.Settings`: ``mode``, ``budget``, ``scheme``,
        ``activation_bits``, ``samples``, ``layers``, ``device``, ...

    Raises :class:`QuantopsyError` for whatever the caller can mend.
    """
    _check_names(analyze, settings, Settings)
    with _folder(out) as folder:
        results = _analyze.analyze(
            model,
            data,
            out=folder,
            metric=metric,
            calibration=calibration,
            preprocess=preprocess,
            skip_bad=skip_bad,
            fresh=fresh,
            loss=loss,
            unfused=unfused,
            settings=Settings(bits=_widths(bits), **settings),
            progress=progress,
        )
        study = finish(Study(folder, results))
    if out is None:
        _removed_with(study, folder)
    return study


def additivity(folder: str | Path, *, progress: Progress | None = None, **settings: Any) -> Study:
    """Whether the single layers of the study in ``folder`` add up: random subsets of them at a low bit-width.

    ``settings``: ``low``, ``high``, ``subsets``, ``samples``, ``seed`` and what was given as Python objects, as
    :func:`quantopsy.analysis.measure_additivity.measure_additivity` takes them.
    """
    _check_names(additivity, settings, _measure_additivity.measure_additivity, Given)
    results = _measure_additivity.measure_additivity(folder, progress=progress, **settings)
    return finish(Study(Path(folder), results))


def diagnose(folder: str | Path, *, progress: Progress | None = None, **settings: Any) -> Study:
    """Why layers of the study in ``folder`` hurt: causes, each tested by a counterfactual that is run.

    ``settings``: ``bits``, ``layers``, ``samples``, and what was given as Python objects, as
    :func:`quantopsy.analysis.diagnose.diagnose` takes them. The findings stay in the study.
    """
    _check_names(diagnose, settings, _diagnose.diagnose, Given)
    return finish(Study(Path(folder), _diagnose.diagnose(folder, progress=progress, **settings)))


def repair(folder: str | Path, *, progress: Progress | None = None, **settings: Any) -> Study:
    """Repair the network of the study in ``folder``: fixes cheapest first, kept where held-out images confirm them.

    ``settings``: ``bits``, ``max_drop``, ``target``, ``out``, ``budget``, ``effort``, and what was given as Python
    objects, as :func:`quantopsy.remedy.repair.repair` takes them. The recipe is written to ``recipe.json`` of the
    study, or to ``out``.
    """
    from quantopsy.remedy.repair import repair as run

    _check_names(repair, settings, run, Given)
    _before_a_recipe(folder, settings.get("out"), progress)
    return finish(Study(Path(folder), run(folder, progress=progress, **settings)))


def allocate(folder: str | Path, *, progress: Progress | None = None, **settings: Any) -> Study:
    """Mixed precision for the network of the study in ``folder``: bits layer by layer under limits, proven by running.

    ``settings``: ``size``, ``bitops``, ``latency`` and ``latency_limit``, at least one limit; ``bits``,
    ``activation_bits``, ``criterion``, ``out``, and what was given as Python objects, as
    :func:`quantopsy.remedy.allocation.allocate.allocate` takes them. The recipe is written to ``recipe.json`` of the
    study, or to ``out``.
    """
    from quantopsy.remedy.allocation.allocate import allocate as run

    _check_names(allocate, settings, run, Given)
    _before_a_recipe(folder, settings.get("out"), progress)
    return finish(Study(Path(folder), run(folder, progress=progress, **settings)))


def _before_a_recipe(folder: str | Path, out: str | Path | None, progress: Progress | None) -> None:
    """Say which recipe is where the next one is to be written; raise where it cannot be."""
    path = Path(folder) / RECIPE if out is None else Path(out)
    if out is not None:
        check_folder(path.parent)
    if path.is_dir():
        raise QuantopsyError(f"recipe {str(path)!r}", "it is a folder", f"give a file, such as {path / RECIPE}")
    if progress is not None and path.is_file():
        with suppress(QuantopsyError):  # of what is no recipe nothing is lost
            progress.say(f"{path}: replaces the recipe of {Recipe.load(path).source}; another --out keeps both")


def apply(
    recipe: str | Path | Recipe,
    model: Any = None,
    data: Any = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Applied:
    """The network that a recipe makes of ``model``, run on ``data``; ``module`` of what is returned runs it again.

    ``settings``: ``metric``, ``preprocess``, ``samples``, ``device``, as :func:`quantopsy.remedy.applied.apply` takes
    them. Without model and data those of the study that the recipe comes from are taken.
    """
    from quantopsy.remedy.applied import apply as run

    _check_names(apply, settings, run)
    return run(recipe, model, data, progress=progress, **settings)


def train(
    source: Any,
    data: Any,
    *,
    evaluation: Any = None,
    metric: Any = None,
    preprocess: Any = None,
    loss: Any = None,
    unfused: Sequence[str] = (),
    out: str | Path,
    fresh: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Training | None:
    """Quantization-aware training of a model, a study's network or a recipe's on ``data``.

    ``evaluation``: images that decide nothing, for the final figure. To ``out`` go ``network.pt2``, ``recipe.json``,
    ``training.json`` and ``report.html``; an interrupted training goes on there. ``loss``: a differentiable
    ``(outputs, labels) -> (B,)`` instead of the cross-entropy. ``unfused``: of a model, as :func:`analyze` has it.
    ``settings``: fields of
    :class:`quantopsy.training.settings.TrainingSettings`: ``method``, ``bits``, ``target``, ``epochs``, ... Under
    ``accelerate launch`` only the first process gets a result.
    """
    with _training():
        from quantopsy.training.settings import TrainingSettings
        from quantopsy.training.train import train as run
    _check_names(train, settings, TrainingSettings)
    chosen = TrainingSettings(**settings)
    check_folder(Path(out))
    done = run(
        source,
        data,
        evaluation=evaluation,
        metric=metric,
        preprocess=preprocess,
        loss=loss,
        unfused=unfused,
        out=out,
        fresh=fresh,
        settings=chosen,
        progress=progress,
    )
    return None if done is None else finish_training(Training(done))


def finish_training(training: Training) -> Training:
    """Write ``report.html`` beside the trained network."""
    training.report()
    return training


def export_onnx(
    recipe: str | Path | Recipe,
    out: str | Path = "model.onnx",
    model: Any = None,
    data: Any = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Delivered:
    """What a recipe makes of ``model`` as an ONNX QDQ file, run beside the simulation on ``data``, and timed.

    ``settings``: ``metric``, ``preprocess``, ``samples``, ``opset``, ``integer_convolutions``, ``threads``, ``also``,
    ``target``, as :func:`quantopsy.export.onnx.recipe.export_recipe` takes them. Without model and data those of the
    study that the recipe comes from are taken.
    """
    with _onnx():
        from quantopsy.export.onnx.recipe import export_recipe as run
    _check_names(export_onnx, settings, run)
    return run(recipe, out, model, data, progress=progress, **settings)


def export_program(
    recipe: str | Path | Recipe,
    out: str | Path = "model.pt2",
    model: Any = None,
    data: Any = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> SavedProgram:
    """What a recipe makes of ``model`` as a ``.pt2`` file of ``torch.export``, run as loaded beside the simulation.

    ``settings``: ``to`` (``pt2``, the simulation in ATen operators, or ``pt2e``, the operators of PT2E), ``metric``,
    ``preprocess``, ``samples``, as :func:`quantopsy.export.pt2.recipe.export_program` takes them. Without model and
    data those of the study that the recipe comes from are taken.
    """
    from quantopsy.export.pt2.recipe import export_program as run

    _check_names(export_program, settings, run)
    return run(recipe, out, model, data, progress=progress, **settings)


def parity(
    recipe: str | Path | Recipe,
    files: Sequence[str | Path] = (),
    model: Any = None,
    data: Any = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Parity:
    """A recipe's network in float, simulated, in integer arithmetic and as ``files`` give it, on the same images.

    ``settings``: ``metric``, ``preprocess``, ``samples``, ``integers``, ``threads``, ``also``, as
    :func:`quantopsy.export.onnx.parity.parity` takes them. Without files what :func:`export_onnx` would write.
    """
    with _onnx():
        from quantopsy.export.onnx.parity import parity as run
    _check_names(parity, settings, run)
    return run(recipe, files, model, data, progress=progress, **settings)


@contextmanager
def _training() -> Iterator[None]:
    """What needs accelerate is imported in here."""
    try:
        yield
    except ImportError as error:
        raise QuantopsyError(
            "training", f"accelerate cannot be imported ({error})", 'pip install "quantopsy[train]"'
        ) from error


@contextmanager
def _onnx() -> Iterator[None]:
    """What needs ONNX is imported in here."""
    try:
        yield
    except ImportError as error:
        raise QuantopsyError("ONNX", f"it cannot be imported ({error})", 'pip install "quantopsy[onnx]"') from error


def check_calibration(
    model: Any,
    data: Any,
    calibration: Any,
    *,
    metric: Any = None,
    bits: int = 8,
    sizes: Sequence[int] | None = None,
    draws: int = 5,
    select: int | None = None,
    preprocess: Any = None,
    skip_bad: bool = False,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> CalibrationStudy:
    """Whether the images of ``calibration`` are enough, and the right ones, to estimate ranges on.

    ``model``, ``data`` (held out: what the network is for), ``metric``, ``preprocess`` as :func:`analyze` takes them.
    ``sizes`` and ``draws``: subsets on which the metric is run; without sizes those that decide. ``select``: so many
    images that stand for all. ``out``: a folder for the page, the list of selected images and what was run, so that it
    need not be run again. ``settings`` as for :func:`analyze`: ``scheme``, ``activation_bits``, ``changes``,
    ``samples``, ``calibration_samples``, ``tolerance``, ``seed``, ...

    Raises :class:`QuantopsyError` for whatever the caller can mend.
    """
    _check_names(check_calibration, settings, Settings)
    given = Given(model, data, metric, calibration, preprocess, skip_bad)
    choices = Choices(None if sizes is None else tuple(sizes), draws, select)
    chosen = Settings(bits=(bits,), mode="exact", **settings)
    if out is not None:
        check_folder(Path(out))
    with tempfile.TemporaryDirectory(prefix="quantopsy-") as temporary:
        folder = Path(temporary if out is None else out)
        study = study_calibration(given, chosen, choices, out=folder, fresh=fresh, progress=progress)
        return study if out is None else _finish_calibration(study, folder)


def _finish_calibration(study: CalibrationStudy, folder: Path) -> CalibrationStudy:
    """Write ``report.html``, and ``selected.txt`` where images were selected."""
    from quantopsy.report.calibration.page import write

    write(study, folder / REPORT)
    if study.selection is not None:
        write_file(folder / SELECTED, "\n".join(study.selection.entries) + "\n")
    return study


def finish(study: Study) -> Study:
    """Write ``cells.csv`` and ``report.html`` beside the store."""
    write_file(study.folder / CELLS, study.results.cells.to_csv(index=False), "table")
    study.report()
    return study


def open_study(folder: str | Path, metric: Any = None) -> Study:
    """The study in ``folder``, from its store alone.

    ``metric`` is needed where the analysis was given a Python object as its metric.
    """
    with _analysis(Path(folder)) as store:
        return Study(Path(folder), summarise(store, _metric(store, metric), complete=True))


def _analysis(folder: Path) -> Store:
    """The store of an analysis; raises for what else a folder may hold."""
    store = open_existing(folder)
    if store.noted("cells") is None:
        store.close()
        raise QuantopsyError(
            f"study {str(folder)!r}",
            "it holds no layer-wise analysis",
            "give the folder that `quantopsy analyze` wrote",
        )
    return store


def _metric(store: Store, metric: Any) -> Metric:
    """The metric that a study was made with, ``metric`` where that was a Python object."""
    study = f"study {str(store.path.parent)!r}"
    given = store.noted("request", {"given": {}})["given"].get("metric") if metric is None else metric
    if isinstance(given, Mapping):
        raise QuantopsyError(study, f"its metric was a Python object ({given['object']})", "give metric= in Python")
    found = resolve_metric(given, store.noted("labelled", True))
    name = store.noted("identity", {}).get("metric", found.name)
    if found.name != name:
        raise QuantopsyError(study, f"its metric is {name}, not {found.name}", "give that one, or leave it out")
    return found


def compare(
    *studies: str | Path | Study,
    bits: int | Sequence[int] | None = None,
    metric: Any = None,
    level: float | None = None,
    tolerance: float | None = None,
) -> Comparison:
    """Hold studies against the first of them, or the bit-widths of a single one against its finest.

    From the stores alone, nothing is run. Layers are matched by name, else by operation, shape and order.
    Over the images that two studies have in common differences are paired image by image. ``metric`` is
    needed where an analysis was given a Python object as its metric; ``level`` and ``tolerance`` are the
    first study's where they are not given. Raises :class:`QuantopsyError` for what is no study, or for bits
    that a study lacks.
    """
    folders = [study.folder if isinstance(study, Study) else Path(study) for study in studies]
    widths = (bits,) if isinstance(bits, int) else bits
    if not folders:
        raise QuantopsyError("compare", "no study was given", "give the folders of two analyses or more")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise QuantopsyError("compare", "a study was given twice", "give each once; one alone compares its bit-widths")
    recorded = [_recorded(folder, label, metric) for folder, label in zip(folders, _labels(folders), strict=True)]
    return Comparison(_comparison.compare(recorded, widths, level=level, tolerance=tolerance))


def gate(
    old: str | Path | Study | Recipe,
    new: str | Path | Study | Recipe,
    rules: str | Path | Mapping[str, Any] | Rules | None = None,
    *,
    metric: Any = None,
    **changed: Any,
) -> Gate:
    """Whether ``new`` may replace ``old``, each the folder of a study or a recipe; from what they hold, nothing is run.

    ``rules``: a TOML file, a mapping, or :class:`quantopsy.analysis.gate.rules.Rules`; ``changed`` replaces single ones
    of them (``max_drop=1.0``). ``metric`` is needed where an analysis was given a Python object as its metric. Raises
    :class:`QuantopsyError` for what is neither study nor recipe, and for rules that are none.
    """
    chosen = _rules(rules)
    if changed:
        chosen = Rules.from_mapping({**{f.name: getattr(chosen, f.name) for f in fields(Rules)}, **changed})
    given = [side.folder if isinstance(side, Study) else side for side in (old, new)]
    labels = iter(_labels([Path(side) for side in given if not isinstance(side, Recipe)]))
    names = [
        role if isinstance(side, Recipe) else next(labels) for role, side in zip(("old", "new"), given, strict=True)
    ]
    first, second = (_source(side, name, metric) for side, name in zip(given, names, strict=True))
    return Gate(judge(first, second, chosen))


def _rules(rules: str | Path | Mapping[str, Any] | Rules | None) -> Rules:
    if isinstance(rules, Rules):
        return rules
    if rules is None:
        return Rules()
    return Rules.from_mapping(rules) if isinstance(rules, Mapping) else Rules.read(rules)


def _source(given: str | Path | Recipe, label: str, metric: Any) -> Source:
    if isinstance(given, Recipe):
        return RecipeSource(given, label, _proven_metric(given, metric))
    path = Path(given)
    if path.is_file():
        return _source(Recipe.load(path), label, metric)
    with _analysis(path) as store:
        return StudySource.of(store, _metric(store, metric), label)


def _proven_metric(recipe: Recipe, metric: Any) -> Metric | None:
    """The metric of a recipe's proof; None where it was a Python object that nobody gives."""
    if recipe.expected is None:
        return None
    noted = recipe.provenance.get("given", {}).get("metric") if metric is None else metric
    if isinstance(noted, Mapping):
        return None
    found = resolve_metric(recipe.expected.metric if noted is None else noted, has_labels=True)
    return found if found.name == recipe.expected.metric else None


def _recorded(folder: Path, label: str, metric: Any) -> Recorded:
    with _analysis(folder) as store:
        return Recorded.of(store, _metric(store, metric), label)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, whole), default=0) + 1):
        labels = ["/".join(parts[-length:]) for parts in whole]
        if len(set(labels)) == len(set(whole)):
            return labels
    return []


def schemes(
    model: Any,
    data: Any,
    *,
    metric: Any = None,
    bits: int | Sequence[int] = 8,
    out: str | Path | None = None,
    calibration: Any = None,
    preprocess: Any = None,
    skip_bad: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Schemes:
    """Evaluate the whole network under each scheme of the practical approach's Table 1, against float.

    Arguments as of :func:`analyze`. Calibrates once; all schemes run on the same images, so that their
    differences are paired. Raises :class:`QuantopsyError` for whatever the caller can mend.
    """
    _check_names(schemes, settings, Settings)
    with _folder(out) as folder:
        table = _scheme_table.evaluate(
            Given(model, data, metric, calibration, preprocess, skip_bad),
            Settings(bits=_widths(bits), **settings),
            out=folder,
            fresh=fresh,
            progress=progress,
        )
        found = finish_schemes(Schemes(folder, table))
    if out is None:
        _removed_with(found, folder)
    return found


def finish_schemes(found: Schemes) -> Schemes:
    """Write ``schemes.csv`` and ``schemes.html`` beside the store."""
    write_file(found.folder / SCHEMES, found.table.schemes.to_csv(index=False), "table")
    found.report()
    return found


def _check_names(public: Callable[..., Any], given: Iterable[str], *behind: Callable[..., Any]) -> None:
    """Raise :class:`QuantopsyError` for an argument that neither ``public`` nor those ``behind`` it have by name."""
    parameters = [parameter for function in (public, *behind) for parameter in signature(function).parameters.values()]
    known = sorted({parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD})
    for name in given:
        if name not in known:
            raise names.unknown(name, known, f"argument of quantopsy.{public.__name__}")


def _widths(bits: int | Sequence[int]) -> tuple[int, ...]:
    return (bits,) if isinstance(bits, int) else tuple(bits)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """``out``, or a temporary folder, which does not outlive an error."""
    if out is not None:
        check_folder(Path(out))
        yield Path(out)
        return
    folder = Path(tempfile.mkdtemp(prefix="quantopsy-"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _removed_with(owner: object, folder: Path) -> None:
    """A temporary ``folder`` lives as long as what shows it."""
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)


__all__ = [
    "CELLS",
    "FILE",
    "REPORT",
    "SCHEMES",
    "SCHEMES_REPORT",
    "SELECTED",
    "CalibrationStudy",
    "Checked",
    "Comparison",
    "Gate",
    "Schemes",
    "Study",
    "Training",
    "additivity",
    "allocate",
    "analyze",
    "apply",
    "check",
    "check_calibration",
    "compare",
    "diagnose",
    "export_onnx",
    "export_program",
    "finish",
    "finish_schemes",
    "gate",
    "open_study",
    "parity",
    "repair",
    "schemes",
    "train",
]
