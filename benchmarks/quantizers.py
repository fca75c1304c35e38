"""Quantizers and calibration against torch's own, medians of one run.

    python benchmarks/quantizers.py

Ratios below the limit are within budget. Rounds alternate between the two sides. Where other processes want
the cores, every operation waits for its slowest thread, and whoever has more operations loses: then measure
with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from quantopsy.calibrate import fit, observer
from quantopsy.core import Spec
from quantopsy.quant import fake_quantize

ROUNDS = 21

ACTIVATIONS = {
    "activation 32x32x112x112": (32, 32, 112, 112),
    "activation 1x96x56x56": (1, 96, 56, 56),
    "activation 32x320x7x7": (32, 320, 7, 7),
}


def medians(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Median milliseconds of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for warm in (False, False, *[True] * ROUNDS):
        for function, kept in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            function()
            if warm:
                kept.append(time.perf_counter() - start)
    return statistics.median(seconds[0]) * 1e3, statistics.median(seconds[1]) * 1e3


def uniform_per_tensor(x: Tensor) -> tuple[float, float]:
    """Ours against torch.fake_quantize_per_tensor_affine."""
    grid = fit(Spec(), x)
    scale, zero = float(grid.scale), int(grid.zero_point)
    return medians(
        lambda: fake_quantize(x, grid),
        lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero, grid.qmin, grid.qmax),
    )


def per_channel(w: Tensor, spec: Spec) -> tuple[float, float]:
    """``spec`` against torch.fake_quantize_per_channel_affine."""
    grid, plain = fit(spec, w), fit(Spec(granularity="per_channel", symmetric=True), w)
    return medians(
        lambda: fake_quantize(w, grid),
        lambda: torch.fake_quantize_per_channel_affine(w, plain.scale, plain.zero_point, 0, plain.qmin, plain.qmax),
    )


def observed_forward() -> tuple[float, float]:
    """A float forward with every layer's output observed into a histogram, against that forward alone."""
    widths = (32, 64, 128, 256)
    layers = nn.ModuleList()
    for before, after in zip((3, *widths), (*widths, 256), strict=True):
        layers.append(nn.Sequential(nn.Conv2d(before, after, 3, 1 if before == 3 else 2, 1), nn.ReLU()))
    layers = layers.to(memory_format=torch.channels_last)
    x = torch.randn(16, 3, 112, 112).to(memory_format=torch.channels_last)
    spec = Spec(range_estimator="percentile")

    def forward(observe: bool) -> None:
        value = x
        for layer in layers:
            value = layer(value)
            if observe:
                observer(spec).update(value)

    return medians(lambda: forward(True), lambda: forward(False))


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    table = Table("what", "ours ms", "theirs ms", "ratio", "limit")

    def row(what: str, times: tuple[float, float], limit: float) -> None:
        ours, theirs = times
        table.add_row(what, f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}", f"{limit:g}")

    for memory_format in (torch.contiguous_format, torch.channels_last):
        for name, shape in ACTIVATIONS.items():
            x = torch.randn(shape).contiguous(memory_format=memory_format)
            layout = str(memory_format).removeprefix("torch.")
            row(f"uniform per tensor, {name}, {layout}", uniform_per_tensor(x), 1)
    for shape in ((512, 512, 3, 3), (320, 1280, 1, 1), (96, 1, 3, 3)):
        w = torch.randn(shape)
        size = "x".join(map(str, shape))
        row(f"uniform per channel, weight {size}", per_channel(w, Spec(granularity="per_channel", symmetric=True)), 1)
        piecewise = Spec(kind="piecewise", bits=4, granularity="per_channel", options={"breakpoint": "pwg"})
        row(f"piecewise per channel, weight {size}", per_channel(w, piecewise), 2)
    row("forward with histograms of 5 layers", observed_forward(), 1.2)
    Console(width=110).print(table)

    w = torch.randn(512, 512, 3, 3)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        fit(Spec(kind="piecewise", bits=4, granularity="per_channel"), w)
        seconds.append(time.perf_counter() - start)
    print(f"PWS on 512x512x3x3 per channel: {statistics.median(seconds):.2f} s (limit 2 s)")


if __name__ == "__main__":
    main()
