"""The Python interface: ``analyze`` and the study that it leaves."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from quantopsy.analysis import analyze as _analyze
from quantopsy.analysis import diagnose as _diagnose
from quantopsy.analysis.progress import Progress
from quantopsy.analysis.results import Results
from quantopsy.analysis.settings import DEFAULT_BITS, Settings
from quantopsy.analysis.summary import summarise
from quantopsy.metrics import resolve_metric
from quantopsy.study import FILE, open_existing

if TYPE_CHECKING:
    import plotly.graph_objects as go

REPORT = "report.html"
CELLS = "cells.csv"


@dataclass(frozen=True)
class Study:
    """A finished (or stopped) analysis: its folder and its tables."""

    folder: Path
    results: Results

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


def analyze(
    model: Any,
    data: Any,
    *,
    metric: Any = None,
    bits: Sequence[int] = DEFAULT_BITS,
    out: str | Path | None = None,
    calibration: Any = None,
    preprocess: Any = None,
    skip_bad: bool = False,
    fresh: bool = False,
    loss: Any = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Study:
    """Quantize one layer at a time and measure what it does to the network.

    ``model``
        an ``nn.Module``, a ``.pt2`` file or ``package.module:callable``.
    ``data``
        a torch ``Dataset`` or ``DataLoader``, an iterable of tensors, tuples or dicts, a folder, or
        ``package.module:callable``; ``calibration`` likewise, for the ranges.
    ``metric``
        ``top1``, ``top5``, ``agreement``, a ``torchmetrics.Metric``, or a callable
        ``(outputs, labels) -> scores (B,)``.
    ``loss``
        a differentiable ``(outputs, labels) -> (B,)``; the screen then predicts its change.
    ``out``
        the study folder; without it the study lives in a temporary one.
    ``settings``
        fields of :class:`quantopsy.analysis.analyze.Settings`: ``mode``, ``budget``, ``scheme``,
        ``activation_bits``, ``samples``, ``layers``, ``device``, ...

    Raises :class:`QuantopsyError` for whatever the caller can mend.
    """
    temporary = out is None
    if out is None:
        out = tempfile.mkdtemp(prefix="quantopsy-")
    results = _analyze.analyze(
        model,
        data,
        out=out,
        metric=metric,
        calibration=calibration,
        preprocess=preprocess,
        skip_bad=skip_bad,
        fresh=fresh,
        loss=loss,
        settings=Settings(bits=tuple(bits), **settings),
        progress=progress,
    )
    study = Study(Path(out), results)
    if temporary:  # the folder lives as long as its study
        weakref.finalize(study, shutil.rmtree, out, ignore_errors=True)
    return finish(study)


def diagnose(folder: str | Path, *, progress: Progress | None = None, **settings: Any) -> Study:
    """Why layers of the study in ``folder`` hurt: causes, each tested by a counterfactual that is run.

    ``settings``: ``bits``, ``layers``, ``samples``, and what was given as Python objects, as
    :func:`quantopsy.analysis.diagnose.diagnose` takes them. The findings stay in the study.
    """
    return finish(Study(Path(folder), _diagnose.diagnose(folder, progress=progress, **settings)))


def finish(study: Study) -> Study:
    """Write ``cells.csv`` and ``report.html`` beside the store."""
    study.results.cells.to_csv(study.folder / CELLS, index=False)
    study.report()
    return study


def open_study(folder: str | Path, metric: Any = None) -> Study:
    """The study in ``folder``, from its store alone.

    ``metric`` is needed where the analysis was given a Python object as its metric.
    """
    with open_existing(Path(folder)) as store:
        labelled = store.noted("labelled", True)
        chosen = resolve_metric(metric if metric is not None else store.noted("metric"), labelled)
        return Study(Path(folder), summarise(store, chosen, complete=True))


__all__ = ["CELLS", "FILE", "REPORT", "Study", "analyze", "diagnose", "finish", "open_study"]
