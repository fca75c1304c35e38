"""Where a value holds its images is read off what one of them gives alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantopsy.graph.images import ImageAxis, image_axis

X = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))  # images, positions, channels


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: x, ImageAxis(0, 1)),
        (lambda x: x.reshape(-1, 5), ImageAxis(0, 6)),
        (lambda x: x.reshape(-1, 3, 5), ImageAxis(0, 2)),
        (lambda x: x.transpose(0, 1), ImageAxis(1, 1)),
        (lambda x: x.permute(1, 2, 0), ImageAxis(2, 1)),
        (lambda x: x > 0, ImageAxis(0, 1)),
        (lambda x: torch.ones(3, 4), ImageAxis(0, 0)),
        (lambda x: torch.tensor(2.0), ImageAxis(0, 0)),
        (lambda x: x.where(x > 0, -torch.inf), ImageAxis(0, 1)),
        (lambda x: x.transpose(0, 1).reshape(-1, 5), ImageAxis(0, 6, apart=True)),
        (lambda x: x.permute(2, 1, 0).flatten(1), ImageAxis(1, 6, apart=True)),
        (lambda x: x - x.mean(0), None),
        (lambda x: x.mean(0), None),
        (lambda x: x.flatten(1) @ x.flatten(1).T, None),
    ],
)
def test_images_are_found_or_cannot_be_told_apart(make, expected: ImageAxis | None) -> None:
    many: Tensor = make(X)
    assert image_axis(many, make(X[:1]), len(X)) == expected
    if expected is not None and expected.rows:
        rows = expected.first(many).reshape(len(X), -1)
        for image, own in zip(X, rows, strict=True):
            assert torch.equal(expected.first(make(image[None])).reshape(-1), own)


def test_one_image_has_all_there_is() -> None:
    assert image_axis(X[:1].reshape(-1, 5), X[:1].reshape(-1, 5), 1) == ImageAxis(0, 6)
