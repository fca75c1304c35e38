"""Tables of functions: exact at every code, and their inputs' grids miss nothing that matters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from quantopsy.core import QuantopsyError
from quantopsy.integer.codes import Codes
from quantopsy.integer.tables import identity, look_up, table, table_input
from quantopsy.quant import UniformQParams, fake_quantize

FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "elu": F.elu,
    "mish": F.mish,
}


def grid(low: float, high: float, bits: int = 8) -> UniformQParams:
    scale = (high - low) / (2**bits - 1)
    zero_point = torch.tensor(round(-low / scale), dtype=torch.int32)
    return UniformQParams(torch.tensor(scale), zero_point, 0, 2**bits - 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_table_of_256_entries_is_the_simulation_of_the_function(name: str) -> None:
    source, target = grid(-4.1, 5.3), grid(-0.4, 5.2)
    entries = table(FUNCTIONS[name], source, target)
    assert entries.shape == (256,)
    x = Codes(torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0)), source)
    expected = fake_quantize(FUNCTIONS[name](x.real), target)
    # A vector kernel and a scalar one may differ in the last bit, which a tie could show.
    assert float((look_up(x, entries, target).real - expected).abs().max()) <= float(target.scale) * 1.001
    assert float((look_up(x, entries, target).real == expected).double().mean()) > 0.99


def test_a_change_of_grids_is_a_table_too() -> None:
    source, target = grid(-1.0, 2.0), grid(-0.7, 3.0, bits=5)
    x = Codes(torch.arange(256), source)
    found = look_up(x, table(identity, source, target), target)
    assert torch.equal(found.real, fake_quantize(x.real, target))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bits", [8, 12, 16])
@settings(max_examples=15, deadline=None)
@given(st.floats(-1, 1), st.sampled_from([(-0.3, 0.9), (-0.4, 6.0), (-1.0, 1.0)]), st.sampled_from([3.0, 40.0, 5000.0]))
def test_looking_up_a_real_costs_no_more_than_half_a_step_of_the_tables_grid(name, bits, at, ends, reach) -> None:
    function, target = FUNCTIONS[name], grid(*ends)
    source = table_input(function, target, reach, bits)
    x = torch.tensor([at * reach, at * 0.01 * reach])
    found = look_up(Codes.of(x, source), table(function, source, target), target).codes
    half = float(source.scale) / 2
    near = [target.encode(function((x + part * half).clamp(-reach, reach))) for part in (-1, -0.5, 0, 0.5, 1)]
    lowest, highest = torch.stack(near).amin(0) - 1, torch.stack(near).amax(0) + 1
    assert bool(((found >= lowest) & (found <= highest)).all())


def test_the_grid_spans_no_more_than_where_the_result_changes() -> None:
    source = table_input(torch.sigmoid, grid(0.0, 1.0), 1e4, 8)
    low, high = source.decode(torch.tensor([source.qmin, source.qmax])).tolist()
    edge = float(torch.logit(torch.tensor(0.5 / 255)))  # below it the code is 0
    assert low == pytest.approx(edge, abs=0.1)
    assert high == pytest.approx(-edge, abs=0.1)
    # What the accumulators cannot reach needs no entry.
    narrow = table_input(torch.sigmoid, grid(0.0, 1.0), 2.0, 8)
    assert float(narrow.decode(torch.tensor(narrow.qmax))) <= 2.02


def test_a_table_needs_grids_per_tensor_and_a_function_of_all_of_them() -> None:
    channels = UniformQParams(torch.ones(2), torch.zeros(2, dtype=torch.int32), 0, 255, axis=1)
    with pytest.raises(QuantopsyError, match="single channels"):
        table(torch.sigmoid, channels, grid(0, 1))
    with pytest.raises(QuantopsyError, match="not defined"):
        table(torch.log, grid(-1, 1), grid(0, 1))
