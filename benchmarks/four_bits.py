"""4-bit weights without training: uniform as it is, with biases corrected, with AdaRound, and piecewise linear.

    python benchmarks/four_bits.py [NETWORK ...] [--out FOLDER]

Weights at 4 bits per output channel, symmetric; activations at 8 bits per tensor. Ranges, roundings and biases are
found on images that nothing is measured on. Rows: uniform; biases corrected layer after layer (IBC); AdaRound layer
by layer, then by blocks of layers; piecewise linear with searched breakpoints (PWLQ), with the mean and variance of
weights corrected, per group. Top-1, what is lost against float with its 95 % interval, the noise of the outputs over
that of the first row, and the seconds it took to find and to measure.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import quantopsy as qp
from quantopsy.analysis.progress import Silent
from quantopsy.analysis.significance import metric_interval
from quantopsy.analysis.subject import reopen
from quantopsy.core import Plan, Spec
from quantopsy.engine.adaround import Effort
from quantopsy.remedy.variants import Correction, Variant, Variants

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

DATA = {
    "resnet20": ("cifar10_test", "cifar10_train", 1000),
    "resnet56": ("cifar10_test", "cifar10_train", 1000),
    "efficientnet_lite0": ("imagenet_val", "imagenet_sample", 400),
}
"""Evaluation images, calibration images, how many of the former."""

CALIBRATION = {"resnet20": 512, "resnet56": 512, "efficientnet_lite0": 96}

UNIFORM = Spec(bits=4, granularity="per_channel", symmetric=True, signed=True)
PIECEWISE = Spec(
    kind="piecewise",
    bits=4,
    granularity="per_group:pwlq",
    options=(("breakpoint", "pws"),),
    correction="mean_variance",
)
ROWS: tuple[tuple[str, Spec, Correction], ...] = (
    ("uniform", UNIFORM, "none"),
    ("uniform, IBC", UNIFORM, "iterative"),
    ("uniform, AdaRound", UNIFORM, "adaround"),
    ("uniform, AdaRound by blocks", UNIFORM, "blocks"),
    ("piecewise", replace(PIECEWISE, granularity="per_channel", correction="none"), "none"),
    ("piecewise, weights corrected, per group", PIECEWISE, "none"),
    ("piecewise, weights corrected, per group, IBC", replace(PIECEWISE, correction="none"), "iterative"),
)


def main() -> None:
    """Print a table for every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"[default: {' '.join(DATA)}]")
    parser.add_argument("--out", type=Path, default=Path("four_bits"), help="folder of the studies")
    arguments = parser.parse_args()
    for name in arguments.networks or DATA:
        images, calibration, samples = DATA[name]
        qp.analyze(
            f"zoo:{name}",
            f"zoo:{name}_on_{images}",
            calibration=f"zoo:{name}_on_{calibration}",
            bits=(4,),
            scheme="per-channel",
            mode="screen",
            samples=samples,
            calibration_samples=CALIBRATION[name],
            out=arguments.out / name,
        )
        with reopen(arguments.out / name, Silent()) as (store, subject):
            variants = Variants(subject, store, (), Effort(), Silent())
            order, first = subject.order, None
            top1 = metric_interval(subject.metric, variants.result(None, order).statistics).value
            print(f"| {name}, {len(order)} images, float {top1:.1f} | top-1 | lost | noise | s |")
            print("| --- | ---: | --- | ---: | ---: |")
            for words, weight, correction in ROWS:
                begin = time.monotonic()
                plan = Plan.of({site: weight if site.role == "weight" else spec for site, spec in subject.full.sites})
                variant = Variant(plan, correction=correction)
                found = variants.result(variant, order)
                lost = variants.degradation(variant, order, 0.95)
                noise = float(found.energy.mean())
                first = first or noise
                print(
                    f"| {words} | {metric_interval(subject.metric, found.statistics).value:.1f} | {lost.value:.1f} "
                    f"({lost.low:.1f} to {lost.high:.1f}) | {noise / first:.2f} | {time.monotonic() - begin:.0f} |",
                    flush=True,
                )
        print()


if __name__ == "__main__":
    main()
