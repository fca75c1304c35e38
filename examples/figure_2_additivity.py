"""Figures 2 and 9 of the layer-wise paper: sums of single layers against whole networks, where they hold and where not.

    python examples/figure_2_additivity.py [--only NAME] [--samples N] [--subsets 24] [--out additivity]

Reads networks and images from the zoo: the folder that QUANTOPSY_ZOO names, or ../shared/zoo beside the repository.
Writes a study for each network, which a second run goes on from, and additivity.html with all figures.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import quantopsy as qp
from quantopsy.report.additivity import additivity_section
from quantopsy.report.figures import chart

ZOO = Path(os.environ.get("QUANTOPSY_ZOO", Path(__file__).parents[2] / "shared" / "zoo"))


@dataclass(frozen=True)
class Case:
    """A network, its images, and the bit-widths between which its layers are mixed."""

    network: str
    data: str
    calibration: str
    low: int
    high: int


CASES = {
    "figure 2": Case("resnet20", "cifar10_test", "cifar10_train", 4, 8),
    # Per-tensor weights at 8 bits are to these what 4 bits are to a ResNet: the others stay at 12.
    "figure 9, v1": Case("mobilenet_v1_025", "imagenet_val", "imagenet_sample", 8, 12),
    "figure 9, v2": Case("mobilenet_v2_10", "imagenette_val", "imagenette_train", 8, 12),
}


def measured(case: Case, folder: Path, samples: int | None, subsets: int) -> qp.Study:
    """The study of ``case`` with its single layers, screened and run, and random subsets of them."""
    for mode in ("screen", "exact"):  # the screen for its cross terms
        qp.analyze(
            f"zoo:{case.network}",
            f"zoo:{case.network}_on_{case.data}",
            calibration=f"zoo:{case.network}_on_{case.calibration}",
            calibration_samples=256,
            bits=(case.low, case.high),
            mode=mode,
            samples=samples,
            out=folder,
        )
    return qp.additivity(folder, low=case.low, high=case.high, subsets=subsets)


def main() -> None:
    """Measure every case, say what came out, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES, help="one of the cases")
    parser.add_argument("--samples", type=int, help="fewer images")
    parser.add_argument("--subsets", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("additivity"))
    options = parser.parse_args()
    sys.path.insert(0, str(ZOO.parent))
    figures = []
    for name in [options.only] if options.only else CASES:
        case = CASES[name]
        study = measured(case, options.out / case.network, options.samples, options.subsets)
        section = additivity_section(study.results)
        assert section is not None
        print(f"\n{name}: {case.network}, weights at {case.low} bits among {case.high}")
        print("\n".join(f"  - {sentence}" for sentence in section.statements))
        for shown in section.charts:
            figure = chart(shown)
            figure.update_layout(title=f"{name}, {case.network}. {figure.layout.title.text}")
            figures.append(figure)
    page = options.out / "additivity.html"
    page.write_text("".join(f.to_html(full_html=False, include_plotlyjs=place == 0) for place, f in enumerate(figures)))
    print(f"\n{page}")


if __name__ == "__main__":
    main()
