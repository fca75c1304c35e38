"""Table 1 and Figure 8 of the practical approach on the networks of ``shared/zoo``.

    PYTHONPATH=shared python examples/table_1_schemes.py [--samples 500] [--out schemes]

The whole network with 8-bit weights and activations under each scheme, a row per network as in the table. What is
measured stays in ``--out``, with a page for each network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import quantopsy as qp

NETWORKS = {
    "mobilenet_v1_025": ("imagenet_val", "imagenet_sample"),
    "mobilenet_v2_10": ("imagenette_val", "imagenette_train"),
    "efficientnet_lite0": ("imagenet_val", "imagenet_sample"),
    "squeezenet1_1": ("imagenet_val", "imagenet_sample"),
    "resnet20": ("cifar10_test", "cifar10_train"),
    "resnet56": ("cifar10_test", "cifar10_train"),
}
COLUMNS = ["asymmetric per tensor", "symmetric per channel", "asymmetric per channel", "activations only"]


def main() -> None:
    """Measure, and print the table: values in percent, what is certain to be lost marked with a star."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("schemes"))
    arguments = parser.parse_args()
    print(f"{'network':18}{''.join(f'{name:>24}' for name in COLUMNS)}{'float':>8}")
    for network, (data, calibration) in NETWORKS.items():
        found = qp.schemes(
            f"zoo:{network}",
            f"zoo:{network}_on_{data}",
            calibration=f"zoo:{network}_on_{calibration}",
            samples=arguments.samples,
            calibration_samples=128,
            out=arguments.out / network,
        )
        rows = found.frame().set_index("scheme")
        cells = [f"{rows['value'][name]:.1f}{'*' if rows['verdict'][name] == 'hurts' else ' '}" for name in COLUMNS]
        print(f"{network:18}{''.join(f'{cell:>24}' for cell in cells)}{found.table.float_value:8.1f}", flush=True)
        for sentence in found.words()[2:]:
            print(f"    {sentence}")


if __name__ == "__main__":
    main()
