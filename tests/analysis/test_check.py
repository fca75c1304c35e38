"""Before an analysis: what a check says is what the analysis then finds."""

from __future__ import annotations

import numpy as np
import pytest
import sample_models
import torch
from torch import nn
from torch.utils.data import TensorDataset

import quantopsy as qp
from quantopsy.analysis.check import LOOKED_AT
from quantopsy.core import QuantopsyError
from quantopsy.metrics import TopK


@pytest.fixture(scope="module")
def checked():
    return qp.check(sample_models.network(), sample_models.data())


def test_the_float_metric_is_that_of_the_model(checked) -> None:
    x, y = sample_models.data().tensors
    with torch.no_grad():
        right = (sample_models.network()(x).argmax(1) == y).double()
    assert checked.value.value == pytest.approx(100 * float(right.mean()))
    assert checked.value.low < checked.value.value < checked.value.high
    assert (checked.classes, checked.chance, checked.at_chance) == (5, 20.0, None)


def test_inputs_are_described_by_channel(checked) -> None:
    (values,) = checked.inputs
    x = sample_models.data().tensors[0].double().numpy()
    assert values.shape == x.shape[1:]
    assert (values.low, values.high) == (x.min(), x.max())
    np.testing.assert_allclose(values.mean, x.mean((0, 2, 3)))
    np.testing.assert_allclose(values.std, x.std((0, 2, 3)))


def test_operations_are_the_layers_of_the_study(checked) -> None:
    layers = qp.analyze(sample_models.network(), sample_models.data(), bits=8, mode="screen").layers()
    found = checked.operations().set_index("op")
    assert found["layers"].to_dict() == layers["op"].value_counts().to_dict()
    assert found["parameters"].to_dict() == layers.groupby("op")["parameters"].sum().to_dict()
    assert found["macs_share"].sum() == pytest.approx(checked.network.coverage["macs_share"])


def test_what_an_exact_sweep_takes_grows_with_bit_widths_by_the_layers_that_have_weights(checked) -> None:
    model, data = sample_models.network(), sample_models.data()
    costs = [qp.check(model, data, bits=range(8, 8 - many, -1)).passes["exact"] for many in (1, 2, 3)]
    steps = np.diff(costs)
    assert steps[0] == pytest.approx(steps[1])
    assert 0 < steps[0] <= costs[0]


def test_few_images_are_run_of_many() -> None:
    looked_at = []

    class Watched(TensorDataset):
        def __getitem__(self, index):
            looked_at.append(int(index))
            return super().__getitem__(index)

    data = Watched(*(tensor.repeat(10, *[1] * (tensor.dim() - 1)) for tensor in sample_models.data().tensors))
    checked = qp.check(sample_models.network(), data)
    assert (checked.images, checked.looked_at) == (400, LOOKED_AT)
    assert len(set(looked_at)) < LOOKED_AT + 20  # a few more tell one data set from another
    few = qp.check(sample_models.network(), data, samples=10)
    assert few.looked_at == 10
    assert few.gib == checked.gib  # of an analysis of all images


def test_a_network_that_guesses_is_told() -> None:
    checked = qp.check(sample_models.network(), sample_models.random_labels())
    assert "guessing among 5 classes (20)" in checked.at_chance
    assert checked.chance == 20.0
    assert isinstance(checked.metric, TopK)


def test_what_stays_float_is_listed() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.cumsum(self.conv(x), 1).mean((2, 3))

    checked = qp.check(Sorted(), sample_models.unlabelled())
    assert [item.operator for item in checked.network.unquantized] == ["aten.cumsum.default"]
    assert checked.chance is None


def test_what_stops_an_analysis_stops_the_check() -> None:
    with pytest.raises(QuantopsyError, match="NaN"):
        qp.check(sample_models.network(), sample_models.nan_data())
    with pytest.raises(QuantopsyError, match="nearest"):
        qp.check(sample_models.network(), sample_models.data(), sample=10)
