"""Tensors are kept while there is room, and made again where there was none."""

from __future__ import annotations

import pytest
import torch

from quantopsy.engine.tensor_cache import TensorCache


class Maker:
    """Makes float32 tensors of so many elements, and counts."""

    def __init__(self, elements: int) -> None:
        self.elements, self.made = elements, 0

    def __call__(self) -> torch.Tensor:
        self.made += 1
        return torch.full((self.elements,), float(self.made))


def test_what_is_kept_is_made_once_and_is_the_same_tensor() -> None:
    cache, maker = TensorCache[str](100), Maker(25)
    first = cache.get("a", maker)
    assert cache.get("a", maker) is first
    assert maker.made == 1


def test_keys_have_tensors_of_their_own() -> None:
    cache, maker = TensorCache[tuple[str, int]](1000), Maker(1)
    assert [cache.get(key, maker).item() for key in (("a", 1), ("a", 2), ("a", 1))] == [1.0, 2.0, 1.0]


def test_what_has_no_room_is_made_every_time_and_displaces_nothing() -> None:
    cache, small, large = TensorCache[str](100), Maker(10), Maker(16)
    kept = cache.get("small", small)
    for times in (1, 2):
        assert cache.get("large", large).shape == (16,)
        assert large.made == times
    assert cache.get("small", small) is kept
    assert cache.get("fits", Maker(15)) is cache.get("fits", Maker(15))


def test_what_cannot_be_made_is_not_kept() -> None:
    def failing() -> torch.Tensor:
        raise ValueError("no range")

    cache = TensorCache[str](100)
    with pytest.raises(ValueError, match="no range"):
        cache.get("a", failing)
    assert cache.get("a", Maker(1)).item() == 1.0


def test_what_an_inference_pass_asked_for_first_takes_part_in_gradients() -> None:
    cache = TensorCache[str](100)
    with torch.inference_mode():
        cache.get("a", lambda: torch.ones(3) * 2)
    x = torch.ones(3, requires_grad=True)
    (x * cache.get("a", Maker(3))).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 2.0]
    assert not cache.get("b", lambda: x * 2).requires_grad
