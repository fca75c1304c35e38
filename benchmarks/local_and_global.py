"""Table 1 of the layer-wise paper, in form: one layer with an outlier, repaired by what is done everywhere or there.

    python benchmarks/local_and_global.py [NETWORK ...] [--out FOLDER]

Into a network of the zoo an outlier of ``planted_faults.jsonl`` is planted: one weight that reads next to nothing, so
that the float network hardly notices, and a grid over the whole tensor does. Weights and activations at 8 bits, per
tensor. Rows: as it is; equalization and iterative bias correction (IBC); weights clipped (SAWB) everywhere; clipped in
the layer that ``analyze`` ranks first; what ``repair`` does. All figures are of the half of the images that no decision
has seen: top-1, and what is lost against float with its 95 % interval. Equalization has ten sweeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fault_search import LIST, open_subject
from faults import Fault, plant
from torch.utils.data import TensorDataset

import quantopsy as qp
from quantopsy.analysis.progress import Silent
from quantopsy.analysis.significance import metric_interval
from quantopsy.analysis.subject import reopen
from quantopsy.core import Plan, Site
from quantopsy.engine.adaround import Effort
from quantopsy.remedy.proof import Parts
from quantopsy.remedy.variants import Variant, Variants
from quantopsy.report.tables import ranked
from quantopsy.transforms.equalization import find_equalization

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

LAYERS = {
    "resnet20": "layer3.2.conv2",
    "resnet56": "layer1.6.conv1",
    "squeezenet1_1": "features.6.expand3x3",
    "efficientnet_lite0": "_blocks.13._project_conv",
}
"""Where the outlier is: of each network's the one that costs most."""

BITS = 8


def clipped(plan: Plan, layer: str | None = None) -> Plan:
    """``plan`` with weights clipped by SAWB: of ``layer``, or of all."""
    return Plan.of(
        {
            site: replace(spec, range_estimator="sawb", symmetric=True, signed=True)
            if site.role == "weight" and layer in (None, site.layer)
            else spec
            for site, spec in plan.sites
        }
    )


def rows(name: str, folder: Path, images: int | None) -> Iterator[tuple[str, float, float, float, float]]:
    """What was done, top-1, and what is lost with its interval; the float network first."""
    fault = next(
        Fault(**{**line["fault"], "where": tuple(line["fault"]["where"])})
        for line in map(json.loads, LIST.read_text().splitlines())
        if line["network"] == name and line.get("kind") == "weight_outlier" and line.get("layer") == LAYERS[name]
    )
    subject = plant(open_subject(name, images), fault).subject
    given = {
        "model": subject.network.module(),
        "data": TensorDataset(subject.images, subject.labels),
        "calibration": TensorDataset(subject.calibration),
    }
    study = qp.analyze(**given, bits=(BITS,), out=folder)
    guilty = str(ranked(study.results, BITS)["name"].iloc[0])
    done = qp.repair(folder, bits=BITS, target="per-tensor", **given).results.repaired
    assert done is not None
    with reopen(folder, Silent(), **given) as (store, again):
        plan, order = again.full, Parts.of(again.order).report
        specs = [spec for some in (plan, clipped(plan)) for _, spec in some.sites]
        variants = Variants(again, store, specs, Effort(), Silent())
        equalized = variants.register(find_equalization(again.network, sweeps=10))
        held = variants.result(None, order)
        yield "float", metric_interval(again.metric, held.statistics).value, 0.0, 0.0, 0.0
        for words, variant in (
            ("as it is", Variant(plan)),
            ("equalization, IBC", Variant(plan, (equalized,), "iterative")),
            ("SAWB everywhere", Variant(clipped(plan))),
            (f"SAWB at {guilty}", Variant(clipped(plan, guilty))),
        ):
            assert Site(guilty, "weight") in plan
            value = metric_interval(again.metric, variants.result(variant, order).statistics).value
            lost = variants.degradation(variant, order, 0.95)
            yield words, value, lost.value, lost.low, lost.high
    kept = "; ".join(step.words for step in done.steps if step.kept)
    yield f"repair: {kept}", done.expected.after[0], *done.expected.lost


def main() -> None:
    """Print a table for every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"[default: {' '.join(LAYERS)}]")
    parser.add_argument("--images", type=int, help="evaluation images  [default: as planted_faults.py]")
    parser.add_argument("--out", type=Path, default=Path("local_and_global"), help="folder of the studies")
    arguments = parser.parse_args()
    for name in arguments.networks or LAYERS:
        print(f"| {name} | top-1 | lost |\n| --- | ---: | ---: |")
        for words, value, lost, low, high in rows(name, arguments.out / name, arguments.images):
            print(f"| {words} | {value:.1f} | {lost:.1f} ({low:.1f} to {high:.1f}) |", flush=True)
        print()


if __name__ == "__main__":
    main()
