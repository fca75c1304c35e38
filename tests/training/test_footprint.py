"""Equations (6) and (7) of DDQ: what bit-widths take, and the price of too many."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantopsy.calibrate import fit
from quantopsy.core import QuantopsyError, Spec
from quantopsy.training.footprint import Footprint, Limit, Part, share_gates
from quantopsy.training.quantizers import METHODS, trainable
from quantopsy.training.quantizers.ddq import DDQ
from quantopsy.training.quantizers.gates import Gates


def gates(bits: int, opened: int, minimum: int = 2) -> Gates:
    made = Gates(bits, minimum)
    with torch.no_grad():
        made.logits[opened:] = -0.5
    return made


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(2, 8), st.integers(2, 8)), min_size=1, max_size=5))
def test_is_the_sum_over_layers(layers: list[tuple[int, int, int]]) -> None:
    layers = [(elements, bits, min(opened, bits)) for elements, bits, opened in layers]
    parts = tuple(Part(elements, gates(bits, opened)) for elements, bits, opened in layers)
    assert Footprint(parts)().item() == sum(elements * opened for elements, _, opened in layers)
    assert Footprint(parts).total == sum(elements * opened for elements, _, opened in layers)
    assert Footprint(parts, "levels")().item() == sum(elements * 2**opened for elements, _, opened in layers)
    fixed = tuple(Part(elements, opened) for elements, _, opened in layers)
    for form in ("bits", "levels"):
        assert Footprint(fixed, form)().item() == Footprint(parts, form)().item()


@pytest.mark.parametrize("form", ["bits", "levels"])
def test_price_is_the_weighted_product_and_moves_gates_down(form: str) -> None:
    first, second = gates(4, 4), gates(4, 4)
    footprint = Footprint((Part(100, first), Part(300, second), Part(50, 4)), form)
    limit = Limit(footprint, 3.5)
    weigh = (lambda s: s) if form == "bits" else (lambda s: 2**s)
    target, now = 450 * weigh(3.5), 450 * weigh(4)
    price = limit.price()
    assert price.item() == pytest.approx((target / now) ** -0.02)
    assert price > 1
    price.backward()
    slope = 0.02 * price.item() / now * (1 if form == "bits" else math.log(2) * 2**4)
    for own, elements in ((first, 100), (second, 300)):
        assert own.logits.grad is not None
        assert own.logits.grad.tolist() == pytest.approx([0, 0, 0, slope * elements], rel=1e-5)
    assert not limit.met


def test_price_is_one_where_the_limit_is_met() -> None:
    limit = Limit(Footprint((Part(100, gates(4, 3)),)), 3.0)
    assert limit.met
    assert float(limit.price()) == 1
    assert not limit.price().requires_grad


def test_limits_are_read() -> None:
    footprint = Footprint((Part(1000, gates(8, 8)), Part(3000, gates(8, 8))))
    assert Limit.parse("4bits", footprint).average == 4
    assert Limit.parse("3.5 bit", footprint).average == 3.5
    assert Limit.parse("0.125x", footprint).average == 4
    assert Limit.parse("2KB", footprint).average == 4
    assert Limit.parse("2KB", footprint).target == 16000
    assert Limit.parse("4bits", Footprint(footprint.parts, "levels")).target == 4000 * 16
    for text in ("", "4", "4 apples", "-1bits"):
        with pytest.raises(QuantopsyError, match="write 4bits"):
            Limit.parse(text, footprint)


def operations() -> tuple[Footprint, Gates, Gates, Gates]:
    """Of three layers, the first two reading one value, the last weight and its input fixed at 8 bits."""
    first, second, entering = gates(8, 6), gates(8, 8), gates(8, 5)
    parts = (Part(100, first, entering), Part(300, second, entering), Part(50, 8, 8))
    return Footprint(parts, resource="bitops"), first, second, entering


def test_operations_are_products_of_both_widths() -> None:
    footprint, first, second, entering = operations()
    assert footprint.total == footprint().item() == 100 * 6 * 5 + 300 * 8 * 5 + 50 * 64
    assert footprint.least.total == 100 * 4 + 300 * 4 + 50 * 64
    assert footprint.gates == (first, entering, second)
    for closing in footprint.gates:
        before, freed = footprint.total, footprint.freed(closing)[closing.bits]
        footprint().backward()
        assert closing.logits.grad is not None
        assert closing.logits.grad[closing.bits - 1].item() == freed
        with torch.no_grad():
            closing.logits[closing.bits - 1] = -0.5
        assert before - footprint.total == freed
        for other in footprint.gates:
            other.logits.grad = None


def test_limits_on_operations_are_read_as_allocation_reads_them() -> None:
    footprint, *_ = operations()
    assert Limit.parse("4bits", footprint).target == 4 * (100 * 8 + 300 * 8 + 50 * 8)
    assert Limit.parse("0.75x", footprint).target == 6 * (100 * 8 + 300 * 8 + 50 * 8)
    assert Limit.parse("14.4k", footprint).target == 14400
    assert Limit.parse("14400", footprint).target == 14400
    with pytest.raises(QuantopsyError, match=r"no number of BitOps; write"):
        Limit.parse("14KB", footprint)
    with pytest.raises(QuantopsyError, match=r"1\.333 \(4\.8K\) are the least"):
        Limit.parse("1bits", footprint)


def test_a_limit_that_no_widths_meet_is_refused_with_the_least_that_they_do() -> None:
    footprint = Footprint((Part(1000, gates(8, 8, minimum=3)), Part(1000, 8)))
    assert Limit(footprint, 5.5).target == 11000
    with pytest.raises(QuantopsyError, match=r"5 bits on average: 5\.5 \(1\.375 KB\) are the least"):
        Limit(footprint, 5)


def test_what_is_no_footprint_is_refused() -> None:
    with pytest.raises(QuantopsyError, match="levels"):
        Footprint((Part(1, 4),), "level")
    with pytest.raises(QuantopsyError, match="nothing"):
        Footprint(())


def mixed(bits: int, seed: int) -> DDQ:
    spec = METHODS["ddq"].start(Spec(bits=bits))
    x = torch.randn(9, generator=torch.Generator().manual_seed(seed))
    made = trainable("ddq", spec, fit(spec, x), "weight", mixed=True)
    assert isinstance(made, DDQ)
    return made


def test_shared_gates_move_together_and_count_each_site() -> None:
    one, other = mixed(4, 0), mixed(4, 1)
    share_gates((one, other))
    assert isinstance(one.gates, Gates)
    assert isinstance(other.gates, Gates)
    with torch.no_grad():
        one.gates.logits[-1] = -1
    assert one.bits == other.bits == 3
    Footprint((Part(10, one.gates), Part(5, other.gates)))().backward()
    assert one.gates.logits.grad is not None
    assert one.gates.logits.grad.tolist() == [0, 0, 15, 15]
    with pytest.raises(QuantopsyError, match="one spec"):
        share_gates((one, mixed(5, 2)))
