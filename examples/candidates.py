"""Score hundreds of weight quantizers of every layer at once, and print the best of each size.

    python examples/candidates.py [--images 32]

EfficientNet-Lite0 and the photographs of ``quantopsy demo``. Every weight gets 6 bit-widths x 3
granularities x 10 clips; the screen scores them all from one forward and one backward pass.
"""

from __future__ import annotations

import argparse
import time

from quantopsy.analysis.screening import Scores
from quantopsy.core import Plan, Site, Spec
from quantopsy.data import open_data
from quantopsy.demo import network, photographs
from quantopsy.engine.calibration import Calibration
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network

BITS = (3, 4, 5, 6, 7, 8)
GRANULARITIES = ("per_tensor", "per_channel", "per_group:16")
CLIPS = (100.0, 99.99, 99.95, 99.9, 99.8, 99.5, 99.0, 98.0, 97.0, 95.0)  # percentiles of |w|


def main() -> None:
    """Score, and print the best clip of each bit-width and granularity for the layers that need it most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    images = open_data(photographs()[0])
    batches = [images.batch(range(start, start + 8)) for start in range(0, arguments.images, 8)]
    program = compile_network(capture(network(), batches[0].inputs))
    specs = [
        Spec(bits=bits, symmetric=True, signed=True, granularity=granularity, range_estimator=f"percentile:{clip:g}")
        for bits in BITS
        for granularity in GRANULARITIES
        for clip in CLIPS
    ]
    weighted = [layer for layer in program.network.layers if layer.weight is not None]
    candidates = {Site(layer.name, "weight"): specs for layer in weighted if layer.op == "conv2d"}
    exact = ExactEngine(program, Calibration())
    begin = time.perf_counter()
    for batch in batches:
        exact.float_pass(batch.inputs)
    float_pass = time.perf_counter() - begin
    scores = Scores.of_batches(program, Calibration(), batches, candidates, decision=False)
    begin = time.perf_counter()
    scores = Scores.of_batches(program, Calibration(), batches, candidates, decision=False)
    passes = (time.perf_counter() - begin) / float_pass
    noises = {site: [scores.predicted(Plan.of({site: spec}))[0] for spec in specs] for site in candidates}
    worst = sorted(candidates, key=lambda site: -noises[site][specs.index(_plain(4))])
    print(f"{len(specs)} specs of {len(candidates)} layers: {len(specs) * len(candidates)} cells, {passes:.1f} passes")
    print(f"{'layer':34} {'bits':>4} {'unclipped':>10} {'best':>10}  best spec")
    for site in worst[:5]:
        for bits in (4, 8):
            mine = [place for place, spec in enumerate(specs) if spec.bits == bits]
            best = min(mine, key=lambda place: noises[site][place])
            found, unclipped = specs[best], noises[site][specs.index(_plain(bits))]
            print(
                f"{site.layer:34} {bits:4d} {unclipped:10.3g} {noises[site][best]:10.3g}  "
                f"{found.granularity}, {found.range_estimator}"
            )


def _plain(bits: int) -> Spec:
    return Spec(bits=bits, symmetric=True, signed=True, granularity="per_tensor", range_estimator="percentile:100")


if __name__ == "__main__":
    main()
