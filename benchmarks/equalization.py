"""Which equalization helps: top-1 of whole networks at 8 bits per tensor, variant by variant.

    python benchmarks/equalization.py [NETWORK ...] [--images 256] [--calibration 96]

Weights and activations of all layers uniform, asymmetric, per tensor, ranges min to max. Every variant is applied to
the folded float network, checked to leave its outputs as they were, calibrated anew, and measured without and with
bias correction (DFQ, section 4.2, means of data). Ranges, and the channels' ranges that two-step equalization looks at,
are of images that are not evaluated on. "lost" is float minus quantized top-1 over the same images.
Writes a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.analysis.significance import Interval, degradation
from quantopsy.core import Plan
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.channel_statistics import channel_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.metrics import TopK
from quantopsy.transforms.equalization import find_equalization
from quantopsy.transforms.transform import apply_checked

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
# network: evaluation images, calibration images
SETS = {
    "mobilenet_v1_025": ("imagenet_val", "imagenet_sample"),
    "mobilenet_v2_10": ("imagenette_val", "imagenette_train"),
    "efficientnet_lite0": ("imagenet_val", "imagenet_sample"),
}
TILE = 16
Tiles = list[tuple[Tensor, Tensor]]


class Variant(NamedTuple):
    """How an equalization is found; no sweeps: none."""

    sweeps: int | None
    normalised: bool = True
    activations: bool = False

    def __str__(self) -> str:
        if self.sweeps == 0:
            return "none"
        ranges = "weights and activations" if self.activations else "weights"
        sweeps = "to convergence" if self.sweeps is None else f"{self.sweeps} sweep{'s' * (self.sweeps > 1)}"
        return f"{sweeps}, {ranges}{'' if self.normalised else ', not normalised'}"


VARIANTS = (
    Variant(0),
    *(
        Variant(sweeps, normalised, activations)
        for activations in (False, True)
        for normalised in (True, False)
        for sweeps in (1, 10, 40, None)
    ),
)


def tiles(name: str, dataset: str, count: int) -> Tiles:
    """Images and labels."""
    import zoo

    images = zoo.images(name, dataset, count)
    parts = [[images[i] for i in range(a, min(a + TILE, len(images)))] for a in range(0, len(images), TILE)]
    return [(torch.stack([x for x, _ in part]), torch.tensor([y for _, y in part])) for part in parts]


def plans(network: Network) -> Iterator[Plan]:
    """The whole network on its grids, without and with bias correction."""
    for correction in ("none", "bias"):
        yield full_plan(network, grids("per-tensor", 8, {"weight": {"correction": correction}}))


def correct(network: Network, evaluation: Tiles, calibration: Tiles) -> list[np.ndarray]:
    """(n, 1) 1 where an image is classified as labelled: float, then every plan."""
    program = compile_network(network)
    wanted = list(plans(network))
    ranges = calibrate(program, [(x,) for x, _ in calibration], wanted_statistics(network, wanted))
    engine = ExactEngine(program, ranges)
    prepared = [engine.prepare(plan) for plan in wanted]
    found: list[list[Tensor]] = [[] for _ in range(len(prepared) + 1)]
    for x, y in evaluation:
        for measured in engine.run_tile((x,), prepared):
            found[measured.run + 1].append(measured.outputs[0].argmax(1) == y)
    return [torch.cat(part).double().numpy()[:, None] for part in found]


def lost(interval: Interval) -> str:
    """A loss with its interval."""
    return f"{interval.value:.1f} ({interval.low:.1f} to {interval.high:.1f})"


def measure(name: str, images: int, calibration_images: int) -> None:
    """Print one network's table."""
    import zoo

    evaluation = tiles(name, SETS[name][0], images)
    calibration = tiles(name, SETS[name][1], calibration_images)
    network = capture(zoo.network(name), (evaluation[0][0][:2],))
    seen = channel_statistics(compile_network(network), [(x,) for x, _ in calibration])
    ranges = {value: (channels.low, channels.high) for value, channels in seen.items()}
    metric = TopK(1)
    for variant in VARIANTS:
        changed, moved = network, 0.0
        if variant.sweeps != 0:
            equalization = find_equalization(
                network,
                sweeps=variant.sweeps,
                normalised=variant.normalised,
                activation_ranges=ranges if variant.activations else None,
            )
            changed, moved = apply_checked(equalization, network, [(calibration[0][0],)])
        in_float, *quantized = correct(changed, evaluation, calibration)
        if variant.sweeps == 0:
            print(f"\n**{name}**: float top-1 {100 * in_float.mean():.1f}, {len(in_float)} images\n")
            print("| equalization | output moved | top-1 | lost | top-1, bias corrected | lost |")
            print("| --- | ---: | ---: | ---: | ---: | ---: |")
        cells = [f"{100 * q.mean():.1f} | {lost(degradation(metric, in_float, q))}" for q in quantized]
        print(f"| {variant} | {moved:.0e} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table for every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(SETS)[:2])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=96)
    arguments = parser.parse_args()
    for name in arguments.networks:
        measure(name, arguments.images, arguments.calibration)


if __name__ == "__main__":
    main()
