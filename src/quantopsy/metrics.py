"""Metrics as two functions: statistics of every single image, and the value of any weighting of images.

Per-image statistics are what a study stores. Intervals, additivity, subsets and importance-weighted
estimates are then weightings of stored rows, and no network runs again.

Letters: B images of a batch, n images, K statistics per image, R weightings, C classes.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.utils._pytree import tree_leaves

from quantopsy.core import QuantopsyError
from quantopsy.core.imports import called, imported
from quantopsy.core.names import unknown

if TYPE_CHECKING:
    import torchmetrics

BUILT_IN = ("top1", "top5", "agreement", "miou")

_WITH_IGNORE = re.compile(r"(top1|top5|miou):ignore=(-?\d+)")
_CALLABLE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")


class Metric(ABC):
    """A figure of merit of a network on a set of images."""

    name: str
    unit: str = ""  # "points" where the value is a percentage
    needs_labels: bool = False
    higher_is_better: bool = True
    linear: bool = False  # the value is ``scale`` times the weighted mean of one column
    scale: float = 1.0
    class_labels: bool = False  # labels (B,) are class indices and must be below C

    @abstractmethod
    def per_image(self, outputs: Any, labels: Tensor | None, float_outputs: Any) -> Tensor:
        """Statistics (B, K), float64, of every image on its own.

        ``outputs`` is whatever the network returned, its first tensor being the logits (B, C, ...);
        ``float_outputs`` is the same of the float network.
        """

    @abstractmethod
    def values(self, statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Values (R,) of images with ``statistics`` (n, K) under non-negative ``weights`` (R, n).

        An integer weight counts an image that often, which is what a bootstrap asks for.
        """

    @final
    @property
    def sign(self) -> float:
        """1 where higher is better, else -1: times a value, what is to be high."""
        return 1.0 if self.higher_is_better else -1.0

    @final
    def value(self, statistics: np.ndarray, weights: np.ndarray | None = None) -> float:
        """The value of images with ``statistics`` (n, K), each counting as ``weights`` (n,) says, or once.

        Raises :class:`QuantopsyError` where it is undefined.
        """
        rows = np.ones((1, len(statistics))) if weights is None else np.asarray(weights, dtype=float)[None]
        value = float(self.values(statistics, rows)[0])
        if not np.isfinite(value):
            raise QuantopsyError(
                f"metric {self.name!r}",
                f"its value over {len(statistics)} images is {value}",
                "give more images, or another metric",
            )
        return value


def resolve_metric(metric: Any, has_labels: bool) -> Metric:
    """The metric that a user named or gave.

    ``None`` is ``top1`` with labels and ``agreement`` without. Else a built-in name (``top1``, ``top5``,
    ``agreement``, ``miou``; ``top1:ignore=11`` leaves pixels of label 11 out), a :class:`Metric`, a
    ``torchmetrics.Metric``, a function ``f(outputs, labels)`` that returns a score (B,) per image (higher is better,
    unless ``f.higher_is_better`` is False), or ``package.module:callable`` naming one of these or a function without
    arguments that returns one.

    Raises :class:`QuantopsyError` for anything else, and for a metric that needs labels without any.
    """
    found = _resolve(("top1" if has_labels else "agreement") if metric is None else metric)
    if found.needs_labels and not has_labels:
        raise QuantopsyError(
            f"metric {found.name!r}", "it needs labels and the data has none", "use agreement, or add labels"
        )
    return found


def measure(
    metric: Metric,
    outputs: Any,
    labels: Tensor | None,
    float_outputs: Any,
    image_name: Callable[[int], str] = "image {}".format,
) -> np.ndarray:
    """Statistics (B, K), float64, by :meth:`Metric.per_image`, with everything checked that can go wrong.

    ``image_name`` gives the name of the batch's row for errors. Raises :class:`QuantopsyError` for
    labels that are no class of the network, a metric that fails, and statistics of a wrong shape or
    not finite.
    """
    if metric.class_labels and labels is not None:
        _check_labels(labels, _classes(logits(outputs), metric.name), image_name)
    try:
        statistics = metric.per_image(outputs, labels, float_outputs)
    except QuantopsyError:
        raise
    except Exception as error:
        raise _failed(metric, error) from error
    count = len(logits(outputs))
    if not isinstance(statistics, Tensor) or statistics.ndim != 2 or len(statistics) != count:
        got = tuple(statistics.shape) if isinstance(statistics, Tensor) else type(statistics).__name__
        raise QuantopsyError(
            f"metric {metric.name!r}", f"it gave {got} for {count} images", "return one score per image, (B,)"
        )
    rows = statistics.detach().cpu().double().numpy()
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise QuantopsyError(
            f"metric {metric.name!r}",
            f"it is NaN or infinite for {image_name(int(bad[0]))}",
            "leave that image out or mend the metric (an image of ignored labels only has no top1)",
        )
    return rows


