"""The optimizers of a training: weights, what grids learn, and gates, each at its own rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from quantopsy.training.network import TrainableNetwork

GATE_RATE = 1e-8
"""Of gates, which start as far from closing: one gradient against them and they close (DDQ, section 4)."""

RELATIVE = {"scale": 1.0, "offset": 1.0, "levels": 1.0}
"""Rates of what grids learn, relative to the weights'."""


def optimizers(network: TrainableNetwork, rate: float, decay: float) -> list[torch.optim.Optimizer]:
    """SGD with momentum 0.9 for weights, biases and grids, and plain SGD for gates.

    ``decay`` of weights only; step sizes and levels are no weights that should shrink.
    """
    by_group: dict[str, list[nn.Parameter]] = {}
    for quantizer in network.quantizers:
        for name, parameters in quantizer.rate_groups().items():
            by_group.setdefault(name, []).extend(parameters)
    gates = by_group.pop("gates", [])
    learned = {id(parameter) for group in (*by_group.values(), gates) for parameter in group}
    others = [parameter for parameter in network.parameters() if id(parameter) not in learned]
    weights = [parameter for parameter in others if parameter.dim() > 1]
    groups = [
        {"params": weights, "lr": rate, "weight_decay": decay},
        {"params": [parameter for parameter in others if parameter.dim() <= 1], "lr": rate},
        *({"params": found, "lr": rate * RELATIVE[name]} for name, found in by_group.items()),
    ]
    made: list[torch.optim.Optimizer] = [
        torch.optim.SGD([group for group in groups if group["params"]], lr=rate, momentum=0.9, nesterov=True)
    ]
    if gates:
        made.append(torch.optim.SGD(gates, lr=GATE_RATE))
    return made


def set_rates(made: Sequence[torch.optim.Optimizer], share: float, warm_up: float) -> None:
    """Rates at ``share`` (0 to 1) of the training: up in a line over ``warm_up``, then down as a cosine to 0.

    Those of gates stay.
    """
    factor = min(share / warm_up, 1.0) if warm_up else 1.0
    if share > warm_up:
        factor = 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))
    for group in made[0].param_groups:
        group.setdefault("start", group["lr"])
        group["lr"] = group["start"] * factor
