"""Figures 1b, 5 and 6 of the layer-wise paper, and what its section 4.2 does about them, on networks of ``shared/zoo``.

    PYTHONPATH=shared python examples/figure_1_5_6_post_mortem.py [--samples 500] [--out post_mortem]

Figure 1b is the profile of a ResNet; Figure 5 that of a network of which one layer makes nearly all of the
degradation, Figure 6 the weights of that layer with the ends of its grid. Then the whole network as it is, with clipped
weights (SAWB) everywhere, with clipped weights in that layer, and with scales per channel in that layer. What is
analyzed stays in ``--out``; the figures are written there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import quantopsy as qp
from quantopsy.report.figures import layer_bars, weight_histogram

RESNET = ("resnet20", "cifar10_test", "cifar10_train", 4)
MOBILENET = ("mobilenet_v2_10", "imagenette_val", "imagenette_train", 8)
CLIPPED = {"range_estimator": "sawb"}
PER_CHANNEL = {"granularity": "per_channel", "symmetric": True, "signed": True}


def main() -> None:
    """Analyze what is not there yet, print what the figures show, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("post_mortem"))
    arguments = parser.parse_args()

    def analyzed(of: tuple[str, str, str, int], folder: str, **settings: Any) -> qp.Study:
        network, data, calibration, bits = of
        return qp.analyze(
            f"zoo:{network}",
            f"zoo:{network}_on_{data}",
            calibration=f"zoo:{network}_on_{calibration}",
            calibration_samples=128,
            bits=(bits,),
            samples=arguments.samples,
            out=arguments.out / folder,
            **settings,
        )

    figures = []
    for name, of in (("Figure 1b", RESNET), ("Figure 5", MOBILENET)):
        study = analyzed(of, of[0], mode="exact")
        cells = study.frame().sort_values("degradation", ascending=False)
        worst, total = cells.iloc[0], study.whole()["degradation"].iloc[0]
        print(f"{name}, {of[0]} at {of[3]} bits: the whole network loses {total:.1f} points, the worst layers alone")
        print(cells[["name", "degradation", "degradation_low", "degradation_high", "noise"]].head(4).to_string())
        figures.append(layer_bars(study.results, of[3]).update_layout(title=f"{name}: {of[0]}, {of[3]} bits"))
    figures.append(weight_histogram(study.results, worst["name"]))

    print(f"\n{MOBILENET[0]} as a whole, {study.results.metric} in float {study.results.float_value:.1f}")
    for words, folder, settings in (
        ("as it is", "mobilenet_v2_10", None),
        ("SAWB everywhere", "sawb", {"changes": {"weight": CLIPPED}}),
        (f"SAWB at {worst['name']}", "sawb_there", {"plan": {"layers": {worst["name"]: {"weight": CLIPPED}}}}),
        (
            f"per channel at {worst['name']}",
            "channels_there",
            {"plan": {"layers": {worst["name"]: {"weight": PER_CHANNEL}}}},
        ),
    ):
        found = (
            study
            if settings is None
            else analyzed(MOBILENET, folder, layers=(worst["name"],), mode="exact", **settings)
        )
        row = found.whole().iloc[0]
        print(f"  {words:36} {row['value']:5.1f}  ({row['degradation_low']:.1f} to {row['degradation_high']:.1f} lost)")
    page = arguments.out / "figures.html"
    page.write_text("".join(f.to_html(full_html=False, include_plotlyjs=n == 0) for n, f in enumerate(figures)))
    print(f"\n{page}")


if __name__ == "__main__":
    main()