def logits(outputs: Any) -> Tensor:
    """The first tensor of what a network returned."""
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            return leaf
    raise QuantopsyError("network", "it returned no tensor", "return the tensor that the metric is computed from")


def agreement(outputs: Any, reference: Any) -> np.ndarray:
    """(B,) share of decisions that equal those of ``reference``; NaN where the outputs are no scores."""
    scores = logits(reference)
    if not scores.is_floating_point() or scores.dim() < 2 or scores.shape[1] < 2:
        return np.full(len(scores), np.nan)
    return Agreement().per_image(outputs, None, reference)[:, 0].cpu().numpy()


def chance_level(metric: Metric, classes: int) -> float | None:
    """The value that guessing among ``classes`` gets, in the metric's own unit; ``None`` where unknown."""
    return metric.scale * min(metric.k / classes, 1.0) if isinstance(metric, TopK) else None


def is_at_chance(metric: Metric, statistics: np.ndarray, classes: int, level: float = 0.95) -> bool:
    """Whether statistics (n, 1) of the float network are not significantly better than guessing.

    One-sided exact binomial test of the number correct against :func:`chance_level`; False for a
    metric without a chance level and for label maps, whose pixels are not independent.
    """
    chance = chance_level(metric, classes)
    if chance is None or not np.isin(statistics, (0.0, 1.0)).all():
        return False
    correct = int(statistics.sum())
    test = binomtest(correct, len(statistics), chance / metric.scale, alternative="greater")
    return bool(test.pvalue > 1.0 - level)


