"""Profiles of layers side by side: Figures 3 and 4 of the layer-wise paper, on the networks of ``shared/zoo``.

    PYTHONPATH=shared python examples/figure_3_4_profiles.py [--samples 500] [--bits 3,4,8] [--out profiles]

Figure 3 puts networks of one architecture beside each other, each trained on its own (CIFAR ResNets of three
depths), and two MobileNets of which no layer is the other's. Figure 4 holds a network against itself equalized:
other weights, the same float output. What is analyzed stays in ``--out``; a page for each figure is written there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import quantopsy as qp
from quantopsy.cli.arguments import parse_bits
from quantopsy.transforms.equalization import find_equalization


@dataclass(frozen=True)
class Network:
    """A network of the zoo, its images, and whether its weights are equalized first."""

    name: str
    data: str
    calibration: str
    equalized: bool = False


RESNETS = [Network(f"resnet{depth}", "cifar10_test", "cifar10_train") for depth in (20, 32, 56)]
V1 = Network("mobilenet_v1_025", "imagenet_val", "imagenet_sample")
V2 = Network("mobilenet_v2_10", "imagenette_val", "imagenette_train")
EQUALIZED = Network("mobilenet_v2_10", "imagenette_val", "imagenette_train", equalized=True)

FIGURES = {"figure_3_resnets": RESNETS, "figure_3_mobilenets": [V2, V1], "figure_4": [V2, EQUALIZED]}


def main() -> None:
    """Analyze what is not there yet; print what the figures show, and write their pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--bits", default="3,4,8")
    parser.add_argument("--out", type=Path, default=Path("profiles"))
    arguments = parser.parse_args()
    bits = parse_bits(arguments.bits)
    studies = {
        network: _analyzed(network, bits, arguments.samples, arguments.out)
        for network in dict.fromkeys(network for networks in FIGURES.values() for network in networks)
    }
    print("network                 bits  worst layer                    first   last   depthwise  others (SQNR, dB)")
    for study in studies.values():
        for width in bits:
            print(_positions(study, width))
    for name, networks in FIGURES.items():
        for width in bits:
            found = qp.compare(*(studies[network] for network in networks), bits=width)
            print(f"\n{name}, {width} bits: {found.report(arguments.out / f'{name}_{width}.html')}")
            for sentence in found.words():
                print(f"  {sentence.replace('`', '')}")


def _analyzed(network: Network, bits: tuple[int, ...], samples: int, out: Path) -> qp.Study:
    print(f"{network.name}{' equalized' if network.equalized else ''} ...", flush=True)
    return qp.analyze(
        _equalized(network) if network.equalized else f"zoo:{network.name}",
        f"zoo:{network.name}_on_{network.data}",
        calibration=f"zoo:{network.name}_on_{network.calibration}",
        bits=bits,
        samples=samples,
        calibration_samples=128,
        mode="exact",
        out=out / f"{network.name}{'_equalized' if network.equalized else ''}",
    )


def _equalized(network: Network) -> nn.Module:
    """The network with ten sweeps of cross-layer equalization."""
    import zoo

    images = zoo.images(network.name, network.data, 2)
    captured = qp.capture(zoo.network(network.name), (torch.stack([images[0][0], images[1][0]]),))
    return find_equalization(captured, sweeps=10).apply(captured).module()


def _positions(study: qp.Study, bits: int) -> str:
    """Where the worst, the first and the last layer with weights stand, and depthwise ones beside the others."""
    layers = study.layers()
    cells = study.frame().query("bits == @bits").set_index("layer")
    weighted = layers[layers["weight_shape"].notna()]
    noisy = cells.loc[weighted["layer"], "noise"].rank(ascending=False).astype(int)
    depthwise = weighted["weight_shape"].map(lambda shape: shape[0] > 1 and shape[1] == 1)
    sqnr = cells.loc[weighted["layer"], "sqnr_db"]
    worst = cells.loc[cells["degradation"].idxmax()]

    def middle(which: pd.Series) -> str:
        return f"{sqnr[which.to_numpy()].median():.1f}" if which.any() else "-"

    return (
        f"{study.folder.name:22}  {bits:4}  {worst['name']:22} {worst['degradation']:5.1f}  "
        f"{noisy.iloc[0]:3} of {len(noisy):2} {noisy.iloc[-1]:3}  {middle(depthwise):>9}  {middle(~depthwise):>6}"
    )


if __name__ == "__main__":
    main()
