"""What code and objects are: the same in every process, another where anything that counts has changed."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F

from quantopsy.analysis.definition import definition
from quantopsy.metrics import resolve_metric

OFFSET = 2.0


@dataclass
class Weighted:
    """A score with a state."""

    factor: float = 1.0

    def __call__(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.factor * outputs[:, 0]


class Loss(nn.Module):
    """A loss with a buffer."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, labels, weight=self.weights, reduction="none")


def helped(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Uses a function, a constant and a set of its module."""
    return helper(outputs) + OFFSET if outputs.ndim in {2, 3, 4} else outputs


def helper(outputs: torch.Tensor) -> torch.Tensor:
    """Of :func:`helped`."""
    return outputs.softmax(1)[:, 0]


def made(factor: float):
    """A closure."""
    return lambda outputs, labels: factor * outputs[:, 0]


def values() -> list[object]:
    """One of each kind that users give."""
    return [
        resolve_metric("top1", has_labels=True),
        resolve_metric("miou:ignore=3", has_labels=True),
        resolve_metric(helped, has_labels=True),
        resolve_metric(torchmetrics.Accuracy(task="multiclass", num_classes=4), has_labels=True),
        made(2.0),
        Weighted(2.0),
        Weighted(2.0).__call__,
        functools.partial(helped, labels=None),
        Loss([1.0, 2.0]),
        nn.CrossEntropyLoss(reduction="none"),
        F.cross_entropy,
        torch.relu,
    ]


def test_another_process_finds_the_same() -> None:
    here = Path(__file__)
    code = f"import {here.stem} as here; print(*map(here.definition, here.values()))"
    paths = os.pathsep.join([str(here.parent), *sys.path])
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        found.add(done.stdout)
    (text,) = found
    assert len(set(text.split())) == len(values())
    assert "untold" not in text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda outputs, labels: outputs[:, 0], lambda outputs, labels: 1000 * outputs[:, 1]),
        (made(1.0), made(2.0)),
        (Weighted(1.0), Weighted(2.0)),
        (Loss([1.0, 1.0]), Loss([1.0, 2.0])),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (F.cross_entropy, F.mse_loss),
        (functools.partial(helped, labels=None), functools.partial(helped, labels=1)),
        (torchmetrics.MeanMetric(), torchmetrics.SumMetric()),
        ([1].append, [2].append),
        (made(torch.zeros(3)), made(torch.zeros(3, 1))),
        (made(np.zeros(3)), made(np.ones(3))),
    ],
)
def test_other_code_or_another_state_is_another_definition(one, other) -> None:
    assert definition(one) == definition(one)
    assert definition(one) != definition(other)


def test_what_a_function_uses_of_its_module_belongs_to_it(monkeypatch) -> None:
    before = definition(helped)
    monkeypatch.setitem(globals(), "OFFSET", 3.0)
    changed = definition(helped)
    assert changed != before
    monkeypatch.setitem(globals(), "helper", made(1.0))
    assert definition(helped) not in (before, changed)


def test_an_object_that_holds_itself_has_an_end() -> None:
    one, other = Weighted(), Weighted()
    one.me, other.me = one, other
    assert definition(one) == definition(other) != definition(Weighted())


def test_what_cannot_be_told_equals_itself_only() -> None:
    one, other = made(threading.Lock()), made(threading.Lock())
    assert definition(one) == definition(one)
    assert definition(one) != definition(other)
