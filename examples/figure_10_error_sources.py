"""Figure 10 of the practical approach, measured: what each source of error of fixed-point layers costs, alone.

    python examples/figure_10_error_sources.py [--only NAME] [--samples N] [--layers 3]

Reads networks and images from the zoo: the folder that QUANTOPSY_ZOO names, or ../shared/zoo beside the repository.
Weights of 8 bits per channel, activations of 8, ranges from other images. For each network: the sources switched on in
all layers at once, what the integer network needs of its accumulators, and how it agrees with the simulation.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

import quantopsy as qp
from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.data import open_data, prefetch
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.graph.execute import compile_network
from quantopsy.integer.agreement import agreement
from quantopsy.integer.error_sources import ErrorSources, error_sources
from quantopsy.integer.network import ARITHMETICS, IntegerNetwork

ZOO = Path(os.environ.get("QUANTOPSY_ZOO", Path(__file__).parents[2] / "shared" / "zoo"))
NETWORKS = {
    "resnet20": ("cifar10_test", "cifar10_train", 64),
    "mobilenet_v2_10": ("imagenette_val", "imagenette_train", 8),
}
TILE, CALIBRATION = 8, 64


def tiles(network: str, data: str, count: int) -> Iterator[list[Tensor]]:
    """Images of the zoo, a few at a time."""
    import zoo

    images = open_data(zoo.images(network, data, count))
    for batch in prefetch(images, np.array_split(np.arange(len(images)), max(1, len(images) // TILE))):
        yield batch.inputs


def print_sources(found: ErrorSources, layers: int) -> None:
    """The sources in all layers at once, and the layers where each costs most."""
    frame = found.frame()
    print(f"  {'source':16}{'variant':34}{'noise':>10}{'SQNR':>9}{'decisions':>11}   where it costs most, alone")
    for row in found.whole:
        alone = frame[(frame.source == row.source) & (frame.variant == row.variant) & frame.layer.notna()]
        worst = alone[alone.noise > 0].nlargest(layers, "noise")
        names = ", ".join(f"{layer} {noise:.2g}" for layer, noise in zip(worst.layer, worst.noise, strict=True))
        print(
            f"  {row.source:16}{row.variant:34}{row.noise:10.3g}{row.sqnr_db:6.1f} dB{row.decisions:9.1f} %   {names}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS, help="one of the networks")
    parser.add_argument("--samples", type=int, help="other than 64 and 8 images")
    parser.add_argument("--layers", type=int, default=3, help="how many layers to name for a source")
    options = parser.parse_args()
    sys.path.insert(0, str(ZOO.parent))
    import zoo

    for name in [options.only] if options.only else NETWORKS:
        data, calibration, samples = NETWORKS[name]
        first = next(tiles(name, data, TILE))
        network = qp.capture(zoo.network(name), first)
        plan = full_plan(network, grids("per-channel", 8))
        wanted = wanted_statistics(network, [plan])
        ranges = calibrate(compile_network(network), tiles(name, calibration, CALIBRATION), wanted)
        began = time.perf_counter()
        found = error_sources(IntegerNetwork(network, plan, ranges), tiles(name, data, options.samples or samples))
        print(f"\n{name}, {found.images} images, {time.perf_counter() - began:.0f} s")
        print_sources(found, options.layers)
        for kind, arithmetic in ARITHMETICS.items():
            integers = IntegerNetwork(network, plan, ranges, arithmetic)
            rows = agreement(integers, first)
            elements, apart = sum(row.elements for row in rows), sum(row.differences for row in rows)
            print(
                f"  {kind}: of {elements} elements of layers {100 * (1 - apart / elements):.5f} % as simulated, "
                f"{apart} a step apart, {sum(row.explained for row in rows)} of these explained"
            )
            examples = [row for row in rows if row.example is not None]
            if examples:
                print(f"    {examples[0].layer} {examples[0].example}")
        counts = integers.counts.values()
        widest = max(counts, key=lambda count: count.bits)
        print(
            f"  integers: {100 * integers.macs_share:.0f} % of multiplications; accumulators need up to {widest.bits} "
            f"bits ({widest.layer}), {sorted(count.bits for count in counts)[len(counts) // 2]} in half of the layers"
        )


if __name__ == "__main__":
    main()
