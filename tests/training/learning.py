"""A network that can be trained in seconds: pictures labelled by a float network, and where its training starts."""

from __future__ import annotations

import torch
from small_net import SmallNet, randomise_norms
from torch import Tensor
from torch.utils.data import TensorDataset

from quantopsy.analysis.progress import Silent
from quantopsy.graph.execute import Program, compile_network
from quantopsy.training.settings import TrainingSettings
from quantopsy.training.start import Start, ready


def network() -> SmallNet:
    """A :class:`SmallNet` with fixed weights whose five classes are about as frequent."""
    torch.manual_seed(3)
    module = randomise_norms(SmallNet())
    with torch.no_grad():
        y = module(pictures(0, 200))
        module.head.weight /= y.std(0).reshape(-1, 1)
        module.head.bias.copy_((module.head.bias - y.mean(0)) / y.std(0))
    return module.eval()


def other_network() -> torch.nn.Module:
    """Another architecture for the same images."""
    torch.manual_seed(0)
    head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 5))
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), *head).eval()


def pictures(seed: int, count: int) -> Tensor:
    """Smooth random images, 3 x 12 x 12."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.avg_pool2d(torch.randn(count, 3, 12, 12, generator=generator), 3, 1, 1)
    return 2 * x + torch.randn(count, 3, 1, 1, generator=generator)


def images(seed: int, count: int) -> TensorDataset:
    """Pictures with the class that the float network gives them."""
    x = pictures(seed, count)
    with torch.no_grad():
        return TensorDataset(x, network()(x).argmax(1))


def training() -> TensorDataset:
    """To train on."""
    return images(1, 240)


def evaluation() -> TensorDataset:
    """To measure on."""
    return images(2, 160)


def started(**settings: object) -> tuple[Start, Program]:
    """A start at 4 bits, and its network compiled."""
    chosen = TrainingSettings(**{"bits": 4, "activation_bits": 4, "calibration_samples": 32, **settings})
    start = ready(network(), training(), chosen, Silent(), evaluation=evaluation())
    return start, compile_network(start.network)
