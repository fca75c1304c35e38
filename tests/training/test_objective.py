"""Losses against torch's own."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from quantopsy.core import QuantopsyError
from quantopsy.training.objective import distillation_loss, label_loss, own_loss


def test_labels_of_images_and_of_pixels() -> None:
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.equal(label_loss(scores, labels), F.cross_entropy(scores, labels))
    maps, classes = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    assert torch.equal(label_loss({"out": maps}, classes), F.cross_entropy(maps, classes))


def test_a_label_that_is_no_class_is_left_out() -> None:
    maps, classes = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    marked = classes.clone()
    marked[0] = 11
    torch.testing.assert_close(label_loss(maps, marked), F.cross_entropy(maps[1:], classes[1:]))


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(QuantopsyError, match="--loss"):
        label_loss(torch.randn(2, 4), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("classes", "labels"),
    [(4, torch.rand(2)), (1, torch.rand(2)), (1, torch.tensor([0, 1])), (1, torch.tensor([7, 20]))],
)
def test_labels_of_a_regression_ask_for_a_loss(classes, labels) -> None:
    with pytest.raises(QuantopsyError, match="--loss"):
        label_loss(torch.randn(2, classes), labels)


def test_divergence_is_torch_s() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    wanted = F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(distillation_loss(student, teacher), wanted)
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-7)


def test_outputs_that_are_no_scores_are_compared_by_distance() -> None:
    student, teacher = torch.randn(6, 1), torch.randn(6, 1)
    wanted = F.mse_loss(student, teacher) / teacher.var(correction=0)
    torch.testing.assert_close(distillation_loss([student], [teacher]), wanted)


def test_a_single_number_is_compared_by_its_square() -> None:
    found = distillation_loss(torch.tensor([[3.0]]), torch.tensor([[2.0]]))
    assert float(found) == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda outputs, labels: outputs.scores, "it failed (AttributeError"),
        (lambda outputs, labels: 3.0, "it gave float"),
        (lambda outputs, labels: outputs.detach().sum(1), "it gave torch.float32 without a gradient"),
    ],
)
def test_a_loss_that_fails_is_told_of(loss, said) -> None:
    outputs, labels = torch.randn(4, 5, requires_grad=True), torch.arange(4)
    with pytest.raises(QuantopsyError, match=re.escape(said)):
        own_loss(loss, outputs, labels)


def test_an_own_loss_is_averaged() -> None:
    outputs = torch.randn(4, 5, requires_grad=True)
    found = own_loss(lambda outputs, labels: outputs.square().sum(1), outputs, torch.arange(4))
    assert torch.equal(found, outputs.square().sum(1).mean())
