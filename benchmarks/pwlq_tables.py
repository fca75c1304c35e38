"""Tables 1 and 2 of PWLQ on networks that are at hand: top-1 with quantized weights.

    python benchmarks/pwlq_tables.py [NETWORK ...] [--images 300]

As in section 5.1: weights per output channel at 2 to 8 bits (b bits a piece for the piecewise ones, the
paper's convention in these tables), activations at 8 bits per tensor with the top-k median range.
Uni: uniform; PWG, PWL: breakpoint by the Gaussian and Laplacian approximation; PWS: by three-stage
search. +B: mean and variance of weights corrected; +Gr: per group. Ranges are estimated on images that
are not evaluated on. Writes a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from quantopsy.analysis.schemes import full_plan
from quantopsy.analysis.significance import proportion
from quantopsy.core import Plan, Spec
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
# network, evaluation images, calibration images
SETS = {
    "resnet20": ("cifar10_test", "cifar10_train"),
    "resnet56": ("cifar10_test", "cifar10_train"),
    "mobilenet_v2_10": ("imagenette_val", "imagenette_train"),
    "efficientnet_lite0": ("imagenet_val", "imagenet_sample"),
}
ROWS = {
    "Uni": Spec(granularity="per_channel"),
    "PWG": Spec(kind="piecewise", granularity="per_channel", options=(("breakpoint", "pwg"),)),
    "PWL": Spec(kind="piecewise", granularity="per_channel", options=(("breakpoint", "pwl"),)),
    "PWS": Spec(kind="piecewise", granularity="per_channel", options=(("breakpoint", "pws"),)),
}
BITS = (8, 7, 6, 5, 4, 3, 2)
TILE = 50


def variants() -> Iterator[tuple[str, str, Spec]]:
    """(row, column, weight spec) of both tables."""
    for row, spec in ROWS.items():
        for bits in BITS:
            yield row, str(bits), spec.with_bits(bits)
        for bits in (4, 2):
            for tag, changes in (
                ("+B", {"correction": "mean_variance"}),
                ("+Gr", {"granularity": "per_group:pwlq"}),
                ("+BGr", {"correction": "mean_variance", "granularity": "per_group:pwlq"}),
            ):
                yield row, f"{bits}{tag}", Spec(**{**vars(spec.with_bits(bits)), **changes})


def batches(dataset: torch.utils.data.Dataset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The data set in tiles."""
    for start in range(0, len(dataset), TILE):
        items = [dataset[i] for i in range(start, min(start + TILE, len(dataset)))]
        yield torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])


def measure(name: str, images: int) -> dict[tuple[str, str], float]:
    """Top-1 by (row, column); ("float", "") is the float network's."""
    import zoo

    evaluation, calibration = SETS[name]
    module = zoo.network(name)
    tiles = list(batches(zoo.images(name, evaluation, images)))
    program = compile_network(capture(module, (tiles[0][0][:2],)))
    activation = Spec(range_estimator="topk_median:10")
    plans: dict[tuple[str, str], Plan] = {}
    for row, column, weight in variants():
        plans[row, column] = full_plan(program.network, {"weight": weight, "input": activation, "output": activation})
    seen = ((x,) for x, _ in batches(zoo.images(name, calibration, 256)))
    ranges = calibrate(program, seen, wanted_statistics(program.network, plans.values()))
    engine = ExactEngine(program, ranges)
    prepared = [engine.prepare(plan) for plan in plans.values()]
    correct = np.zeros(len(plans) + 1)
    for x, y in tiles:
        for measured in engine.run_tile((x,), prepared):
            correct[measured.run] += float((measured.outputs[0].argmax(1) == y).sum())
    total = sum(len(y) for _, y in tiles)
    top1 = 100 * correct / total
    found = dict(zip(plans, top1[:-1], strict=True))
    found["float", ""] = top1[-1]
    interval = proportion(int(correct[-1]), total)
    low, high = 100 * interval.low, 100 * interval.high
    print(f"\n**{name}**: float {top1[-1]:.1f} ({low:.1f} to {high:.1f}), {total} images\n")
    return found


def table(found: dict[tuple[str, str], float]) -> str:
    """Markdown, a row per quantizer."""
    columns = list(dict.fromkeys(column for _, column, _ in variants()))
    lines = ["| weights | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for row in ROWS:
        lines.append(f"| {row} | " + " | ".join(f"{found[row, column]:.1f}" for column in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables for every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(SETS))
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    for name in arguments.networks:
        print(table(measure(name, arguments.images)), flush=True)


if __name__ == "__main__":
    main()
