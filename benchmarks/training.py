"""Quantization-aware training: every method against the float network trained the same way on the same images.

    python benchmarks/training.py [ROW ...] [--out FOLDER] [--seeds 0,1,2] [--epochs N]

`resnet20` on CIFAR-10 (9000 training images, 6500 others to report on) with 4- and 2-bit weights and activations, with
3-bit ones beside learned bits of both within the same BitOps, and `mobilenet_v2_10` on imagenette (400 and 330) with
4-bit weights, per channel and per tensor, and 8-bit activations.
All rows of a network have the same images, epochs, batches, learning rate, augmentation and distillation; batch norms
are kept; quantized are weights and inputs of layers with weights, as in the papers, in the first and the last layer
with 8 bits. A tenth of the training images chooses the epoch that is kept. Losses are paired differences over the same
images, to the pretrained float network and to the float network that was trained the same way, with 95 % intervals. A
row that was finished is not run again, one that was stopped goes on: the folder holds the trainings.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import quantopsy as qp
from quantopsy.analysis.significance import degradation
from quantopsy.core.recipe import Recipe
from quantopsy.metrics import resolve_metric

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

CORRECTION = 1e-3

CIFAR: dict[str, Any] = {"epochs": 6, "batch": 64, "rate": 0.05}
IMAGENETTE: dict[str, Any] = {"epochs": 6, "batch": 16, "rate": 0.005, "scheme": "per-channel"}

NETWORKS = {
    "resnet20": ("zoo:resnet20_on_cifar10_train", "zoo:resnet20_on_cifar10_test", CIFAR),
    "mobilenet_v2_10": ("zoo:mobilenet_v2_10_on_imagenette_train", "zoo:mobilenet_v2_10_on_imagenette_val", IMAGENETTE),
}

RESNET20_BITOPS = "389M"
"""What the first and the last layer take at 8 bits and all others at 3, weights and inputs."""

DDQ = {"method": "ddq", "activation_method": "ddq"}

METHODS: dict[str, dict[str, Any]] = {
    "UQ": {"method": "ste"},
    "PACT": {"method": "pact"},
    "LSQ": {"method": "lsq"},
    "PoT": {"method": "pot", "activation_method": "pot"},
    "DDQ": {**DDQ, "correction": 0.0},
    "DDQ+correction": {**DDQ, "correction": CORRECTION},
    "DDQ+mixed": {**DDQ, "correction": CORRECTION, "mixed": True},
}


def rows() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every row by its name: network and settings."""
    found: dict[str, tuple[str, dict[str, Any]]] = {"resnet20/float": ("resnet20", {"method": "float"})}
    for bits in (4, 2):
        for name, settings in METHODS.items():
            if bits == 2 and name == "DDQ+mixed":
                continue  # 2 bits are the fewest: nothing to choose
            found[f"resnet20/{bits}-{bits}/{name}"] = ("resnet20", _at(settings, bits, bits))
    found["resnet20/3-3/LSQ"] = ("resnet20", _at(METHODS["LSQ"], 3, 3))
    found["resnet20/3-3/LSQ+BitOps"] = ("resnet20", {**_at(METHODS["LSQ"], 6, 6), "bitops": RESNET20_BITOPS})
    found["mobilenet_v2_10/float"] = ("mobilenet_v2_10", {"method": "float"})
    for name in ("UQ", "LSQ", "DDQ+correction", "DDQ+mixed"):
        found[f"mobilenet_v2_10/4-8/{name}"] = ("mobilenet_v2_10", _at(METHODS[name], 4, 8))
    for name in ("UQ", "LSQ", "DDQ", "DDQ+correction"):
        per_tensor = {**_at(METHODS[name], 4, 8), "scheme": "per-tensor"}
        found[f"mobilenet_v2_10/4-8-per-tensor/{name}"] = ("mobilenet_v2_10", per_tensor)
    return found


def _at(settings: dict[str, Any], bits: int, activation_bits: int) -> dict[str, Any]:
    rest = {name: value for name, value in settings.items() if name != "mixed"}
    if settings.get("mixed"):
        return {**rest, "bits": min(2 * bits, 6), "activation_bits": activation_bits, "target": f"{bits}bits"}
    return {**rest, "bits": bits, "activation_bits": activation_bits}


def main() -> None:
    """Train what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="beginnings of their names, such as resnet20/4-4  (default: all)")
    parser.add_argument("--out", type=Path, default=Path("training_benchmark"), help="folder of the trainings")
    parser.add_argument("--seeds", default="0", help="0,1,2: every row so often")
    parser.add_argument("--epochs", type=int, help="instead of each network's own number")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    chosen = [name for name in rows() if not arguments.rows or name.startswith(tuple(arguments.rows))]
    print("| row | seed | top-1 | lost to float | lost to float, trained | bits | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for seed in seeds:
        for name in chosen:
            print(_row(name, seed, arguments.out, arguments.epochs), flush=True)


def _row(name: str, seed: int, out: Path, epochs: int | None) -> str:
    network, settings = rows()[name]
    folder = _trained(name, seed, out, epochs)
    told = json.loads((folder / "training.json").read_text())
    recipe, expected = Recipe.load(folder / "recipe.json"), told["expected"]
    reference = Recipe.load(_trained(f"{network}/float", seed, out, epochs) / "recipe.json")
    assert recipe.proof is not None
    assert reference.proof is not None
    shape = recipe.proof.after.shape
    mine, other = (
        np.frombuffer(proof.after.raw, dtype="<f8").reshape(shape) for proof in (recipe.proof, reference.proof)
    )
    to_trained = degradation(resolve_metric(expected["metric"], has_labels=True), other, mine)
    before = f" (from {expected['before'][0]:.1f})" if settings["method"] != "float" else ""
    return (
        f"| {name} | {seed} | {expected['after'][0]:.1f}{before} | {_interval(expected['lost'])} | "
        f"{_interval((to_trained.value, to_trained.low, to_trained.high))} | {told['average_bits']:.2f} | "
        f"{told['seconds'] / 60:.1f} |"
    )


def _trained(name: str, seed: int, out: Path, epochs: int | None) -> Path:
    """The folder of a row, trained where it is not there yet."""
    network, settings = rows()[name]
    data, evaluation, common = NETWORKS[network]
    folder = out / f"{name.replace('/', '_')}_{seed}"
    if not (folder / "training.json").exists():
        options = {**common, **settings, "seed": seed, "norms": "kept", "edges": "inputs"}
        if epochs is not None:
            options["epochs"] = epochs
        qp.train(f"zoo:{network}", data, evaluation=evaluation, out=folder, **options)
    return folder


def _interval(value: Any) -> str:
    return f"{value[0]:.1f} ({value[1]:.1f} to {value[2]:.1f})"


if __name__ == "__main__":
    main()
