"""A training in words, as pictures and as a page: what it came to, bits, levels and errors of the layers over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as Lines

from quantopsy.core.recipe import Expected
from quantopsy.remedy.allocation.costs import amount
from quantopsy.report import sheet
from quantopsy.report.chart import Axis, Chart, Group, Line, Point, Section, Table
from quantopsy.report.palette import Tone
from quantopsy.report.sheet import Sheet
from quantopsy.report.terminal import bullets, print_part
from quantopsy.report.wording import Writer, count, duration, fixed, percent, significant, with_interval
from quantopsy.training.history import Epoch
from quantopsy.training.result import Levels, Trained

_SHOWN = 6
"""Layers whose levels are drawn, and whose lines stand out over time."""

_FEW = 32
"""Levels before training that can still be told apart in a picture."""

_EVEN = 1e-3
"""Spread of the distances of levels, over their mean, up to which they are evenly spaced: float32 leaves no less."""

_KINDS = {"depthwise": "worse", "pointwise": "accent"}
"""Colours of the kinds of layers that DDQ's Figure 3 tells apart; all others are muted."""


def statements(done: Trained) -> list[str]:
    """What the training came to, bits, and what guards did."""
    expected = done.expected
    write = _writer(expected)
    epochs, best = done.history.epochs, done.history.epochs[done.history.best]
    lost = with_interval(*expected.lost, write.decimals)
    unit = f" {expected.unit}" if expected.unit else ""
    told = [
        f"{expected.metric} is {write.value(expected.after[0])} trained, {write.value(expected.before[0])} before, "
        f"{write.value(expected.float[0])} in float: it loses {lost}{unit} to float ({write.confidence} interval, "
        f"{count(expected.samples, 'image')}{' held out' if done.held_out else ''}).",
        f"Of {count(len(epochs) - 1, 'epoch')} number {best.number} is kept: the last that is not worse than the best "
        "by more than a standard error, on the validation images."
        if best.number
        else "No epoch was better by the validation images than the network as it started: that is what is kept.",
    ]
    told += _bits_told(done, best)
    last = epochs[-1]
    if last.scales_kept:
        told.append(f"{count(last.scales_kept, 'step size')} ran away and had to be put back.")
    if last.frozen:
        told.append(f"{count(last.frozen, 'weight')} jumped to and fro between two codes and were frozen.")
    return told


def cautions(done: Trained) -> list[str]:
    """What limits the result."""
    limits = []
    if done.history.stopped is not None:
        limits.append(f"Training ended early: {done.history.stopped}. The best state before is kept.")
    if not done.held_out:
        limits.append("The figures are of the images that chose the best epoch; give --evaluation for an honest one.")
    if not done.history.epochs[done.history.best].within:
        limits.append(f"No epoch was within the limit of {done.settings.limit}: train longer, or allow fewer bits.")
    return limits


def _bits_told(done: Trained, best: Epoch) -> Iterator[str]:
    if done.settings.limit is None:
        return
    if done.bitops is None:
        yield f"Weights take {significant(done.average_bits)} bits on average, the target is {done.settings.target}."
    else:
        taken, most = (amount("bitops", value) for value in done.bitops)
        yield (
            f"An image takes {taken} BitOps, the limit is {most} ({done.settings.bitops}): weights have "
            f"{significant(done.average_bits)} bits on average, what layers read "
            f"{significant(float(np.mean(list(best.input_bits.values()))))}."
        )
    depthwise, pointwise = (_mean_bits(done, best, kind) for kind in ("depthwise", "pointwise"))
    if depthwise is not None and pointwise is not None:
        yield (
            f"Depthwise layers have {significant(depthwise, 2)} bits on average and pointwise ones "
            f"{significant(pointwise, 2)}, {'as' if depthwise > pointwise else 'unlike'} in DDQ's Figure 3, where "
            "depthwise layers have more."
        )


def _mean_bits(done: Trained, epoch: Epoch, kind: str) -> float | None:
    found = [epoch.bits[name] for name, mine in done.kinds.items() if mine == kind and name in epoch.bits]
    return float(np.mean(found)) if found else None


def _writer(expected: Expected) -> Writer:
    decimals = 1 if expected.unit == "points" else 3
    return Writer(decimals, expected.unit, expected.level)


