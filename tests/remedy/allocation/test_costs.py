"""What bit-widths cost, worked out by hand; tables of latency and limits as people write them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.core import QuantopsyError, Site
from quantopsy.graph.capture import capture
from quantopsy.remedy.allocation.choices import Choices
from quantopsy.remedy.allocation.costs import Costs, LatencyTable, amount, check_feasible, wanted_limits

WIDTHS = (2, 4, 8)


@pytest.fixture
def network(small, images):
    return capture(small, (images[:2],))


def choices_of(network, activations: tuple[int, ...] = ()) -> Choices:
    return Choices.of(network, full_plan(network, grids("per-tensor", 8)), WIDTHS, activations)


def table_of(network, tmp_path, text: str | None = None) -> LatencyTable:
    rows = [f"{layer.name},{','.join(str(b * 0.5) for b in WIDTHS)}" for layer in network.layers if layer.weight]
    path = tmp_path / "latency.csv"
    path.write_text("layer,2,4,8\n" + "\n".join(rows) + "\n" if text is None else text)
    return LatencyTable.read(path)


def test_size_is_the_bits_of_all_weights(network) -> None:
    choices = choices_of(network)
    costs = Costs(network, choices)
    weights = [layer for layer in network.layers if layer.weight]
    mixed = tuple(n % 3 for n in range(len(weights)))
    named = {choice.sites[0].layer: WIDTHS[n] for choice, n in zip(choices.choices, mixed, strict=True)}
    by_hand = sum(network.weight(layer).numel() * named[layer.name] / 8 for layer in weights)
    assert choices.shape.cost(costs.of("size"), mixed) == pytest.approx(by_hand)
    assert costs.uniform("size", 4) == pytest.approx(sum(network.weight(w).numel() for w in weights) / 2)


@pytest.mark.parametrize(("change", "stored"), [({"kind": "piecewise"}, 6), ({"tensors": 2}, 8)])
def test_size_counts_what_a_kind_of_grid_stores(network, change, stored) -> None:
    plan = full_plan(network, grids("per-tensor", 8, {"weight": change}))
    costs = Costs(network, Choices.of(network, plan, WIDTHS))
    selection = costs.choices.uniform(4)
    by_hand = sum(network.weight(layer).numel() for layer in network.layers if layer.weight) * stored / 8
    assert costs.choices.shape.cost(costs.of("size"), selection) == pytest.approx(by_hand)
    assert wanted_limits(costs, {"size": "4bits"}) == {"size": pytest.approx(by_hand)}


class Shared(nn.Module):
    """A convolution that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(self.stem(x)).relu()).mean((2, 3))


@pytest.mark.parametrize("activations", [(), (4, 8)])
def test_a_weight_that_layers_share_is_chosen_and_stored_once_and_multiplied_twice(activations, tmp_path) -> None:
    network = capture(Shared().eval(), (torch.randn(2, 3, 6, 6),))
    choices = choices_of(network, activations)
    once, twice = (choice for choice in choices.choices if choice.of_weight)
    assert (len(once.sites), len(twice.sites)) == (1, 2)
    costs = Costs(network, choices, table_of(network, tmp_path))
    costs.latency.check(network, choices)
    selection = choices.uniform(4)
    cost = {name: choices.shape.cost(costs.of(name), selection) for name in ("size", "bitops", "latency")}
    assert cost["size"] == (12 + 144) / 2 == costs.uniform("size", 4)
    assert cost["bitops"] == 36 * (12 + 2 * 144) * 4 * 8
    assert cost["latency"] == 3 * 2.0
    specs = dict(choices.realised(selection).sites)
    assert {specs[site].bits for site in twice.sites} == {4}


@pytest.mark.parametrize("activations", [(), (4, 8)])
def test_bitops_are_macs_by_bits_of_weight_and_input(network, activations) -> None:
    choices = choices_of(network, activations)
    costs = Costs(network, choices)
    selection = tuple(0 for _ in choices.choices)  # all weights at 2 bits, all activations at their fewest
    entering = activations[0] if activations else 8
    macs = sum(layer.macs for layer in network.layers if layer.weight)
    assert choices.shape.cost(costs.of("bitops"), selection) == pytest.approx(macs * 2 * entering)


