"""What training with learned grids costs, medians of one run.

    python benchmarks/train_step.py

Steps of `resnet20` and `mobilenet_v2_10` (forward, backward, optimizer; 4-bit weights and activations) in float, with
LSQ and with DDQ, in turns: time, and memory as the bytes of all tensors that forward keeps for backward. Then every
method's quantizer alone, forward and backward, on tensors of a ResNet-20 at batch 64, beside LSQ's, and the look-up of
the nearest of 16 learned levels beside a uniform fake-quantize. Times are of the processor, so that other processes
count little; give it one thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from quantopsy.analysis.progress import Silent
from quantopsy.calibrate import fit
from quantopsy.core import Spec
from quantopsy.core.plan import Role
from quantopsy.engine.allocator import keep_freed_memory
from quantopsy.graph.execute import compile_network
from quantopsy.quant import fake_quantize
from quantopsy.training.network import TrainableNetwork
from quantopsy.training.quantizers import METHODS, trainable
from quantopsy.training.settings import TrainingSettings
from quantopsy.training.start import ready

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

ROUNDS = 15
BITS = 4
LIMIT, FLOAT_LIMIT = 2.0, 3.0
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


NETWORKS = (("resnet20", "cifar10_train", 64), ("mobilenet_v2_10", "imagenette_train", 8))


def training_step(network: str, data: str, batch: int, method: str) -> tuple[Callable[[], None], Callable[[], int]]:
    """A step of training, and what its forward keeps in bytes."""
    settings = TrainingSettings(method=method, bits=BITS, activation_bits=BITS, calibration_samples=batch)
    start = ready(f"zoo:{network}", f"zoo:{network}_on_{data}", settings, Silent())
    learning = TrainableNetwork(compile_network(start.network), start.plan, start.calibration, settings.learning)
    optimizer = torch.optim.SGD(learning.parameters(), lr=1e-4, momentum=0.9)
    images = start.images.batch(range(batch))
    assert isinstance(images.inputs, tuple)
    assert images.labels is not None
    inputs, labels = images.inputs, images.labels

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(learning(*inputs), labels).backward()
        optimizer.step()

    def kept() -> int:
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = F.cross_entropy(learning(*inputs), labels)
        del loss
        return sum(found.values())

    return run, kept


def steps(table: Table) -> None:
    """Whole steps of training, beside LSQ's and beside float's."""
    for network, data, batch in NETWORKS:
        made = {method: training_step(network, data, batch, method) for method in ("float", "lsq", "ddq")}
        times = medians({method: run for method, (run, _) in made.items()})
        memory = {method: kept() / 2**20 for method, (_, kept) in made.items()}
        for method in made:
            table.add_row(
                f"{network}, batch of {batch}", method,
                f"{times[method]:.0f}", f"{times[method] / times['lsq']:.2f}", f"{times[method] / times['float']:.2f}",
                f"{memory[method]:.0f}", f"{memory[method] / memory['lsq']:.2f}",
                f"{memory[method] / memory['float']:.2f}",
            )  # fmt: skip
        table.add_section()


def _row(table: Table, name: str, method: str, milliseconds: float, yardstick: float) -> None:
    table.add_row(name, method, f"{milliseconds:.3f}", f"{milliseconds / yardstick:.2f}")


def main() -> None:
    """Print the tables."""
    torch.manual_seed(0)
    keep_freed_memory()
    whole = Table("", "method", "ms", "of LSQ's", "of float's", "MiB kept", "of LSQ's", "of float's")
    steps(whole)
    console = Console(width=120)
    console.print(whole)
    console.print(f"Limits: {LIMIT:.1f} of LSQ's, {FLOAT_LIMIT:.1f} of float's.")
    table = Table("", "method", "ms", "of LSQ's")
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
        f"2^20 weights, forward, of uniform's (limit {LOOK_UP_LIMIT:.1f})", "learned",
        f"{times['learned']:.3f}", f"{times['learned'] / times['uniform']:.2f}",
    )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
