"""Capturing a model, with torch.export's decomposition as always and spared where there is nothing to decompose.

    python benchmarks/capture.py [NETWORK ...] [--runs 5]

Networks of the zoo. Seconds of the processor, medians of runs in turns, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from quantopsy.graph import capture

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

SIDES = {
    "resnet20": 32, "resnet56": 32, "mobilenet_v1_025": 224, "mobilenet_v2_10": 160, "squeezenet1_1": 224,
    "efficientnet_lite0": 224,
}  # fmt: skip


def main() -> None:
    """Print a row for every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"[default: {' '.join(SIDES)}]")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    import zoo

    print("| network | decomposed | as it is | times as fast |\n| --- | ---: | ---: | ---: |")
    for name in arguments.networks or SIDES:
        model, example = zoo.network(name), (torch.randn(2, 3, SIDES[name], SIDES[name]),)
        always: list[float] = []
        spared: list[float] = []
        for _ in range(arguments.runs):
            with mock.patch.object(capture, "_is_settled", return_value=False):
                always.append(seconds(capture.capture, model, example))
            spared.append(seconds(capture.capture, model, example))
        before, after = statistics.median(always), statistics.median(spared)
        print(f"| {name} | {before:.2f} | {after:.2f} | {before / after:.1f} |", flush=True)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Of the processor, for a call."""
    begin = time.process_time()
    function(*arguments)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
