"""What a trainable quantizer costs, forward and backward, medians of one run.

    python benchmarks/train_step.py

Tensors are those of a ResNet-20 on CIFAR-10 at batch 64. Every method on the same tensor and gradient, in turns;
the ratio is to LSQ's. Then the look-up of the nearest of 16 learned levels beside a uniform fake-quantize. Times
are of the processor, so that other processes count little; give it one thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from quantopsy.calibrate import fit
from quantopsy.core import Spec
from quantopsy.core.plan import Role
from quantopsy.engine.allocator import keep_freed_memory
from quantopsy.quant import fake_quantize
from quantopsy.training.quantizers import METHODS, trainable

ROUNDS = 15
BITS = 4
LIMIT = 2.0
LOOK_UP_LIMIT = 3.0

TENSORS: tuple[tuple[str, Role, str, tuple[int, ...]], ...] = (
    ("activation 64x16x32x32", "input", "per_tensor", (64, 16, 32, 32)),
    ("activation 64x32x16x16", "input", "per_tensor", (64, 32, 16, 16)),
    ("activation 64x64x8x8", "input", "per_tensor", (64, 64, 8, 8)),
    ("weight 16x16x3x3", "weight", "per_tensor", (16, 16, 3, 3)),
    ("weight 64x64x3x3", "weight", "per_tensor", (64, 64, 3, 3)),
    ("weight 64x64x3x3", "weight", "per_channel", (64, 64, 3, 3)),
)


def medians(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each, rounds in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for warm in (False, False, *[True] * ROUNDS):
        for name, function in sides.items():
            start = time.process_time()
            function()
            if warm:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(kept) * 1e3 for name, kept in seconds.items()}


def step(method: str, x: Tensor, gradient: Tensor, role: Role, granularity: str, **options: bool) -> Callable[[], None]:
    """Forward and backward of ``method``, calibrated on ``x``."""
    spec = METHODS[method].start(Spec(bits=BITS, symmetric=role == "weight", granularity=granularity))
    quantizer = trainable(method, spec, fit(spec, x), role, **options)
    leaf = x.clone().requires_grad_()

    def run() -> None:
        leaf.grad = None
        quantizer.zero_grad()
        quantizer(leaf).backward(gradient)

    return run


def methods(role: Role, granularity: str, shape: tuple[int, ...]) -> dict[str, float]:
    """Every method's milliseconds on one tensor; activations have been rectified."""
    x = torch.randn(shape)
    x = x if role == "weight" else x.relu()
    gradient = torch.randn(shape)
    sides = {name: step(name, x, gradient, role, granularity) for name in METHODS if role in METHODS[name].roles}
    sides["ddq mixed"] = step("ddq", x, gradient, role, granularity, mixed=True)
    return medians(sides)


def look_up() -> dict[str, float]:
    """16 levels that are trained, and 16 evenly spaced ones, on 2^20 weights."""
    x = torch.randn(2**20)
    grids = {kind: fit(Spec(kind=kind, bits=4, symmetric=True), x) for kind in ("uniform", "learned")}
    return medians({kind: lambda grid=grid: fake_quantize(x, grid) for kind, grid in grids.items()})  # type: ignore[misc]


def _row(table: Table, name: str, method: str, milliseconds: float, yardstick: float) -> None:
    limit = f"{LIMIT:.1f}" if method == "ddq" else ""
    table.add_row(name, method, f"{milliseconds:.3f}", f"{milliseconds / yardstick:.2f}", limit)


def main() -> None:
    torch.manual_seed(0)
    keep_freed_memory()
    table = Table("", "method", "ms", "of LSQ's", "limit")
    total = dict.fromkeys(("lsq", "ddq"), 0.0)
    for name, role, granularity, shape in TENSORS:
        times = methods(role, granularity, shape)
        for method, milliseconds in times.items():
            _row(table, f"{name} {granularity}", method, milliseconds, times["lsq"])
        total = {method: total[method] + times[method] for method in total}
        table.add_section()
    _row(table, "all of these", "ddq", total["ddq"], total["lsq"])
    times = look_up()
    table.add_row(
        "2^20 weights, forward, of uniform's", "learned", f"{times['learned']:.3f}",
        f"{times['learned'] / times['uniform']:.2f}", f"{LOOK_UP_LIMIT:.1f}",
    )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
