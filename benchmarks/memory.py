"""Peak memory of a whole analysis against the number of images, each in a process of its own.

    python benchmarks/memory.py [--network resnet20] [--images 256 4096] [--mode auto] [--repeats 3]
    python benchmarks/memory.py --size 512 --images 64

The zoo's images are repeated to make up the number. With ``--size`` they are scaled, and the network is that of
``quantopsy demo``, EfficientNet-Lite0, which takes any size. Every study is in a folder of its own.
Medians of ``--repeats`` processes: from one to the next the peak differs by a few percent. Tiles have the same number
of images whatever the number of all: left to itself a study of few images takes smaller ones. With ``--size`` they are
what ``--max-memory`` makes of them.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))


TILE = 128


class Repeated:
    """A data set of ``count`` items from fewer, ``size`` pixels high and wide where one is given."""

    def __init__(self, images: Any, count: int, size: int | None) -> None:
        self.images, self.count, self.size = images, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        image, label = self.images[index % len(self.images)]
        if self.size is not None:
            image = interpolate(image[None], (self.size, self.size), mode="bilinear", antialias=True)[0]
        return image, label


def one(network: str, count: int, mode: str, size: int | None, max_memory: float) -> None:
    """Analyse, and print the process's peak in MiB."""
    import zoo

    from quantopsy import demo
    from quantopsy.analysis.analyze import analyze
    from quantopsy.analysis.settings import Settings

    tile = TILE if size is None else None
    name = network if size is None else "efficientnet_lite0"
    images = zoo.images(name, zoo.NETWORKS[name]["datasets"][0])
    module = zoo.network(network) if size is None else demo.network()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(bits=(4, 8), mode=mode, calibration_samples=256, tile=tile, max_memory=max_memory)
        analyze(module, Repeated(images, count, size), out=folder, settings=settings)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Print a row per number of images, and the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--images", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--size", type=int, help="pixels  [default: the zoo's]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-memory", type=float, default=4.0, help="GiB")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.network, arguments.images[0], arguments.mode, arguments.size, arguments.max_memory)
        return
    size = arguments.size
    shown = arguments.network if size is None else f"efficientnet_lite0 at {size} x {size}"
    peaks = []
    for count in arguments.images:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", "--images", str(count)]
        found = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(arguments.repeats)]
        peaks.append(statistics.median(float(process.stdout.split()[-1]) for process in found))
        print(f"{shown} {arguments.mode} {count:6d} images: peak {peaks[-1]:8.0f} MiB", flush=True)
    if len(peaks) > 1:
        print(f"growth {peaks[-1] / peaks[0] - 1:+.1%}")


if __name__ == "__main__":
    main()
