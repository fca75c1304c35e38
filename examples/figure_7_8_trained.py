"""Layers of a trained quantized network: Figures 7 and 8 of the layer-wise paper, on a network trained here.

    PYTHONPATH=shared python examples/figure_7_8_trained.py [--samples 1000] [--epochs 4] [--out trained_profiles]

`resnet20` is trained with quantized weights (4 bits) and activations (8). Figure 7: at the trained bits, on the trained
grids, noise is what it was, and degradation no longer follows it, because the float network is not what was trained.
Figure 8: at other bits, whose noise is independent of the training, it does again. What is analyzed stays in
``--out``; pages that hold the two networks against each other are written there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import quantopsy as qp

MODEL, DATA, EVALUATION = "zoo:resnet20", "zoo:resnet20_on_cifar10_train", "zoo:resnet20_on_cifar10_test"
TRAINED, OTHER = 4, 3

GRIDS = {
    "weight": {"symmetric": True, "signed": True, "range_estimator": "mse"},
    "input": {"range_estimator": "mse"},
    "output": {"range_estimator": "mse"},
}
"""Where training starts from, see :func:`quantopsy.training.start.usual_plan`."""


def main() -> None:
    """Train and analyze what is not there yet; print what the figures show, and write their pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--method", default="lsq")
    parser.add_argument("--out", type=Path, default=Path("trained_profiles"))
    arguments = parser.parse_args()
    folder = arguments.out / "training"
    training = qp.train(
        MODEL,
        DATA,
        evaluation=EVALUATION,
        out=folder,
        method=arguments.method,
        bits=TRAINED,
        edge_bits=0,
        norms="folded",  # grids stay those of the whole tensor, as before training
        epochs=arguments.epochs,
    )
    assert training is not None
    print("\n".join(training.words()))
    options = {"bits": (OTHER, TRAINED), "mode": "exact", "samples": arguments.samples}
    shared = {"calibration": DATA, "calibration_samples": 256}
    before = qp.analyze(MODEL, EVALUATION, out=arguments.out / "before", changes=GRIDS, **shared, **options)
    after = qp.analyze(folder, EVALUATION, out=arguments.out / "after", **shared, **options)
    for figure, bits in ((7, TRAINED), (8, OTHER)):
        print(f"\nFigure {figure}, {bits} bits")
        columns = {}
        for name, study in (("before", before), ("after", after)):
            cells = study.frame()
            columns[name] = cells[cells["bits"] == bits].sort_values("layer")
            noise, loss = columns[name]["noise"], columns[name]["degradation"]
            whole = study.whole().set_index("bits").loc[bits]
            follows = spearmanr(noise, loss).statistic
            print(
                f"  {name:<6} degradation follows noise by Spearman {follows:5.2f}; single layers lose "
                f"{loss.mean():5.2f} points on average, {loss.max():5.2f} at most; the whole {whole['degradation']:.1f}"
            )
        profiles = [np.log(columns[name]["noise"].to_numpy()) for name in ("before", "after")]
        print(f"  noise profiles of the two correlate by {np.corrcoef(*profiles)[0, 1]:.2f} (logarithms)")
        page = qp.compare(arguments.out / "before", arguments.out / "after", bits=bits)
        print(f"  {page.report(arguments.out / f'figure_{figure}.html')}")


if __name__ == "__main__":
    main()
