"""Which layers of two networks are partners."""

from __future__ import annotations

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from made_up import layer_table

from quantopsy.analysis.matching import match_layers


def renamed(layers: pd.DataFrame, prefix: str = "model.") -> pd.DataFrame:
    return layers.assign(name=prefix + layers["name"])


def places(layers: pd.DataFrame, others: pd.DataFrame) -> list[tuple[int, int]]:
    return [(pair.before, pair.after) for pair in match_layers(layers, others).pairs]


def without(layers: pd.DataFrame, *rows: int) -> pd.DataFrame:
    return layers.drop(index=list(rows)).reset_index(drop=True)


def test_a_network_matches_itself_by_name() -> None:
    found = match_layers(layer_table(20), layer_table(20))
    assert [(pair.before, pair.after, pair.by) for pair in found.pairs] == [(i, i, "name") for i in range(20)]
    assert found.only_before == found.only_after == ()


def test_a_narrower_network_matches_by_name_though_every_shape_differs() -> None:
    layers = layer_table(20)
    narrow = layers.assign(
        weight_shape=[shape and (shape[0] // 4, shape[1] // 4, *shape[2:]) for shape in layers["weight_shape"]]
    )
    assert {pair.by for pair in match_layers(layers, narrow).pairs} == {"name"}
    assert places(layers, narrow) == [(i, i) for i in range(20)]


def test_a_name_that_means_something_else_is_no_partner() -> None:
    layers = layer_table(20)
    other = layers.copy()
    other.loc[4, "op"] = "concat"
    other.at[6, "weight_shape"] = (8, 8, 5, 5)
    found = match_layers(layers, other)
    assert (found.only_before, found.only_after) == ((4, 6), (4, 6))


def test_renamed_layers_match_by_operation_shape_and_order() -> None:
    found = match_layers(layer_table(20), renamed(layer_table(20)))
    assert [(pair.before, pair.after, pair.by) for pair in found.pairs] == [(i, i, "shape") for i in range(20)]


@given(st.sets(st.integers(0, 39), max_size=6), st.integers(0, 39))
def test_layers_left_out_of_a_renamed_network_are_all_that_has_no_partner(left_out: set[int], first: int) -> None:
    """Partners keep the order and are alike, whatever is left out."""
    layers = layer_table(40)
    others = without(renamed(layers), *left_out)
    found = match_layers(layers, others)
    kinds = [(row.op, row.weight_shape) for row in layers.itertuples()]
    other_kinds = [(row.op, row.weight_shape) for row in others.itertuples()]
    assert all(kinds[pair.before] == other_kinds[pair.after] for pair in found.pairs)
    for places in ([pair.before for pair in found.pairs], [pair.after for pair in found.pairs]):
        assert places == sorted(set(places))
    assert len(found.pairs) >= 40 - 4 * len(left_out)


def test_an_inserted_layer_is_the_one_without_a_partner() -> None:
    layers = layer_table(20)
    more = pd.concat([layers[:7], layers[6:7].assign(name="inserted", op="transposed"), layers[7:]], ignore_index=True)
    for others, only in ((more, "inserted"), (renamed(more), "model.inserted")):
        found = match_layers(layers, others)
        assert (found.only_before, [others["name"][i] for i in found.only_after]) == ((), [only])


def test_a_renamed_layer_is_sought_between_the_partners_by_name() -> None:
    """Two layers alike, both renamed: each finds the one in its own place."""
    layers = layer_table(20)
    others = layers.copy()
    others.loc[[1, 3], "name"] = ["first", "second"]
    assert places(layers, others) == [(i, i) for i in range(20)]
    others = without(others, 1)  # alike, but on the other side of layers found by name
    found = match_layers(layers, others)
    assert found.only_before == (1,)
    assert (3, 2) in places(layers, others)


def test_another_architecture_has_no_partners_at_all() -> None:
    layers = layer_table(20)
    other = renamed(layers, "vit.").assign(
        op="linear", weight_shape=[(64, 64) if shape else None for shape in layers["weight_shape"]]
    )
    other.loc[19, ["name", "weight_shape"]] = ["classifier", layers["weight_shape"][19]]
    found = match_layers(layers, other)
    assert found.pairs == ()
    assert found.only_before == found.only_after == tuple(range(20))


def resnet(blocks: int) -> pd.DataFrame:
    """The layers of a CIFAR ResNet with so many blocks in each of its three stages."""
    rows = [("conv1", "conv2d", (16, 3, 3, 3))]
    for stage, (before, width) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            rows += [
                (f"{name}.conv1", "conv2d", (width, before if block == 0 else width, 3, 3)),
                (f"{name}.conv2", "conv2d", (width, width, 3, 3)),
                (f"{name}.add", "add", None),
            ]
    rows.append(("linear", "linear", (10, 64)))
    return pd.DataFrame(rows, columns=["name", "op", "weight_shape"])


def test_what_a_deeper_resnet_has_more_are_whole_blocks() -> None:
    shallow, deep = resnet(3), resnet(5)
    for others in (deep, renamed(deep)):
        found = match_layers(shallow, others)
        assert found.only_before == ()
        assert len(found.only_after) == 18
        assert all(shallow["weight_shape"][pair.before] == others["weight_shape"][pair.after] for pair in found.pairs)
    assert {deep["name"][place].split(".")[1] for place in match_layers(shallow, deep).only_after} == {"3", "4"}
