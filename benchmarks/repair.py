"""What a repair brings back: whole networks at 8 bits per tensor, weights and activations, without training.

    python benchmarks/repair.py [NETWORK ...] [--target per-tensor] [--out FOLDER]

For every network an analysis (screened) and a repair, as the two commands do them, calibrated on other images than it
is measured on. The table is of the images that no decision has seen (half of them): float, quantized, repaired,
what was regained with its 95 % interval, what is still lost, and the time of both commands; and what the recipe loses
on those images of the calibration set that nothing was calibrated on. A study that is there already goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from torch.utils.data import Dataset, Subset

import quantopsy as qp
from quantopsy.data import evenly_spaced_order

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

DATA = {
    "mobilenet_v1_025": ("imagenet_val", "imagenet_sample", 867),
    "mobilenet_v2_10": ("imagenette_val", "imagenette_train", 330),
    "efficientnet_lite0": ("imagenet_val", "imagenet_sample", 600),
}
"""Evaluation images, calibration images, how many of the former."""

CALIBRATION = 96


def others(name: str, dataset: str) -> Dataset:
    """The images of the calibration set that nothing was calibrated on."""
    import zoo

    images = zoo.images(name, dataset)
    return Subset(images, sorted(map(int, evenly_spaced_order(len(images))[CALIBRATION:])))


def main() -> None:
    """Repair every network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"[default: {' '.join(DATA)}]")
    parser.add_argument("--target", default="per-tensor", help="profile of a back end")
    parser.add_argument("--max-drop", type=float, default=0.5, help="points of top-1 to end at")
    parser.add_argument("--budget", default="15m", help="after which nothing new is tried")
    parser.add_argument("--out", type=Path, default=Path("repair_benchmark"), help="folder of the studies")
    arguments = parser.parse_args()
    print("| network | images | float | before | after | regained | lost | others | lost | kept | minutes |")
    print("| --- " * 11 + "|")
    for name in arguments.networks or DATA:
        images, calibration, samples = DATA[name]
        folder = arguments.out / name
        begin = time.monotonic()
        qp.analyze(
            f"zoo:{name}",
            f"zoo:{name}_on_{images}",
            calibration=f"zoo:{name}_on_{calibration}",
            bits=(8,),
            mode="screen",
            samples=samples,
            calibration_samples=CALIBRATION,
            out=folder,
        )
        study = qp.repair(folder, bits=8, target=arguments.target, max_drop=arguments.max_drop, budget=arguments.budget)
        minutes = (time.monotonic() - begin) / 60
        done = study.results.repaired
        assert done is not None
        e = done.expected
        kept = "; ".join(step.words for step in done.steps if step.kept)
        again = qp.apply(folder / "recipe.json", data=others(name, calibration))
        row = [
            name, e.samples, *(f"{value[0]:.1f}" for value in (e.float, e.before, e.after)),
            *("{:.1f} ({:.1f} to {:.1f})".format(*value) for value in (e.gained, e.lost)), again.samples,
            "{:.1f} ({:.1f} to {:.1f})".format(*again.lost), kept, f"{minutes:.1f}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
