"""Why closed-form breakpoints lose on depthwise layers: relative squared error of weights.

    python benchmarks/pwlq_weight_error.py [NETWORK]

Mean over output channels of ||Q(w) - w||^2 / ||w||^2, per channel: uniform at 6 bits against piecewise at
4 (the same number of codes), for depthwise and for all other layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from quantopsy.calibrate import quantized_weight
from quantopsy.core import Spec
from quantopsy.graph.capture import capture

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
SPECS = {"uniform 6": Spec(bits=6, granularity="per_channel")} | {
    f"{name} 4": Spec("piecewise", 4, granularity="per_channel", options=(("breakpoint", name),))
    for name in ("pwg", "pwl", "pws")
}


def main() -> None:
    """Print a row for each kind of layer."""
    import zoo

    name = sys.argv[1] if len(sys.argv) > 1 else "mobilenet_v2_10"
    network = capture(zoo.network(name), (torch.randn(2, *zoo.NETWORKS[name]["input"]),))
    errors: dict[str, dict[str, list[torch.Tensor]]] = {"depthwise": {}, "other": {}}
    for layer in network.layers:
        weight = network.weight(layer)
        if weight is None:
            continue
        kind = errors["depthwise" if layer.groups > 1 else "other"]
        energy = weight.double().square().flatten(1).sum(1).clamp(min=1e-30)
        for label, spec in SPECS.items():
            difference = (quantized_weight(spec, weight) - weight).double()
            kind.setdefault(label, []).append(difference.square().flatten(1).sum(1) / energy)
    for kind, found in errors.items():
        print(f"{kind:10}", *(f"{label} {torch.cat(parts).mean():.2e}  " for label, parts in found.items()))


if __name__ == "__main__":
    main()
