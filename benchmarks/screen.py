"""The screen and the automatic mode against the exact sweep, in one run.

    python benchmarks/screen.py [NETWORK ...] [--images 256] [--seeds 0,1,2] [--figure FOLDER] [--cost-only]

For each network of the zoo: what a screen of every layer at six bit-widths costs, and what each further
bit-width, in passes (float forwards over the same images in the same process, medians of alternating
runs); how its noise and degradation agree with a full exact sweep over the same images; and whether
``--mode auto`` finds the same guilty cells, at which cost.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from quantopsy.analysis.analyze import analyze
from quantopsy.analysis.phases import worth_probing
from quantopsy.analysis.results import Results
from quantopsy.analysis.schemes import candidates, full_plan, grids
from quantopsy.analysis.screening import LINEAR_SQNR_DB
from quantopsy.analysis.settings import Settings
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.probes import top_gaps
from quantopsy.engine.screen import ScreenEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
NETWORKS = ("efficientnet_lite0", "mobilenet_v2_10", "resnet56", "squeezenet1_1")
BITS = (3, 4, 5, 6, 7, 8)
MORE_BITS = (*BITS, 9, 10, 11, 12)
TILE = {"resnet56": 128}  # images of 32 x 32; others are of about 200 x 200
DEFAULT_TILE = 16


def cost(name: str, repeats: int = 7) -> str:
    """One row: passes for a screen, by the share of images with a decision probe, and for a further bit-width."""
    import zoo

    tile = TILE.get(name, DEFAULT_TILE)
    dataset = zoo.images(name, zoo.NETWORKS[name]["datasets"][0], 256)
    pictures = torch.stack([dataset[i][0] for i in range(len(dataset))])
    images = pictures[:tile]
    program = compile_network(capture(zoo.network(name), (images[:2],)))
    network = program.network
    full = full_plan(network, grids("per-tensor", 8))
    ranges = calibrate(program, [(images,)], wanted_statistics(network, [full]))
    exact = ExactEngine(program, ranges)
    gaps = np.concatenate([top_gaps(exact.float_pass((some,))[0]) for some in pictures.split(tile)])
    share = worth_probing(gaps[:, 0]) / len(gaps)
    wanted = {widths: candidates(full, network.layers, widths) for widths in (BITS, MORE_BITS)}
    engines = {decision: ScreenEngine(program, ranges, decision=decision) for decision in (False, True)}
    times: dict[object, list[float]] = {}

    def timed(key: object, function) -> None:
        begin = time.perf_counter()
        function()
        times.setdefault(key, []).append(time.perf_counter() - begin)

    for _ in range(repeats + 1):  # the first warms everything up
        timed("float", lambda: exact.float_pass((images,)))
        for decision, engine in engines.items():
            for widths, some in wanted.items():
                timed(
                    (decision, widths),
                    lambda engine=engine, some=some: engine.run_tile((images,), np.arange(tile), some),
                )
    middle = {key: statistics.median(values[1:]) for key, values in times.items()}
    screen = {w: share * middle[True, w] + (1 - share) * middle[False, w] for w in (BITS, MORE_BITS)}
    unit = middle["float"]
    further = (screen[MORE_BITS] - screen[BITS]) / unit / (len(MORE_BITS) - len(BITS))
    return (
        f"{name:20} {len(network.layers):6} {middle[False, BITS] / unit:11.2f} {middle[True, BITS] / unit:14.2f} "
        f"{share:6.0%} {screen[BITS] / unit:9.2f} {further:9.2f}"
    )


def run(name: str, mode: str, images: int, budget: str | None = None, seed: int = 0) -> Results:
    """The analysis as the command does it, at six bit-widths, ranges from other images where there are some."""
    import zoo

    sets = zoo.NETWORKS[name]["datasets"]
    data = f"zoo:{name}_on_{sets[0]}"
    calibration = f"zoo:{name}_on_{sets[1]}" if len(sets) > 1 else None
    settings = Settings(bits=BITS, samples=images, calibration_samples=128, mode=mode, budget=budget, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        return analyze(f"zoo:{name}", data, calibration=calibration, out=folder, settings=settings)


def agreement(name: str, exact: Results, screen: Results) -> str:
    """One row: ranks of noise by bit-width, the worst layer's place, coverage of cells that are believed and of those
    that are not because a weight is moved far, ranks of degradation."""
    both = exact.cells.merge(screen.cells, on=["layer", "bits"], suffixes=("", "_predicted"))
    ranks, places = [], []
    for _, cells in both.groupby("bits"):
        ranks.append(spearmanr(cells["noise_predicted"], cells["noise"]).statistic)
        order = cells.sort_values("noise_predicted", ascending=False)["layer"].tolist()
        places.append(1 + order.index(cells.loc[cells["noise"].idxmax(), "layer"]))
    distinct = both.drop_duplicates(["layer", "noise"])
    held = (distinct["noise"] - distinct["noise_predicted"]).abs() <= 1.96 * distinct["noise_stderr_predicted"]
    linear = distinct["linear_predicted"].astype(bool)
    far = ~linear & (distinct["sqnr_db_predicted"] > LINEAR_SQNR_DB)  # but for how far a weight is moved
    certain = distinct[distinct["degradation_low"] > 0]
    rank = spearmanr(certain["degradation_predicted"], certain["degradation"]).statistic if len(certain) > 2 else np.nan
    return (
        f"{name:20} {' '.join(f'{r:5.3f}' for r in ranks)}   {' '.join(f'{p:2d}' for p in places)}   "
        f"{held[linear].mean():7.1%} {linear.sum():5d}   {held[far].mean():7.1%} {far.sum():5d}   "
        f"{rank:6.3f} {len(certain):5d}"
    )


def guilty(name: str, exact: Results, auto: Results) -> str:
    """One row: what auto cost, what it left open, and where its verdicts differ from the full sweep's."""
    both = exact.cells.merge(auto.cells, on=["layer", "bits"], suffixes=("", "_auto"))
    full, found = both["verdict"] == "hurts", both["verdict_auto"] == "hurts"
    ran = int((auto.cells["method"] == "exact").sum())
    layers, layers_found = set(both.loc[full, "layer"]), set(both.loc[found, "layer"])
    return (
        f"{name:20} {auto.passes:8.1f} {exact.passes:8.1f} {auto.open_cells:6d} {ran:6d} "
        f"{int(full.sum()):6d} {int((full & ~found).sum()):7d} {int((found & ~full).sum()):6d} "
        f"{len(layers):7d} {len(layers - layers_found):7d} {len(layers_found - layers):6d}"
    )