def epochs_table(done: Trained) -> Table:
    """A row per epoch."""
    write = _writer(done.expected)
    rows = []
    for position, epoch in enumerate(done.history.epochs):
        bits = f"{np.mean(list(epoch.bits.values())):.2f}" if epoch.bits else "float"
        error = f"{100 * np.mean(list(epoch.errors.values())):.2g} %" if epoch.errors else ""
        rows.append(
            (
                str(epoch.number) + (" (kept)" if position == done.history.best else ""),
                significant(epoch.loss) if epoch.number else "",
                write.number(epoch.value),
                bits,
                error,
                str(epoch.frozen or ""),
                duration(epoch.seconds) if epoch.number else "",
            )
        )
    headings = (
        "epoch",
        "loss",
        f"{done.expected.metric}, validation",
        "bits of a layer",
        "error of a weight",
        "frozen",
        "time",
    )
    return Table("Epochs", headings, tuple(rows))


def epochs_chart(done: Trained) -> Chart:
    """The metric on the validation images over the epochs."""
    epochs, unit = done.history.epochs, done.expected.unit
    points = tuple(
        Point(e.number, e.value, title=f"epoch {e.number}\n{fixed(e.value, 2)}", hollow=i == done.history.best)
        for i, e in enumerate(epochs)
    )
    label = f"{done.expected.metric}{f' ({unit})' if unit else ''}"
    return Chart(
        "The validation images",
        Axis("epoch", whole=True),
        Axis(label),
        (Group("behind the epoch", points, Tone("accent")),),
        (Line("", tuple((e.number, e.value) for e in epochs), Tone("accent")),),
        hollow="the epoch that is kept",
    )


def loss_chart(done: Trained) -> Chart:
    """The loss over the steps."""
    losses = done.history.losses
    return Chart(
        "Loss",
        Axis("step", whole=True),
        Axis("loss", logarithmic=True),
        (
            Group(
                "every tenth step",
                tuple(Point(s, v, title=f"step {s}\n{significant(v)}") for s, v in losses),
                Tone("muted"),
            ),
        ),
    )


def bits_chart(done: Trained, what: str = "weights") -> Chart:
    """Bits of every layer's weight after training (DDQ, Figure 3), or of the ``inputs`` of those layers."""
    bits = _bits_of(done.history.epochs[done.history.best], what)
    names = [name for name in done.kinds if name in bits]
    groups = []
    for kind in dict.fromkeys(done.kinds[name] for name in names):
        points = tuple(
            Point(position, bits[name], title=f"{name}\n{kind}, {bits[name]} bits")
            for position, name in enumerate(names)
            if done.kinds[name] == kind
        )
        groups.append(Group(kind, points, Tone(_KINDS.get(kind, "muted"))))
    return Chart(
        f"Bits of {what} after training",
        Axis("layer, in order", whole=True),
        Axis("bits", whole=True),
        tuple(groups),
        (Line("", tuple((i, bits[name]) for i, name in enumerate(names)), Tone("muted")),),
        wide=True,
    )


def _bits_of(epoch: Epoch, what: str) -> Mapping[str, int]:
    return epoch.bits if what == "weights" else epoch.input_bits


def bits_over_time(done: Trained, what: str = "weights") -> Chart:
    """Bits of every layer's weight, or of its input, over the epochs (DDQ, Figure 4)."""
    epochs = [(e.number, _bits_of(e, what)) for e in done.history.epochs]
    names = [name for name in done.kinds if name in epochs[0][1]]
    lines = [
        Line("", tuple((number, bits[name]) for number, bits in epochs), Tone(_KINDS.get(done.kinds[name], "muted")))
        for name in names
    ]
    mean = tuple((number, float(np.mean([bits[name] for name in names]))) for number, bits in epochs)
    points = tuple(Point(x, y, title=f"epoch {x}\n{y:.2f} bits") for x, y in mean)
    ends = tuple(
        Point(number, bits[name], title=f"{name}\n{bits[name]} bits")
        for number, bits in (epochs[0], epochs[-1])
        for name in names
    )
    return Chart(
        f"Bits of {what} over time",
        Axis("epoch", whole=True),
        Axis("bits", whole=True),
        (
            Group("layers, at the start and at the end", ends, Tone("accent")),
            Group("mean of all layers", points, Tone("ink")),
        ),
        (*lines, Line("", mean, Tone("ink"))),
    )


