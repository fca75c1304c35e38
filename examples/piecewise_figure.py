"""Figure 2 of PWLQ from a real weight: squared error against the breakpoint, b-bit piecewise and (b+2)-bit uniform.

    python examples/piecewise_figure.py [--network NAME] [--layer NAME] [--out piecewise.html]

Reads networks from the zoo: the folder that QUANTOPSY_ZOO names, or ../shared/zoo beside the repository.
Without --layer it takes the convolution with the most weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from torch import Tensor

from quantopsy.calibrate import fit
from quantopsy.core import Spec
from quantopsy.quant import PiecewiseQParams, fake_quantize
from quantopsy.quant.piecewise import from_breakpoint

ZOO = Path(os.environ.get("QUANTOPSY_ZOO", Path(__file__).parents[2] / "shared" / "zoo"))
BITS = (2, 4, 6)
COLOURS = ("#1b6ca8", "#c8553d", "#4d8b31")


@dataclass(frozen=True)
class Curve:
    """Mean squared errors of one weight: piecewise with ``bits`` a piece at each ``ratio`` p / m, its best
    breakpoint, and uniform with ``bits`` + 2."""

    bits: int
    ratio: list[float]
    piecewise: list[float]
    best_ratio: float
    best: float
    uniform: float


def curve(w: Tensor, bits: int) -> Curve:
    """The figure's data for the weight ``w``, one grid for all of it, as in the paper's figure."""
    m = w.abs().max()
    ratios = [k / 100 for k in range(2, 51)]

    def error(w_hat: Tensor) -> float:
        return float((w_hat - w).double().square().mean())

    errors = [error(fake_quantize(w, from_breakpoint(m, m * ratio, bits, signed=True))) for ratio in ratios]
    searched = fit(Spec(kind="piecewise", bits=bits), w)
    assert isinstance(searched, PiecewiseQParams)
    uniform = fit(Spec(bits=bits + 2, symmetric=True), w)
    return Curve(
        bits,
        ratios,
        errors,
        float(searched.breakpoint / searched.maximum),
        error(fake_quantize(w, searched)),
        error(fake_quantize(w, uniform)),
    )


def figure(curves: list[Curve], title: str) -> go.Figure:
    """Errors against p / m on a logarithmic scale; dashes are uniform, a cross the breakpoint of PWS."""
    drawn = go.Figure()
    for data, colour in zip(curves, COLOURS, strict=True):
        line, b = {"color": colour}, data.bits
        drawn.add_scatter(x=data.ratio, y=data.piecewise, name=f"piecewise {b}-bit", line=line)
        ends = [data.ratio[0], data.ratio[-1]]
        dashed = {**line, "dash": "dash"}
        drawn.add_scatter(x=ends, y=[data.uniform] * 2, name=f"uniform {b + 2}-bit", line=dashed, mode="lines")
        marker = {"symbol": "x", "size": 10, "color": colour}
        drawn.add_scatter(x=[data.best_ratio], y=[data.best], name=f"PWS {b}-bit", mode="markers", marker=marker)
    drawn.update_layout(
        title=title, xaxis_title="breakpoint p / m", yaxis_title="mean squared error", template="plotly_white"
    )
    drawn.update_yaxes(type="log", exponentformat="power")
    return drawn


def weight(network: str, layer: str | None) -> tuple[str, Tensor]:
    """(name, weight) of ``layer``, or of the largest convolution."""
    sys.path.insert(0, str(ZOO.parent))
    import zoo

    weights = {name: w for name, w in zoo.network(network).state_dict().items() if w.ndim == 4}
    name = layer or max(weights, key=lambda key: weights[key].numel())
    if name not in weights:
        raise SystemExit(f"{name}: no convolution weight of that name; there are {', '.join(weights)}")
    return name, weights[name]


def main() -> None:
    """Read the command line, write the page, print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network")
    parser.add_argument("--layer")
    parser.add_argument("--out", type=Path, default=Path("piecewise.html"))
    arguments = parser.parse_args()
    if not (ZOO / "networks.json").exists():
        raise SystemExit(f"{ZOO}: no zoo of networks there; set QUANTOPSY_ZOO to its folder")
    network = arguments.network or next(iter(json.loads((ZOO / "networks.json").read_text())))
    name, w = weight(network, arguments.layer)
    curves = [curve(w, bits) for bits in BITS]
    for data in curves:
        print(
            f"{data.bits}-bit piecewise {data.best:.3e} at p / m = {data.best_ratio:.3f}, "
            f"{data.bits + 2}-bit uniform {data.uniform:.3e}"
        )
    figure(curves, f"{network}, {name}").write_html(arguments.out, include_plotlyjs=True)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
