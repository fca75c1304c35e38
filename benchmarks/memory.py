"""Peak memory of a whole analysis against the number of images, each in a process of its own.

    python benchmarks/memory.py [--network resnet20] [--images 256 4096] [--mode auto]

The zoo's images are repeated to make up the number; every study is in a folder of its own. Tiles have the same size
whatever the number: left to itself a study of few images takes smaller ones.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))


TILE = 128


class Repeated:
    """A data set of ``count`` items from fewer."""

    def __init__(self, images: Any, count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.images[index % len(self.images)]


def one(network: str, count: int, mode: str) -> None:
    """Analyse, and print the process's peak in MiB."""
    import zoo

    from quantopsy.analysis.analyze import analyze
    from quantopsy.analysis.settings import Settings

    images = zoo.images(network, zoo.NETWORKS[network]["datasets"][0])
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(bits=(4, 8), mode=mode, calibration_samples=256, tile=TILE)
        analyze(zoo.network(network), Repeated(images, count), out=folder, settings=settings)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Print a row per number of images, and the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--images", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.network, arguments.one, arguments.mode)
        return
    peaks = []
    for count in arguments.images:
        command = [sys.executable, __file__, "--network", arguments.network, "--mode", arguments.mode]
        found = subprocess.run([*command, "--one", str(count)], capture_output=True, text=True, check=True)
        peaks.append(float(found.stdout.split()[-1]))
        print(f"{arguments.network} {arguments.mode} {count:6d} images: peak {peaks[-1]:8.0f} MiB", flush=True)
    print(f"growth {peaks[-1] / peaks[0] - 1:+.1%}")


if __name__ == "__main__":
    main()
