"""Figure 7 of the practical approach on networks of ``shared/zoo``: accuracy against the number of calibration images.

    PYTHONPATH=shared python examples/figure_7_calibration.py [--samples 330] [--out calibration]

Five random subsets of each size, and as many images selected by activation statistics. What is run stays in ``--out``,
with a page for each network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import quantopsy as qp

SIZES = (1, 4, 16, 64, 256)
NETWORKS = {
    "resnet20": ("cifar10_test", "cifar10_train", "per-tensor"),
    "mobilenet_v2_10": ("imagenette_val", "imagenette_train", "per-channel"),
}


def main() -> None:
    """Measure, and print the curve: median and extremes over subsets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=330)
    parser.add_argument("--out", type=Path, default=Path("calibration"))
    arguments = parser.parse_args()
    for network, (data, calibration, scheme) in NETWORKS.items():
        study = qp.check_calibration(
            f"zoo:{network}",
            f"zoo:{network}_on_{data}",
            f"zoo:{network}_on_{calibration}",
            scheme=scheme,
            samples=arguments.samples,
            calibration_samples=max(SIZES),
            sizes=SIZES,
            select=16,
            out=arguments.out / network,
        )
        assert study.selection is not None
        print(f"\n{network}, {scheme}, {study.metric} in float {study.float_value.value:.1f}: {study.verdict.kind}")
        run = study.growth[study.growth["value"].notna()]
        for size, draws in run[run["source"] == "calibration"].groupby("size"):
            value, noise = draws["value"], draws["noise"] / study.given.noise
            print(
                f"  {size:4} images: {value.median():5.1f} ({value.min():.1f} to {value.max():.1f}), "
                f"noise {noise.median():5.1f} times that of all ({noise.min():.1f} to {noise.max():.1f})"
            )
        chosen = study.selection.outcome
        print(f"  {chosen.images:4} selected: {chosen.value:4.1f}, noise {chosen.noise / study.given.noise:.1f}")


if __name__ == "__main__":
    main()
