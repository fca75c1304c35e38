"""Files in ONNX Runtime and OpenVINO against the simulation they were made from, in one run.

    python benchmarks/onnx_export.py [NETWORK ...] [--images 128] [--calibration 64] [--runs 20] [--threads 1]
                                     [--integer-convolutions] [--unfused silu,...] [--out rows.jsonl]

Networks are those of the zoo, and with torchvision installed its architectures with random weights and a fitted head,
each with weights of 8 bits per tensor and per channel, activations of 8. A row has

- the metric in float, simulated (in brackets: with the int32 biases of the file), in ONNX Runtime and in OpenVINO;
- for both runtimes the percentage of decisions in common with the simulation, of elements of single layers within a
  step (from the inputs that the runtime gave them), of MACs in integer kernels, and how many times as fast as the float
  network the file runs there (one image, first quartile of interleaved runs: other work on the machine only adds);
- the percentage of output elements within a step of the simulation as stored, ONNX Runtime's optimisations off and on;
- the file's size beside float.

Rows are also written to ``--out``; those that it has already are not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from random_networks import ARCHITECTURES, CLASSES, random_network
from torch import nn
from torch.utils.data import TensorDataset

from quantopsy.analysis.schemes import full_plan, grids
from quantopsy.cli.arguments import parse_names
from quantopsy.core import Plan, QuantopsyError
from quantopsy.data import evenly_spaced_order, open_data, prefetch
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.memory import bytes_per_image, choose_tile
from quantopsy.export.onnx.export import Exported, export_onnx
from quantopsy.export.onnx.graph import to_onnx
from quantopsy.export.onnx.runtime import latency
from quantopsy.export.onnx.runtimes import ONNX_RUNTIME, further
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.metrics import resolve_metric

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
METRICS = {"espnet": "miou:ignore=11", "lraspp_mobilenet_v3_large": "agreement"}
SCHEMES = ("per-tensor", "per-channel")
PIXELS = 128  # of the images that random networks see; Inception's stem needs 75
HEADINGS = (
    "network", "weights", "float", "simulated (stored)", "runtime", "OpenVINO", "decisions", "layers",
    "outputs off, on", "integer MACs", "size", "times as fast",
)  # fmt: skip


def subject(name: str, count: int) -> tuple[nn.Module, Any]:
    """A network and its images."""
    import zoo

    if name in zoo.NETWORKS:
        return zoo.network(name), open_data(zoo.images(name, zoo.NETWORKS[name]["datasets"][0]))
    photographs = open_data(zoo.images("mobilenet_v1_025", "imagenet_val"))
    (x,) = photographs.batch(np.sort(evenly_spaced_order(len(photographs))[:count])).inputs
    x = nn.functional.interpolate(x, size=(PIXELS, PIXELS), mode="bilinear", antialias=True)
    labels = torch.arange(len(x)) % CLASSES
    return random_network(name, x, labels), open_data(TensorDataset(x, labels))


def measure(name: str, scheme: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    module, images = subject(name, max(arguments.images, arguments.calibration))
    order = evenly_spaced_order(len(images))
    network = capture(module, images.batch([0, 1]).inputs, unfused=parse_names(arguments.unfused))
    program = compile_network(network)
    tile = choose_tile(bytes_per_image(program), 2.0, None, arguments.images)

    def batches(count: int):
        kept = np.sort(order[:count])
        return prefetch(images, [kept[start : start + tile] for start in range(0, len(kept), tile)])

    plan = full_plan(network, grids(scheme, 8))
    wanted = wanted_statistics(network, [plan])
    ranges = calibrate(program, (batch.inputs for batch in batches(arguments.calibration)), wanted)
    metric = resolve_metric(METRICS.get(name), images.has_labels)
    runtimes = (ONNX_RUNTIME, *further(["openvino"]))
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
            also=runtimes[1:],
        )
        models = {"float": to_onnx(network, Plan(), ranges), "quantized": onnx.load(path)}
    one, faster = images.batch([0]).inputs, []
    for runtime in runtimes:
        sessions = {key: runtime.open(model, threads=arguments.threads) for key, model in models.items()}
        times = latency(sessions, network, one, runs=arguments.runs)
        faster.append(times["float"].low / times["quantized"].low)
    return row(done, faster)


def row(done: Exported, faster: list[float]) -> dict[str, Any]:
    """What the table shows of an export; pairs are of ONNX Runtime and OpenVINO."""
    found = done.verified
    both, kernels = (found.optimised, *found.also.values()), (done.kernels, *done.also.values())
    return {
        "images": found.images,
        "metric": found.metric,
        "float": found.float_network,
        "simulated": found.simulated,
        "stored": found.stored,
        "runtime": [run.value for run in both],
        "decisions": [run.decisions for run in both],
        "equal": [100 * run.layers.equal for run in both],
        "within": [100 * run.layers.within_step for run in both],
        "apart": [[name for name, layer in run.by_layer.items() if layer.within_step < 1] for run in both],
        "outputs": [100 * run.outputs.within_step for run in (found.plain, found.optimised)],
        "macs": [100 * kernel.macs_share for kernel in kernels],
        "real": [list(kernel.real) for kernel in kernels],
        "size": done.size_ratio,
        "faster": faster,
    }


def line(name: str, scheme: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    if "error" in found:
        return f"| {name} | {scheme} | {found['error']} |"

    def pair(key: str, digits: int) -> str:
        return " / ".join(f"{value:.{digits}f}" for value in found[key])

    own, other = found["runtime"]
    cells = (
        name, scheme, f"{found['float']:.2f}", f"{found['simulated']:.2f} ({found['stored']:.2f})", f"{own:.2f}",
        f"{other:.2f}", pair("decisions", 1), pair("within", 3), pair("outputs", 2), pair("macs", 1),
        f"{found['size']:.3f}", pair("faster", 1),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    import zoo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*zoo.NETWORKS, *ARCHITECTURES])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--integer-convolutions", action="store_true", help="ConvInteger where QDQ has no kernel")
    parser.add_argument("--unfused", help="activation functions that are layers of their own")
    parser.add_argument("--out", type=Path, help="JSON lines, a row each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known: dict[tuple[str, str], dict[str, Any]] = {}
    if arguments.out is not None and arguments.out.exists():
        rows = [json.loads(text) for text in arguments.out.read_text().splitlines()]
        known = {(found["network"], found["scheme"]): found for found in rows}
    print(f"| {' | '.join(HEADINGS)} |", f"|{' --- |' * len(HEADINGS)}", sep="\n")
    for name in arguments.networks:
        for scheme in SCHEMES:
            found = known.get((name, scheme))
            if found is None:
                try:
                    found = measure(name, scheme, arguments)
                except QuantopsyError as error:
                    found = {"error": str(error)}
                if arguments.out is not None:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps({"network": name, "scheme": scheme, **found}) + "\n")
            print(line(name, scheme, found), flush=True)


if __name__ == "__main__":
    main()
