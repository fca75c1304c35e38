"""The optimizers of a training: weights, what grids learn, and gates, each at its own rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from quantopsy.training.network import TrainableNetwork

RELATIVE = {"scale": 1.0, "offset": 1.0, "levels": 3.0}
"""Rates of what grids learn, relative to the weights'. Of levels by the training loss of resnet20 with 2 bits behind
four epochs: 1.43 at 1, 1.29 at 3, 1.40 at 10, 2.5 at 30 (1.45 with LSQ)."""


def optimizers(network: TrainableNetwork, rate: float, decay: float, gates: float = 0.0) -> list[torch.optim.Optimizer]:
    """SGD with momentum 0.9 for weights, biases and grids, and plain SGD for gates.

    ``decay`` of weights only; step sizes and levels are no weights that should shrink. ``gates`` is the rate of gates.
    """
    by_group: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()  # gates may be shared
    for quantizer in network.quantizers:
        for name, parameters in quantizer.rate_groups().items():
            new = [parameter for parameter in parameters if id(parameter) not in seen]
            by_group.setdefault(name, []).extend(new)
            seen.update(map(id, new))
    switches = by_group.pop("gates", [])
    learned = {id(parameter) for group in (*by_group.values(), switches) for parameter in group}
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
    if switches:
        made.append(torch.optim.SGD(switches, lr=gates))
    return made


def set_rates(optimizer: torch.optim.Optimizer, share: float, warm_up: float) -> None:
    """Rates at ``share`` (0 to 1) of the training: up in a line over ``warm_up``, then down as a cosine to 0."""
    factor = min(share / warm_up, 1.0) if warm_up else 1.0
    if share > warm_up:
        factor = 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))
    for group in optimizer.param_groups:
        group.setdefault("start", group["lr"])
        group["lr"] = group["start"] * factor
