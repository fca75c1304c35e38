"""Exported networks in ONNX Runtime against the integer network, layer by layer from the runtime's own codes."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx_files import calibrated, everywhere, network_of, pictures
from random_net import random_net
from small_net import SmallNet, randomise_norms

from quantopsy.core import Spec
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.export.onnx.graph import CODES_NAME, to_onnx
from quantopsy.export.onnx.runtime import feed, open_session
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.integer.agreement import agreement, layer_agreement
from quantopsy.integer.codes import Codes
from quantopsy.integer.kernels import Weighted
from quantopsy.integer.network import ARITHMETICS, IntegerNetwork, SummedLayer

PER_CHANNEL = Spec(symmetric=True, signed=True, granularity="per_channel")


def runtime_codes(model: onnx.ModelProto, network, grids, x, optimised: bool) -> dict[str, torch.Tensor]:
    """The codes of every quantized value in the runtime, on our grids (the file's are moved up to unsigned)."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    for value in grids:
        opened.graph.output.append(
            onnx.helper.make_tensor_value_info(CODES_NAME.format(value), onnx.TensorProto.UINT8, None)
        )
    session = open_session(opened, optimised=optimised)
    found = session.run([CODES_NAME.format(value) for value in grids], feed(network, (x,)))
    return {
        value: torch.from_numpy(codes.astype("int32")) + min(grid.qmin, 0)
        for (value, grid), codes in zip(grids.items(), found, strict=True)
    }


def rows_against_runtime(network, plan, ranges, x, how: str, optimised: bool) -> dict:
    """Every integer layer against the runtime's, both from the runtime's codes."""
    ours = IntegerNetwork(network, plan, ranges, ARITHMETICS[how])
    grids = {kernel.step.writes: kernel.target for kernel in ours.layers.values()}
    theirs = runtime_codes(to_onnx(network, plan, ranges), network, grids, x, optimised)
    values = {name: Codes(codes, grids[name]) for name, codes in theirs.items()}
    rows = {}
    for kernel in ours.layers.values():
        if any(name not in values and name not in network.input_names for name in kernel.grids):
            continue  # reads what is only moved
        operands = ours.operands(kernel, {**dict(zip(network.input_names, (x,), strict=True)), **values})
        result = kernel.run(operands)
        row = layer_agreement(ours, kernel, operands, result, theirs[kernel.step.writes])
        rows[kernel.layer.name] = kernel, row
    return rows


def clipped_only(kernel) -> bool:
    """A weighted layer that the runtime has an integer kernel for: none behind which a SiLU computes in reals."""
    return (
        isinstance(kernel, SummedLayer)
        and isinstance(kernel.kernel, Weighted)
        and kernel.layer.activation in (None, "relu", "relu6")
    )


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("seed", [None, 0, 3, 5])
def test_layers_are_the_runtimes_or_a_tie_is_shown(seed: int | None, optimised: bool) -> None:
    torch.manual_seed(0)
    x = pictures(16, size=12 if seed is None else 10)
    network = network_of(randomise_norms(SmallNet()) if seed is None else random_net(seed), x)
    plan = everywhere(network, PER_CHANNEL, Spec())
    rows = rows_against_runtime(network, plan, calibrated(network, plan, x), x, "onnxruntime", optimised)
    assert len(rows) >= 4
    for kernel, row in rows.values():
        if optimised and clipped_only(kernel):
            assert row.differences == 0, f"{row.layer}: {row.example}"  # the same float32 multiplication: to the bit
        assert row.largest <= 1
        assert row.explained == row.differences, f"{row.layer}: {row.example}"


def test_a_real_network_is_the_simulation_and_the_runtime_within_ties(zoo) -> None:
    x = torch.stack([zoo.images("resnet20", "cifar10_test", 8)[i][0] for i in range(8)])
    network = capture(zoo.network("resnet20"), (x[:2],))
    plan = everywhere(network, PER_CHANNEL, Spec())
    ranges = calibrate(compile_network(network), [(x,)], wanted_statistics(network, [plan]))
    integers = IntegerNetwork(network, plan, ranges)
    assert integers.reasons == {}
    rows = agreement(integers, (x,))
    assert sum(row.differences for row in rows) < 1e-5 * sum(row.elements for row in rows)
    for row in rows:
        assert row.largest <= 1
        assert row.explained == row.differences
        if row.example is not None:
            assert row.example.to_half < 1e-4
    against = rows_against_runtime(network, plan, ranges, x, "onnxruntime", optimised=True)
    assert sum(clipped_only(kernel) for kernel, _ in against.values()) == 19  # all convolutions
    for kernel, row in against.values():
        assert row.explained == row.differences, f"{row.layer}: {row.example}"
        if clipped_only(kernel):
            assert row.differences == 0
