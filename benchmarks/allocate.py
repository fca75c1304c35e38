"""What mixed precision is worth: weights at the size of uniform 4 bits, per channel, activations at 8 bits.

    python benchmarks/allocate.py [NETWORK ...] [--size 4bits] [--out FOLDER]

For every network a screened analysis at 2 to 8 bits and an allocation, as the two commands do them, calibrated on
other images than it is measured on; biases are corrected alike in all that is compared. The first figures are of the
images that no decision has seen (half of them): float, uniform, mixed, what mixed precision gains with its 95 %
interval, the noise of the outputs over uniform's, and how many more images it decides as the float network does. The
last two compare the front with greedy steps, by noise on images that neither was chosen on, at sizes between the ends
of both: the geometric mean of the ratio, and the largest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import quantopsy as qp
from quantopsy.core.allocation import Outcome

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

DATA = {
    "resnet20": ("cifar10_test", "cifar10_train", 6500),
    "resnet56": ("cifar10_test", "cifar10_train", 6500),
    "squeezenet1_1": ("imagenet_val", "imagenet_sample", 867),
    "mobilenet_v1_025": ("imagenet_val", "imagenet_sample", 867),
    "mobilenet_v2_10": ("imagenette_val", "imagenette_train", 330),
    "efficientnet_lite0": ("imagenet_val", "imagenet_sample", 867),
}
"""Evaluation images, calibration images, how many of the former."""

BITS = (2, 3, 4, 5, 6, 8)
CALIBRATION = 96


def over(front: Sequence[Outcome], greedy: Sequence[Outcome]) -> np.ndarray:
    """Noise of the front over that of greedy steps at sizes between the ends of both, by interpolated logarithms."""
    ends = [np.array([point.uses["size"] for point in line]) for line in (front, greedy)]
    sizes = np.linspace(max(x.min() for x in ends), min(x.max() for x in ends), 50)
    logs = [
        np.interp(sizes, x, np.log([point.noise for point in line]))
        for x, line in zip(ends, (front, greedy), strict=True)
    ]
    ratio: np.ndarray = np.exp(logs[0] - logs[1])
    return ratio


def main() -> None:
    """Allocate for every network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"[default: {' '.join(DATA)}]")
    parser.add_argument("--size", default="4bits", help="limit on the size of all weights")
    parser.add_argument("--out", type=Path, default=Path("allocate_benchmark"), help="folder of the studies")
    arguments = parser.parse_args()
    print(
        "| network | images | float | uniform | mixed | gained | noise over uniform's | agreement gained | by | bits "
        "| over greedy, mean | largest | minutes |\n" + "| --- " * 13 + "|"
    )
    for name in arguments.networks or DATA:
        images, calibration, samples = DATA[name]
        folder, begin = arguments.out / name, time.monotonic()
        qp.analyze(
            f"zoo:{name}",
            f"zoo:{name}_on_{images}",
            calibration=f"zoo:{name}_on_{calibration}",
            bits=BITS,
            scheme="per-channel",
            mode="screen",
            samples=samples,
            calibration_samples=CALIBRATION,
            out=folder,
        )
        done = qp.allocate(folder, size=arguments.size).results.allocated
        assert done is not None
        minutes = (time.monotonic() - begin) / 60
        e, ratio = done.expected, over(done.front, done.greedy)
        widths = list(done.bits.values())
        assert done.decisions is not None
        row = [
            name, e.samples, *(f"{value[0]:.1f}" for value in (e.float, e.before, e.after)),
            "{:.1f} ({:.1f} to {:.1f})".format(*e.gained), "{:.2f} ({:.2f} to {:.2f})".format(*done.noise_ratio),
            "{:.1f} ({:.1f} to {:.1f})".format(*done.decisions.gained), done.criterion,
            ", ".join(f"{widths.count(bits)} at {bits}" for bits in BITS if bits in widths),
            f"{np.exp(np.log(ratio).mean()):.2f}", f"{ratio.max():.2f}", f"{minutes:.1f}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