def test_latency_is_the_sum_of_the_table(network, tmp_path) -> None:
    choices = choices_of(network)
    costs = Costs(network, choices, table_of(network, tmp_path))
    costs.latency.check(network, choices)
    weights = [layer for layer in network.layers if layer.weight]
    assert choices.shape.cost(costs.of("latency"), tuple(1 for _ in weights)) == pytest.approx(2.0 * len(weights))
    assert wanted_limits(costs, {"latency": "0.5x"}) == {"latency": pytest.approx(2.0 * len(weights))}


def test_layers_without_weights_count_as_the_table_says(network, tmp_path) -> None:
    rows = [f"{layer.name},{bits},1.0" for layer in network.layers if layer.weight for bits in WIDTHS]
    pool = next(layer.name for layer in network.layers if layer.weight is None)
    table = table_of(network, tmp_path, "layer,bits,latency\n" + "\n".join([*rows, f"{pool},8,7.5"]))
    choices = choices_of(network)
    weights = sum(layer.weight is not None for layer in network.layers)
    cost = Costs(network, choices, table).of("latency")
    assert choices.shape.cost(cost, tuple(0 for _ in choices.choices)) == pytest.approx(weights + 7.5)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("4bits", lambda n: n / 2), ("5 bits", lambda n: n * 5 / 8), ("4.5bits", lambda n: n * 4.5 / 8),
     ("0.5x", lambda n: n / 2), ("300KB", lambda _: 300e3), ("2MiB", lambda _: 2**21)],
)  # fmt: skip
def test_a_limit_may_be_said_in_bits_shares_or_units(network, text, bytes_) -> None:
    count = sum(network.weight(layer).numel() for layer in network.layers if layer.weight)
    assert wanted_limits(Costs(network, choices_of(network)), {"size": text})["size"] == pytest.approx(bytes_(count))


@pytest.mark.parametrize("text", ["", "four", "4 kilos", "-3KB", "1e5KB"])
def test_what_is_no_limit_is_named(network, text) -> None:
    with pytest.raises(QuantopsyError, match="is no limit"):
        wanted_limits(Costs(network, choices_of(network)), {"size": text})


def test_a_limit_that_nothing_meets_is_answered_with_one_that_something_does(network) -> None:
    costs = Costs(network, choices_of(network))
    with pytest.raises(QuantopsyError, match="nearest feasible is size") as error:
        check_feasible(costs, {"size": 10.0})
    said = str(error.value).split("size ")[-1].split(";")[0].split(" (")[0]
    number, unit = said.split()[:2]
    check_feasible(costs, wanted_limits(costs, {"size": number + unit.rstrip(",")}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,2,4\nstem.0,1,2\n", "first line"),
        ("layer,2,4\nstem.0,1\n", "line 2"),
        ("layer,2,4\nstem.0,1,fast\n", "line 2.*fast"),
        ("layer,2,4\nstem.0,1,nan\n", "no time"),
        ("layer,2,4\nstem.0,1,2\nstem.0,1,2\n", "line 3.*twice"),
    ],
)
def test_a_wrong_table_names_its_line(network, tmp_path, text, reason) -> None:
    with pytest.raises(QuantopsyError, match=reason):
        table_of(network, tmp_path, text)


def test_a_table_names_the_layers_that_it_lacks_or_has_too_many(network, tmp_path) -> None:
    with pytest.raises(QuantopsyError, match=r"lacks .*head"):
        table_of(network, tmp_path, "layer,2,4,8\nstem.0,1,2,3\n").check(network, choices_of(network))
    with pytest.raises(QuantopsyError, match=r"'stem\.9'.*nearest.*stem\.0"):
        table_of(network, tmp_path, "layer,2,4,8\nstem.9,1,2,3\n").check(network, choices_of(network))


@pytest.mark.parametrize(
    ("value", "text"), [(134_240.0, "134.2 KB"), (999.0, "999 B"), (1.5e9, "1.5 GB")]
)  # fmt: skip
def test_amounts_are_for_people(value, text) -> None:
    assert amount("size", value) == text


def test_values_that_are_read_together_have_one_choice(network) -> None:
    choices = choices_of(network, (4, 8))
    site = Site("left", "output")
    (together,) = [choice for choice in choices.choices if site in choice.sites]
    assert {s.layer for s in together.sites} > {"left"}  # the addition's other branch
    bits = dict(choices.realised(tuple(0 for _ in choices.choices)).sites)
    assert {bits[s].bits for s in together.sites} == {4}
