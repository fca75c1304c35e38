"""The exact engine's cost per cell, against the naive loop, in one run.

    python benchmarks/exact_engine.py [NETWORK ...] [--images 16]

For each network of the zoo: the engine's float pass against ONNX Runtime's and eager torch's; then
every (layer, bits) cell exactly, in passes, against a naive loop that runs the whole network with one
layer quantized (on a sample of the cells: it is that slow). A pass is one float forward of the same
folded network over the same images with the engine's own best settings.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from quantopsy.analysis.schemes import at_bits, full_plan, grids, single_layer
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
NETWORKS = ("efficientnet_lite0", "mobilenet_v2_10", "resnet56", "squeezenet1_1")
BITS = (3, 4, 5, 6, 7, 8)


def median_seconds(function, repeats: int = 5) -> float:
    """Median wall time of ``function`` after one warm-up."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def onnx_runtime(module: torch.nn.Module, images: torch.Tensor):
    """A function that runs ``module`` in ONNX Runtime on the same number of threads."""
    import onnxruntime

    buffer = io.BytesIO()
    program = torch.export.export(module, (images,))
    torch.onnx.export(program, (images,), buffer, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images.numpy()})


def measure(name: str, count: int) -> str:
    """One row of the table."""
    import zoo

    module = zoo.network(name)
    dataset = zoo.images(name, zoo.NETWORKS[name]["datasets"][0], count)
    images = torch.stack([dataset[i][0] for i in range(count)])
    program = compile_network(capture(module, (images[:2],)))
    network = program.network
    full = full_plan(network, grids("per-tensor", 8))
    engine = ExactEngine(program, calibrate(program, [(images,)], wanted_statistics(network, [full])))
    with torch.inference_mode():
        eager = median_seconds(lambda: module(images))
    runtime = median_seconds(onnx_runtime(module, images))
    float_pass = median_seconds(lambda: engine.float_pass((images,)))

    plans = {}
    cells = 0
    for bits in BITS:
        for layer in network.layers:
            cells += 1
            plan = single_layer(at_bits(full, bits), layer)
            plans[plan.fingerprint] = plan
    prepared = [engine.prepare(plan) for plan in plans.values()]
    begin = time.perf_counter()
    for _ in engine.run_tile((images,), prepared):
        pass
    sweep = time.perf_counter() - begin

    # The naive loop: every step of the network again for every cell, nothing reused or released.
    everything = tuple(range(len(program.steps)))
    naive = statistics.mean(
        measured.seconds
        for plan in prepared[:: max(1, len(prepared) // 12)]
        for measured in engine.run_tile(
            (images,), [replace(plan, schedule=everything, release=((),) * len(everything))]
        )
        if measured.run == 0
    )
    return (
        f"{name:20} {len(network.layers):6} {cells:6} {len(plans):9} {eager / float_pass:8.2f} "
        f"{float_pass / runtime:8.2f} {sweep / float_pass / len(plans):10.3f} {sweep / float_pass / cells:10.3f} "
        f"{naive / float_pass:8.2f} {naive * len(plans) / sweep:8.2f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--images", type=int, default=16)
    arguments = parser.parse_args()
    print(
        f"{'network':20} {'layers':>6} {'cells':>6} {'distinct':>9} {'eager/us':>8} {'us/ORT':>8} "
        f"{'passes/run':>10} {'per cell':>10} {'naive':>8} {'speed-up':>8}"
    )
    for name in arguments.networks:
        print(measure(name, arguments.images), flush=True)


if __name__ == "__main__":
    main()
