"""Changes of images: drawn from the generator alone, and never where a label map would be parted from its picture."""

from __future__ import annotations

import pytest
import torch
from learning import pictures

from quantopsy.core import QuantopsyError
from quantopsy.training.augment import augmented, chosen


def drawn(name: str, seed: int = 0) -> torch.Tensor:
    return augmented(pictures(0, 16), name, torch.Generator().manual_seed(seed))


def test_each_image_is_itself_or_its_mirror_image() -> None:
    x, y = pictures(0, 16), drawn("flip")
    mirrored = [torch.equal(b, a.flip(2)) for a, b in zip(x, y, strict=True)]
    same = [torch.equal(b, a) for a, b in zip(x, y, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)


def test_the_same_generator_draws_the_same() -> None:
    assert torch.equal(drawn("flip+shift"), drawn("flip+shift"))
    assert not torch.equal(drawn("flip+shift"), drawn("flip+shift", seed=1))
    assert drawn("flip+shift").shape == (16, 3, 12, 12)


def test_none_leaves_them_alone() -> None:
    assert torch.equal(drawn("none"), pictures(0, 16))


def test_a_number_that_is_no_class_may_be_another_of_the_mirrored_picture() -> None:
    angles = torch.zeros(2)
    assert chosen("auto", (torch.zeros(2, 3, 8, 8),), angles) == "none"
    assert chosen("flip", (torch.zeros(2, 3, 8, 8),), angles) == "flip"


def test_label_maps_stay_with_their_pictures() -> None:
    x, maps = (torch.zeros(2, 3, 8, 8),), torch.zeros(2, 8, 8)
    assert chosen("auto", x, torch.zeros(2, dtype=torch.long)) == chosen("auto", x, None) == "flip+shift"
    assert chosen("auto", x, maps) == "none"
    with pytest.raises(QuantopsyError, match="no pictures with a label each"):
        chosen("flip", x, maps)
    with pytest.raises(QuantopsyError, match="flip"):
        chosen("flipp", x, None)
