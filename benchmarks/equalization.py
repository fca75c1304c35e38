"""Which transform helps: top-1 of whole networks at 8 bits per tensor, variant by variant.

    python benchmarks/equalization.py [NETWORK ...] [--images 256] [--calibration 96]

Weights and activations of all layers uniform, asymmetric, per tensor, ranges min to max. Every variant is applied to
the folded float network, its change of the float outputs measured, calibrated anew, and the network measured without
and with bias correction (DFQ, section 4.2, means of data). Ranges, and the channels' statistics that transforms are
found from, are of images that are not evaluated on. "lost" is float minus quantized top-1 over the same images, with
its 95 % interval; SQNR is of the network's outputs. Writes a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
from quantopsy.graph.outputs import squared_norms
from quantopsy.metrics import TopK
from quantopsy.transforms.bias_absorption import find_bias_absorption
from quantopsy.transforms.dead_channels import find_dead_channels
from quantopsy.transforms.equalization import LARGEST_SCALE, find_equalization
from quantopsy.transforms.transform import apply_checked, check_function

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
# network: evaluation images, calibration images
SETS = {
    "mobilenet_v1_025": ("imagenet_val", "imagenet_sample"),
    "mobilenet_v2_10": ("imagenette_val", "imagenette_train"),
    "efficientnet_lite0": ("imagenet_val", "imagenet_sample"),
}
TILE = 16
Tiles = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Variant:
    """Which transforms, in this order: dead channels cleaned, equalized in ``sweeps``, biases absorbed."""

    sweeps: int = 0
    normalised: bool = True
    activations: bool = False
    largest: float = LARGEST_SCALE
    clean: bool = False
    absorb: bool = False

    def __str__(self) -> str:
        parts = ["dead channels"] if self.clean else []
        if self.sweeps:
            parts.append(f"{self.sweeps} sweep{'s' * (self.sweeps > 1)}")
            parts += ["activations too"] if self.activations else []
            parts += [] if self.normalised else ["not normalised"]
            parts += [f"scales up to {self.largest:g}"] if self.largest != LARGEST_SCALE else []
        parts += ["bias absorption"] if self.absorb else []
        return ", ".join(parts) or "none"

    def transform(self, network: Network, calibration: Tiles) -> Network:
        """The transformed network."""
        images = [(x,) for x, _ in calibration]
        if self.clean:
            found = find_dead_channels(network, ranges(network, images))
            network, _ = apply_checked(found, network, images[:1])
        if self.sweeps:
            equalization = find_equalization(
                network,
                sweeps=self.sweeps,
                normalised=self.normalised,
                activation_ranges=ranges(network, images) if self.activations else None,
                largest=self.largest,
            )
            network, _ = apply_checked(equalization, network, images[:1])
        if self.absorb:
            low = {value: low for value, (low, _) in ranges(network, images).items()}
            network, _ = apply_checked(find_bias_absorption(network, low), network, images[:1])
        return network


VARIANTS = (
    Variant(),
    *(
        Variant(sweeps, normalised, activations)
        for activations in (False, True)
        for normalised in (True, False)
        for sweeps in (1, 10, 40)
    ),
    *(Variant(10, largest=largest) for largest in (2.0, 16.0, 1e4)),
    Variant(10, activations=True, largest=1e4),
    Variant(clean=True),
    Variant(10, clean=True),
    Variant(10, clean=True, activations=True),
    Variant(10, clean=True, largest=1e4),
    Variant(10, clean=True, absorb=True),
)


class Found(NamedTuple):
    """(n, 1) 1 where an image is classified as labelled, and the SQNR in dB."""

    correct: np.ndarray
    sqnr_db: float


def ranges(network: Network, images: list[tuple[Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The extremes of every channel, by value."""
    seen = channel_statistics(compile_network(network), images)
    return {value: (channels.low, channels.high) for value, channels in seen.items()}


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


def run(network: Network, evaluation: Tiles, calibration: Tiles) -> list[Found]:
    """Float, then every plan."""
    program = compile_network(network)
    wanted = list(plans(network))
    seen = calibrate(program, [(x,) for x, _ in calibration], wanted_statistics(network, wanted))
    engine = ExactEngine(program, seen)
    prepared = [engine.prepare(plan) for plan in wanted]
    hits: list[list[Tensor]] = [[] for _ in range(len(prepared) + 1)]
    energy = np.zeros(len(prepared) + 1)
    for x, y in evaluation:
        for measured in engine.run_tile((x,), prepared):
            if measured.run < 0:
                reference = measured.outputs
            noise = squared_norms(measured.outputs, None if measured.run < 0 else reference)
            energy[measured.run + 1] += float(noise.sum())
            hits[measured.run + 1].append(measured.outputs[0].argmax(1) == y)
    sqnr_db = 10 * np.log10(energy[0] / energy)
    return [Found(torch.cat(part).double().numpy()[:, None], float(db)) for part, db in zip(hits, sqnr_db, strict=True)]


def lost(interval: Interval) -> str:
    """A loss with its interval."""
    return f"{interval.value:.1f} ({interval.low:.1f} to {interval.high:.1f})"


def measure(name: str, images: int, calibration_images: int) -> None:
    """Print one network's table."""
    import zoo

    evaluation = tiles(name, SETS[name][0], images)
    calibration = tiles(name, SETS[name][1], calibration_images)
    network = capture(zoo.network(name), (evaluation[0][0][:2],))
    metric = TopK(1)
    for variant in VARIANTS:
        changed = variant.transform(network, calibration)
        moved = check_function(network, changed, [(x,) for x, _ in evaluation])
        in_float, *quantized = run(changed, evaluation, calibration)
        if variant == Variant():
            original = in_float.correct
            print(f"\n**{name}**: float top-1 {100 * original.mean():.1f}, {len(original)} images\n")
            print("| transforms | moved | SQNR | top-1 | lost | SQNR, bias corrected | top-1 | lost |")
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        cells = [
            f"{q.sqnr_db:.1f} | {100 * q.correct.mean():.1f} | {lost(degradation(metric, original, q.correct))}"
            for q in quantized
        ]
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