def errors_chart(done: Trained) -> Chart:
    """||W_q - W||^2 / ||W||^2 of every layer over the epochs (DDQ, Figure 5(a))."""
    epochs = done.history.epochs
    names = sorted(epochs[-1].errors, key=lambda name: -epochs[-1].errors[name])
    lines = tuple(
        Line("", tuple((e.number, e.errors[name]) for e in epochs), Tone("accent" if rank < _SHOWN else "line"))
        for rank, name in enumerate(names)
    )
    ends = tuple(
        Point(e.number, e.errors[name], title=f"{name}\n{percent(e.errors[name])}")
        for e in (epochs[0], epochs[-1])
        for name in names
    )
    return Chart(
        "Quantization error of weights",
        Axis("epoch", whole=True),
        Axis("share of the weight's square", logarithmic=True),
        (Group("at the start and at the end", ends, Tone("accent")),),
        lines,
    )


def levels_charts(done: Trained) -> tuple[Chart, ...]:
    """Learned levels over the histogram of the weights (DDQ, Figures 1 and 5(b)), of the layers whose levels moved
    most."""
    found = sorted((levels for levels in done.levels if _moved(levels) > _EVEN), key=lambda levels: -_moved(levels))
    return tuple(_levels_chart(levels) for levels in found[:_SHOWN])


def _moved(levels: Levels) -> float:
    """How unevenly spaced the levels have become: the spread of their distances."""
    gaps = np.diff(levels.levels)
    return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else 0.0


def _levels_chart(levels: Levels) -> Chart:
    top = max(levels.counts) or 1
    middles = [(low + high) / 2 for low, high in pairwise(levels.edges)]
    share = [(x, number / top) for x, number in zip(middles, levels.counts, strict=True)]
    weights = tuple(Point(x, y, title=f"{significant(x)}\n{percent(y)} of the fullest bin") for x, y in share)
    groups = [Group("weights", weights, Tone("muted")), _row("levels", levels.levels, -0.05, Tone("accent"))]
    if len(levels.start) <= _FEW:
        groups.append(_row("before training", levels.start, -0.12, Tone("ink")))
    return Chart(
        f"{levels.name}, {levels.bits} bits",
        Axis("weight"),
        Axis("share of the fullest bin"),
        tuple(groups),
        (Line("", tuple(share), Tone("muted")),),
    )


def _row(label: str, levels: tuple[float, ...], height: float, tone: Tone) -> Group:
    points = (Point(x, height, title=f"{label}, {number}\n{significant(x)}") for number, x in enumerate(levels))
    return Group(label, tuple(points), tone)


def page(done: Trained) -> Sheet:
    """What stands on the page."""
    lead, *rest = statements(done)
    settings = done.settings
    method = settings.method if settings.limit is None else f"{settings.method}, bits learned"
    sections = [Section("epochs", "Training", charts=(epochs_chart(done), loss_chart(done)), table=epochs_table(done))]
    if settings.limit is not None:
        learned = ("weights",) if settings.bitops is None else ("weights", "inputs")
        charts = tuple(chart for what in learned for chart in (bits_chart(done, what), bits_over_time(done, what)))
        sections.append(Section("bits", "Bits", charts=charts))
    if charts := levels_charts(done):
        sections.append(
            Section(
                "levels",
                "Levels",
                "Where the levels of weights are, over how the weights are distributed: of the layers with the most "
                "unevenly spaced ones; of the first channel where every channel has its own.",
                charts=charts,
            )
        )
    if done.levels:
        sections.append(Section("errors", "Quantization error", charts=(errors_chart(done),)))
    return Sheet(
        heading=f"{done.model}: training",
        facts=(f"data {done.data}", f"method {method}", f"{settings.epochs} epochs", duration(done.seconds)),
        lead=lead,
        statements=tuple(rest),
        cautions=tuple(cautions(done)),
        sections=tuple(sections),
    )


def write(done: Trained, path: str | Path) -> Path:
    """Write the page of ``done`` to ``path``."""
    return sheet.write(page(done), path)


def print_trained(done: Trained, console: Console) -> None:
    """Print words and the table of epochs."""
    found = epochs_table(done)
    lines = Lines(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in found.headings:
        lines.add_column(heading, justify="right")
    for row in found.rows:
        lines.add_row(*row)
    print_part(console, bullets(statements(done), cautions(done)))
    print_part(console, lines)