def picture(name: str, exact: Results, screen: Results, folder: Path) -> None:
    """Predicted against exact noise of every cell, as a page."""
    from quantopsy.report.figures import predicted_against_exact

    predicted = exact.cells[["layer", "bits"]].merge(screen.cells, on=["layer", "bits"], how="left")
    cells = exact.cells.assign(
        screened_noise=predicted["noise"].astype(float).to_numpy(), linear=predicted["linear"].to_numpy()
    )
    folder.mkdir(parents=True, exist_ok=True)
    predicted_against_exact(replace(exact, cells=cells)).write_html(folder / f"{name}.html", include_plotlyjs="cdn")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--budget", help="of the automatic mode  [default: its own]")
    parser.add_argument("--figure", type=Path, help="folder for a page per network, predicted against exact")
    parser.add_argument("--cost-only", action="store_true")
    arguments = parser.parse_args()
    print(
        f"{'cost in passes':20} {'layers':>6} {'noise probe':>11} {'+ decision':>14} {'probed':>6} {'screen':>9} "
        f"{'per width':>9}"
    )
    for name in arguments.networks:
        print(cost(name), flush=True)
    if arguments.cost_only:
        return
    verdicts = []
    print(
        f"\n{'agreement':20} rank of noise at {', '.join(map(str, BITS))} bits; place of the exact worst layer; "
        "95 % intervals that hold, of linear cells, and of cells whose weight is moved far; "
        "rank of significant degradations, of how many"
    )
    for name in arguments.networks:
        exact = run(name, "exact", arguments.images)
        screens = [run(name, "screen", arguments.images, seed=seed) for seed in arguments.seeds]
        for screen in screens:
            print(agreement(name, exact, screen), flush=True)
        verdicts.append(guilty(name, exact, run(name, "auto", arguments.images, arguments.budget)))
        if arguments.figure:
            picture(name, exact, screens[0], arguments.figure)
    print(
        f"\n{'auto':20} {'passes':>8} {'sweep':>8} {'open':>6} {'run':>6} {'guilty':>6} {'missed':>7} {'extra':>6} "
        f"{'layers':>7} {'missed':>7} {'extra':>6}"
    )
    print("\n".join(verdicts))


if __name__ == "__main__":
    main()
