"""Files for ONNX Runtime against the simulation they were made from, in one run.

    python benchmarks/onnx_export.py [NETWORK ...] [--images 128] [--calibration 64] [--runs 20] [--threads 1]
                                     [--integer-convolutions]

For each network of the zoo, weights of 8 bits per tensor and per channel, activations of 8: the metric in float,
simulated (in brackets: with the int32 biases of the file), and as ONNX Runtime gives it; the share of decisions it
has in common with the simulation; the share of output elements within a step of the simulation as stored,
optimisations off and on; the shares of elements of single layers, from the inputs that the runtime gave them, that
are equal and within a step; the share of MACs in integer kernels; file size and latency (one image, first
quartile of interleaved runs: other work on the machine only adds) beside the float network's in the same runtime.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.core import Plan
from quantopsy.data import evenly_spaced_order, open_data, prefetch
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.memory import bytes_per_image, choose_tile
from quantopsy.export.onnx.export import export_onnx
from quantopsy.export.onnx.graph import to_onnx
from quantopsy.export.onnx.runtime import latency
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.metrics import resolve_metric

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
METRICS = {"espnet": "miou:ignore=11"}
HEADER = (
    f"{'network':20} {'scheme':12} {'images':>6} {'float':>6} {'simulated':>15} {'runtime':>8} {'same':>6} "
    f"{'outputs off, on':>15} {'layers off: equal, step':>19} {'on: equal, step':>19} "
    f"{'int MACs':>8} {'size':>6} {'latency':>8}"
)


def measure(name: str, arguments: argparse.Namespace) -> list[str]:
    """The rows of one network."""
    import zoo

    module = zoo.network(name)
    images = open_data(zoo.images(name, zoo.NETWORKS[name]["datasets"][0]))
    order = evenly_spaced_order(len(images))
    network = capture(module, images.batch([0, 1]).inputs)
    program = compile_network(network)
    tile = choose_tile(bytes_per_image(program), 2.0, None, arguments.images)

    def batches(count: int):
        kept = np.sort(order[:count])
        return prefetch(images, [kept[start : start + tile] for start in range(0, len(kept), tile)])

    one = images.batch([0]).inputs
    rows = []
    for scheme in ("per-tensor", "per-channel"):
        plan = full_plan(network, grids(scheme, 8))
        wanted = wanted_statistics(network, [plan])
        ranges = calibrate(program, (batch.inputs for batch in batches(arguments.calibration)), wanted)
        metric = resolve_metric(METRICS.get(name), images.has_labels)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            done = export_onnx(
                network,
                plan,
                ranges,
                path,
                batches(arguments.images),
                metric,
                integer_convolutions=arguments.integer_convolutions,
                threads=arguments.threads,
            )
            models = {"float": to_onnx(network, Plan(), ranges), "quantized": onnx.load(path)}
        times = latency(models, network, one, runs=arguments.runs, threads=arguments.threads)
        ratio = times["quantized"].low / times["float"].low
        found = done.verified
        rows.append(
            f"{name:20} {scheme:12} {found.images:6} {found.float_network:6.2f} "
            f"{found.simulated:6.2f} ({found.stored:6.2f}) "
            f"{found.runtime:8.2f} {found.plain.decisions:6.2f} {found.plain.outputs.within_step:7.2%} "
            f"{found.optimised.outputs.within_step:7.2%} {found.plain.layers.equal:9.4%} "
            f"{found.plain.layers.within_step:9.4%} {found.optimised.layers.equal:9.4%} "
            f"{found.optimised.layers.within_step:9.4%} {done.kernels.macs_share:8.1%} "
            f"{done.size_ratio:6.3f} {ratio:8.2f}"
        )
        if done.kernels.real:
            rows.append(f"{'':20} in reals: {', '.join(done.kernels.real)}")
    return rows


def main() -> None:
    """Print the table."""
    import zoo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(zoo.NETWORKS))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--integer-convolutions", action="store_true", help="ConvInteger where QDQ has no kernel")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(HEADER)
    for name in arguments.networks:
        print(*measure(name, arguments), sep="\n", flush=True)


if __name__ == "__main__":
    main()
