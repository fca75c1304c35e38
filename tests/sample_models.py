"""Networks, data and metrics that tests name as package.module:callable."""

from __future__ import annotations

import torch
from small_net import SmallNet, randomise_norms
from torch import nn
from torch.utils.data import TensorDataset

COUNT = 40


def network() -> nn.Module:
    """A fixed small network."""
    torch.manual_seed(0)
    return randomise_norms(SmallNet())


def other_network() -> nn.Module:
    """The same with other weights."""
    torch.manual_seed(1)
    return randomise_norms(SmallNet())


def data() -> TensorDataset:
    """Images labelled with what the float network says, one in four wrongly."""
    x = torch.randn(COUNT, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = network()(x).argmax(1)
    labels[::4] = (labels[::4] + 1) % 5
    return TensorDataset(x, labels)


def many() -> TensorDataset:
    """As many images as deciding on one part and proving on another takes, labelled by the float network."""
    x = torch.randn(160, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return TensorDataset(x, network()(x).argmax(1))


def unlabelled() -> TensorDataset:
    """The images alone."""
    return TensorDataset(data().tensors[0])


def nan_data() -> TensorDataset:
    """The tenth image has a NaN."""
    x = data().tensors[0].clone()
    x[9, 0, 3, 3] = float("nan")
    return TensorDataset(x)


def wrong_shape() -> TensorDataset:
    """Images with one channel."""
    return TensorDataset(torch.randn(8, 1, 12, 12))


def high_labels() -> TensorDataset:
    """Labels that are no class of the network."""
    x, y = data().tensors
    return TensorDataset(x, y + 3)


def random_labels() -> TensorDataset:
    """Labels that have nothing to do with the images."""
    x, y = data().tensors
    return TensorDataset(x, torch.randint(0, 5, y.shape, generator=torch.Generator().manual_seed(5)))


def confidence(outputs: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """A score per image: the probability of the first class."""
    return outputs.softmax(1)[:, 0]


def failing_metric(outputs: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """A metric with a mistake."""
    raise KeyError("no such thing")


def failing_model() -> nn.Module:
    """A callable that fails."""
    raise RuntimeError("weights are missing")


def no_model() -> int:
    """No network at all."""
    return 3