class _MeanMetric(Metric):
    """``scale`` times the weighted mean of one score per image."""

    linear = True

    @final
    def values(self, statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return self.scale * (weights @ statistics[:, 0]) / weights.sum(axis=1)


@final
class TopK(_MeanMetric):
    """Percentage of images whose label is among the ``k`` largest logits.

    Of label maps, the mean over images of the percentage of pixels, leaving out pixels whose label
    is ``ignore`` or no class at all.
    """

    unit, scale, needs_labels, class_labels = "points", 100.0, True, True

    def __init__(self, k: int, ignore: int | None = None) -> None:
        self.name = f"top{k}" + ("" if ignore is None else f":ignore={ignore}")
        self.k, self.ignore = k, ignore

    def per_image(self, outputs: Any, labels: Tensor | None, float_outputs: Any) -> Tensor:
        del float_outputs
        scores = logits(outputs)
        classes = _classes(scores, self.name)
        if self.k >= classes:
            raise QuantopsyError(
                f"metric {self.name!r}", f"always right on a network with {classes} classes", "use top1"
            )
        target = _fitting(labels, scores, self.name)
        hit = (scores.topk(self.k, dim=1).indices == target.unsqueeze(1)).any(dim=1)
        if scores.ndim == 2:
            return hit.double().unsqueeze(1)
        valid = _valid(target, classes, self.ignore).flatten(1)
        return ((hit.flatten(1) & valid).sum(1).double() / valid.sum(1)).unsqueeze(1)


@final
class Agreement(_MeanMetric):
    """Percentage of images (of pixels, for maps, averaged over images) decided as by the float network."""

    name, unit, scale = "agreement", "points", 100.0

    def per_image(self, outputs: Any, labels: Tensor | None, float_outputs: Any) -> Tensor:
        del labels
        scores, reference = logits(outputs), logits(float_outputs)
        _classes(scores, self.name)
        same = scores.argmax(dim=1) == reference.argmax(dim=1)
        return same.double().reshape(len(same), -1).mean(dim=1, keepdim=True)


@final
class MeanIoU(Metric):
    """Mean over classes of intersection over union, in percent, over all pixels of all images together.

    Pixels whose label is ``ignore`` or no class are left out, and so are the class ``ignore`` and
    classes that neither labels nor predictions hold. Statistics: intersections (C), unions (C).
    """

    unit, needs_labels = "points", True

    def __init__(self, ignore: int | None = None) -> None:
        self.name = "miou" + ("" if ignore is None else f":ignore={ignore}")
        self.ignore = ignore

    def per_image(self, outputs: Any, labels: Tensor | None, float_outputs: Any) -> Tensor:
        del float_outputs
        scores = logits(outputs)
        classes = _classes(scores, self.name)
        if scores.ndim < 3:
            raise QuantopsyError(f"metric {self.name!r}", "the network's output is no map", "use top1")
        target = _fitting(labels, scores, self.name).flatten(1)
        decided = scores.argmax(dim=1).flatten(1)
        valid = _valid(target, classes, self.ignore)
        # One bincount for the batch: image, then class, and a last bin for what does not count.
        row = torch.arange(len(target), device=target.device).unsqueeze(1) * classes

        def count(which: Tensor, mask: Tensor) -> Tensor:
            bins = torch.where(mask, which + row, len(target) * classes).flatten()
            return torch.bincount(bins, minlength=len(target) * classes + 1)[:-1].reshape(-1, classes)

        both = count(target, valid & (decided == target))
        union = count(target, valid) + count(decided, valid) - both
        return torch.cat([both, union], dim=1).double()

    def values(self, statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
        both, union = np.split(weights @ statistics, 2, axis=1)
        present = union > 0
        if self.ignore is not None and 0 <= self.ignore < present.shape[1]:
            present[:, self.ignore] = False
        ratio = np.divide(both, union, out=np.zeros_like(both), where=present)
        return 100.0 * ratio.sum(axis=1) / np.maximum(present.sum(axis=1), 1)


@final
class PerImageScore(_MeanMetric):
    """Mean of what ``score(outputs, labels)`` returns for every image, (B,); higher is better unless the function has
    an attribute ``higher_is_better`` that is False, as torchmetrics have it."""

    def __init__(self, score: Callable[[Any, Tensor | None], Any], name: str) -> None:
        self.name, self._score = name, score
        self.higher_is_better = getattr(score, "higher_is_better", None) is not False

    def per_image(self, outputs: Any, labels: Tensor | None, float_outputs: Any) -> Tensor:
        del float_outputs
        scores = torch.as_tensor(self._score(outputs, labels))
        return scores.double().unsqueeze(1) if scores.ndim == 1 else scores


_Merge = Literal["sum", "mean", "max", "min", "cat"]

# By name: importing torchmetrics takes a second, which whoever gives one of its metrics has paid for.
_MERGES: dict[str, _Merge] = {
    "dim_zero_sum": "sum",
    "dim_zero_mean": "mean",
    "dim_zero_max": "max",
    "dim_zero_min": "min",
    "dim_zero_cat": "cat",
}


@final
class TorchMetric(Metric):
    """A ``torchmetrics.Metric`` that is updated with (logits, labels).

    A row of statistics is the state after a single image, each of its tensors behind a header
    (dtype, shape), so that rows read from a study can be merged without having seen an image. States
    merge as torchmetrics merges them across processes: sums, means and extremes under any weights,
    concatenations by repeating rows, which takes whole weights. A metric whose states merge in
    another way is refused.
    """

    needs_labels = True

    def __init__(self, metric: torchmetrics.Metric) -> None:
        self.name = type(metric).__name__
        self.higher_is_better = metric.higher_is_better is not False
        self._metric = metric.clone().cpu()
        self._metric.reset()
        # Private, but torchmetrics has no public way to ask how a state merges.
        self._merges = {
            state: _MERGES.get(getattr(reduction, "__name__", ""))
            for state, reduction in self._metric._reductions.items()
        }
        if not self._merges:
            raise QuantopsyError(
                f"metric {self.name!r}",
                "it keeps no state of its own, so images cannot be merged",
                "give the metric that it wraps",
            )
        for state, merge in self._merges.items():
            if merge is None and not isinstance(getattr(self._metric, state), list):
                raise QuantopsyError(
                    f"metric {self.name!r}",
                    f"its state {state!r} is no sum, mean, extreme or concatenation over images",
                    "give a function f(outputs, labels) that scores every image",
                )

    def per_image(self, outputs: Any, labels: Tensor | None, float_outputs: Any) -> Tensor:
        del float_outputs
        assert labels is not None, "resolve_metric refuses data without labels"
        scores, labels = logits(outputs).detach().cpu(), labels.cpu()
        rows = [self._row(scores[i : i + 1], labels[i : i + 1]) for i in range(len(scores))]
        if len({row.shape for row in rows}) > 1:
            raise self._ragged()
        return torch.stack(rows)

    def values(self, statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
        layout = _read_layout(statistics[0], list(self._merges))
        described = np.ones(statistics.shape[1], dtype=bool)
        for part in layout:
            described[part.data] = False
        if (statistics[:, described] != statistics[0, described]).any():
            raise self._ragged()
        try:
            return np.array([self._compute(statistics, row, layout) for row in weights])
        finally:
            self._metric.reset()  # once: every value begins with one, and it takes as long as a value does

    def _row(self, scores: Tensor, labels: Tensor) -> Tensor:
        self._metric.reset()
        self._metric.update(scores, labels)
        return torch.cat([_pack(getattr(self._metric, name)) for name in self._merges])

    def _compute(self, statistics: np.ndarray, weights: np.ndarray, layout: list[_Part]) -> float:
        self._metric.reset()
        for name, merge in self._merges.items():
            parts = [part for part in layout if part.state == name]
            setattr(self._metric, name, self._merge(statistics, weights, parts, merge))
        self._metric._update_count = 1  # else compute() warns that nothing was seen
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a resample may well lack a class
                value = self._metric.compute()
        except Exception as error:
            raise _failed(self, error) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise QuantopsyError(
                f"metric {self.name!r}", "its value is not one number", "make it one, such as average='macro'"
            )
        return float(value)

    def _merge(
        self, statistics: np.ndarray, weights: np.ndarray, parts: list[_Part], merge: _Merge | None
    ) -> Tensor | list[Tensor]:
        if parts and not parts[0].in_list and merge is not None and merge != "cat":
            (part,) = parts
            columns = statistics[:, part.data]
            if merge in ("max", "min"):
                present = columns[weights > 0]
                return part.restore(present.max(axis=0) if merge == "max" else present.min(axis=0))
            total = weights @ columns
            return part.restore(total / weights.sum() if merge == "mean" else total)
        counts = weights.astype(np.int64)
        if (counts != weights).any():
            raise QuantopsyError(
                f"metric {self.name!r}", "its state cannot be weighted by fractions", "evaluate all images"
            )
        rows = np.repeat(statistics, counts, axis=0)
        if merge != "cat":  # a list that torchmetrics does not reduce: an entry per update
            return [part.restore(row[part.data]) for row in rows for part in parts]
        stacked = [part.restore(rows[:, part.data]) for part in parts]
        joined = [tensor.flatten(0, 1) if part.shape else tensor for part, tensor in zip(parts, stacked, strict=True)]
        return joined if not parts or parts[0].in_list else joined[0]

    def _ragged(self) -> QuantopsyError:
        return QuantopsyError(
            f"metric {self.name!r}",
            "its state differs in size between images",
            "give a function f(outputs, labels) that scores every image",
        )


_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.bool,
    torch.uint8,
)


class _Part:
    """Where one tensor of a state lies in a row: dtype, ndim, sizes, and from there ``data``."""

    def __init__(self, state: str, in_list: bool, row: np.ndarray, start: int) -> None:
        self.state, self.in_list = state, in_list
        self.dtype = _DTYPES[int(row[start])]
        ndim = int(row[start + 1])
        self.shape = tuple(int(size) for size in row[start + 2 : start + 2 + ndim])
        begin = start + 2 + ndim
        self.data = slice(begin, begin + int(np.prod(self.shape)))

    def restore(self, values: np.ndarray) -> Tensor:
        """The tensor (..., *shape) of values (..., size).

        In its own dtype, unless fractional weights made an integer state fractional.
        """
        shape = (*values.shape[:-1], *self.shape)
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).reshape(shape)
        whole = self.dtype.is_floating_point or bool((tensor == tensor.round()).all())
        return tensor.to(self.dtype) if whole else tensor


def _pack(state: Any) -> Tensor:
    """(-1, tensor) for a state that is a tensor, (length, tensor, ...) for one that is a list of them."""
    tensors = state if isinstance(state, list) else [state]
    packed = [torch.tensor([len(tensors) if isinstance(state, list) else -1], dtype=torch.float64)]
    for tensor in tensors:
        header = [_DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
        packed += [torch.tensor(header, dtype=torch.float64), tensor.detach().double().flatten()]
    return torch.cat(packed)


def _read_layout(row: np.ndarray, states: list[str]) -> list[_Part]:
    layout: list[_Part] = []
    start = 0
    for state in states:
        length = int(row[start])
        start += 1
        for _ in range(1 if length < 0 else length):
            layout.append(_Part(state, length >= 0, row, start))
            start = layout[-1].data.stop
    return layout


def _resolve(metric: Any) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return _named(metric)
    # A torchmetrics.Metric can only exist where torchmetrics is imported, and importing it is slow.
    known = sys.modules.get("torchmetrics")
    if known is not None and isinstance(metric, known.Metric):
        return TorchMetric(metric)
    if isinstance(metric, type) and issubclass(metric, (Metric, known.Metric) if known else Metric):
        return _resolve(metric())
    if callable(metric):
        return PerImageScore(metric, getattr(metric, "__name__", type(metric).__name__))
    raise QuantopsyError(
        f"metric {metric!r}",
        f"a {type(metric).__name__} is no metric",
        f"give {', '.join(BUILT_IN)}, a torchmetrics.Metric or a function f(outputs, labels)",
    )


def _named(text: str) -> Metric:
    if text in ("top1", "top5"):
        return TopK(int(text[3:]))
    if text == "agreement":
        return Agreement()
    if text == "miou":
        return MeanIoU()
    if match := _WITH_IGNORE.fullmatch(text):
        ignore = int(match[2])
        return MeanIoU(ignore) if match[1] == "miou" else TopK(int(match[1][3:]), ignore)
    if _CALLABLE.fullmatch(text):
        return _imported(text)
    raise unknown(text, BUILT_IN, "metric")


def _imported(text: str) -> Metric:
    target = imported(text, "metric")
    if inspect.isfunction(target) and not inspect.signature(target).parameters:
        target = called(text, "metric", "a metric")
    return _resolve(target)


def _classes(scores: Tensor, name: str) -> int:
    if scores.ndim < 2 or scores.shape[1] < 2:
        raise QuantopsyError(
            f"metric {name!r}",
            f"it compares classes and the network's output has shape {tuple(scores.shape)}",
            "give a function f(outputs, labels) as the metric",
        )
    return int(scores.shape[1])


def _fitting(labels: Tensor | None, scores: Tensor, name: str) -> Tensor:
    """The labels (B, ...), on the device of the logits (B, C, ...) that they are for."""
    expected = (scores.shape[0], *scores.shape[2:])
    if labels is None or labels.is_floating_point() or tuple(labels.shape) != expected:
        got = "none" if labels is None else f"{str(labels.dtype)[6:]} {tuple(labels.shape)}"
        raise QuantopsyError(
            f"metric {name!r}",
            f"it needs integer labels of shape {expected} for an output of {tuple(scores.shape)}, not {got}",
            "give class indices, or another metric",
        )
    return labels.to(scores.device)


def _valid(target: Tensor, classes: int, ignore: int | None) -> Tensor:
    valid = (target >= 0) & (target < classes)
    return valid if ignore is None else valid & (target != ignore)


def _check_labels(labels: Tensor, classes: int, image_name: Callable[[int], str]) -> None:
    if labels.ndim != 1 or labels.is_floating_point():
        return  # a map's other values mean "ignore"; other kinds are refused where they are used
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise QuantopsyError(
            image_name(row),
            f"its label is {int(labels[row])} and the network has classes 0 to {classes - 1}",
            "mend the labels (they count from 0, in the network's own order)",
        )


def _failed(metric: Metric, error: Exception) -> QuantopsyError:
    return QuantopsyError(
        f"metric {metric.name!r}",
        f"it failed ({type(error).__name__}: {error})",
        "see that it fits the network's output and the labels",
    )
