"""Does the analysis find a fault that was planted, and does the diagnosis name it?

    python benchmarks/planted_faults.py [NETWORK ...] [--each 4] [--out planted_faults.jsonl] [--quick] [--no-diagnosis]

For every network of the zoo and every kind of fault (``faults.py``): the fault is planted at random places, its
strength searched until the layer alone costs between 1 and 60 points at 8 bits, and the network with it analysed as
``quantopsy analyze --bits 8`` does. Faults that cost less than a point, or not for certain, are dropped. Every attempt
is a line of ``--out``; started again, the benchmark goes on behind the last. Then the tables: how often the faulty
layer comes first, how often its cause is named, with exact intervals (Clopper and Pearson).

A network is first made sound: layers that lose accuracy at 8 bits per tensor get weights per channel, and layers that
are guilty even so get no faults.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from compensated import RefusedError
from faults import KINDS, Fault, Planted, Subject, plant
from scipy.stats import binomtest
from torch import Tensor, fx, nn
from torch.utils.data import TensorDataset

from quantopsy.analysis import significance
from quantopsy.analysis.analyze import Settings, analyze
from quantopsy.analysis.results import Results
from quantopsy.analysis.schemes import SCHEMES, single_layer
from quantopsy.analysis.significance import Interval
from quantopsy.core import Plan
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine, squared_norms
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.metrics import TopK
from quantopsy.report.tables import ranked

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
NETWORKS = ("resnet20", "squeezenet1_1", "mobilenet_v2_10", "efficientnet_lite0", "mobilenet_v1_025", "resnet56")
IMAGES = {"resnet20": 512, "resnet56": 512}  # of 32 x 32; others are of about 200 x 200
DEFAULT_IMAGES, CALIBRATION_IMAGES, TILE = 256, 96, 32
BITS, SEVERE = 8, "severe"
LEAST, MOST = 1.0, 60.0
"""Points of top-1 that a fault has to cost, and may."""
FLOAT_TOLERANCE = 1e-4  # relative l2 distance per image, where the float function is claimed unchanged
FLOAT_CHANGE, FLOAT_POINTS = 0.1, 1.0  # elsewhere: the same on average, and points of top-1
SOUND_SQNR_DB = 20.0  # the noise of a sound layer stays this far below the signal
SEARCH_STEPS, SEARCH_IMAGES = 8, 128
ATTEMPTS = 4  # for every fault that is wanted of a kind
SIDE_SHARE = 0.2
LAYERS_TRIED = 4  # layers whose loss is measured in the search


@dataclass(frozen=True)
class Cells:
    """Quantized networks by name beside the float one: its outputs, and of each its noise and what it loses."""

    outputs: Tensor
    correct: Tensor
    noise: Mapping[str, float]
    lost: Mapping[str, Interval]


def measure(subject: Subject, plans: Mapping[str, Plan], level: float = 0.95) -> Cells:
    """Every plan on all images, exactly; intervals of coverage ``level``."""
    program = compile_network(subject.network)
    batches = [(part,) for part in subject.calibration.split(TILE)]
    engine = ExactEngine(program, calibrate(program, batches, wanted_statistics(subject.network, plans.values())))
    prepared = [engine.prepare(plan) for plan in plans.values()]
    metric = TopK(1)
    outputs, noise = [], defaultdict(float)
    hits: dict[int, list[Tensor]] = defaultdict(list)
    for images, labels in zip(subject.images.split(TILE), subject.labels.split(TILE), strict=True):
        for found in engine.run_tile((images,), prepared):
            if found.run < 0:
                reference = found.outputs
                outputs.append(reference[0])
            else:
                noise[found.run] += float(squared_norms(found.outputs, reference).sum())
            hits[found.run].append(metric.per_image(found.outputs, labels, reference))
    correct = {run: torch.cat(parts) for run, parts in hits.items()}
    count = len(subject.images)
    return Cells(
        torch.cat(outputs),
        correct[-1],
        {name: noise[run] / count for run, name in enumerate(plans)},
        {
            name: significance.degradation(metric, correct[-1].numpy(), correct[run].numpy(), level=level)
            for run, name in enumerate(plans)
        },
    )


def layer_plans(subject: Subject, layers: Iterable[str]) -> dict[str, Plan]:
    """The single-layer quantized networks of ``layers``."""
    return {name: single_layer(subject.full, subject.network.layer(name)) for name in layers}


def open_subject(name: str) -> Subject:
    """A network of the zoo with evaluation images, and others for its ranges."""
    import zoo

    sets = zoo.NETWORKS[name]["datasets"]
    images, labels = _stacked(zoo.images(name, sets[0], IMAGES.get(name, DEFAULT_IMAGES)))
    mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # the first few are of all classes
    images, labels = images[mixed], labels[mixed]
    calibration, _ = _stacked(zoo.images(name, sets[1], CALIBRATION_IMAGES))
    return Subject(name, capture(zoo.network(name), (images[:2],)), images, labels, calibration)


def _stacked(dataset: Any) -> tuple[Tensor, Tensor]:
    items = [dataset[index] for index in range(len(dataset))]
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def made_sound(subject: Subject) -> tuple[Subject, list[str]]:
    """``subject`` with weights per channel where a layer is guilty per tensor; and the layers guilty even so."""
    guilty = _guilty(subject, subject.network.names)
    spec = SCHEMES["per-channel"]["weight"].to_json()
    weighted = {layer.name for layer in subject.network.layers if layer.weight is not None}
    sound = replace(subject, plan={"layers": {name: {"weight": spec} for name in guilty if name in weighted}})
    return sound, _guilty(sound, guilty) if guilty else []


def _guilty(subject: Subject, layers: Iterable[str]) -> list[str]:
    plans = layer_plans(subject, layers)
    cells = measure(subject, plans, significance.corrected_level(0.95, len(plans)))
    signal = float(squared_norms([cells.outputs]).mean())
    return [
        name
        for name in layers
        if cells.lost[name].low > 0.0 or cells.noise[name] > signal * 10 ** (-SOUND_SQNR_DB / 10)
    ]


@dataclass(frozen=True)
class Kept:
    """A fault that costs enough: what it costs, and what it does to the float network."""

    planted: Planted
    lost: Interval
    float_change: float  # relative l2 distance of an image's output: the largest, of an inexact fault the mean
    float_lost: float  # points


def search(subject: Subject, sound: Cells, fault: Fault, target: float) -> Kept | str:
    """``fault`` at the strength that comes nearest to costing ``target`` points, or why there is none.

    By bisection, in ratio, between the kind's weakest and its strongest, which is tried first. What changes the
    float network is too strong.
    """
    kind = KINDS[fault.kind]
    low, high = math.log(kind.weakest), math.log(kind.strongest)
    if kind.silent:
        return _weighed(subject, sound, replace(fault, strength=math.exp((low + high) / 2)), len(subject.images))
    best, strength = None, high
    reason = too_little = f"costs less than {LEAST:g} point, or not for certain"
    for step in range(SEARCH_STEPS):
        try:
            found = _weighed(subject, sound, replace(fault, strength=math.exp(strength)), SEARCH_IMAGES)
        except RefusedError as refusal:
            high, reason = strength, str(refusal)
        else:
            if step == 0 and found.lost.value < LEAST:
                break
            if LEAST <= found.lost.value <= MOST and (best is None or _off(found, target) < _off(best, target)):
                best = found
            if best is not None and _off(best, target) < math.log(1.25):
                break
            low, high = (strength, high) if found.lost.value < target else (low, strength)
        strength = (low + high) / 2
    if best is None:
        return reason
    try:
        best = _weighed(subject, sound, best.planted.fault, len(subject.images))
    except RefusedError as refusal:
        return str(refusal)
    return best if best.lost.value >= LEAST and best.lost.low > 0.0 else too_little


def _weighed(subject: Subject, sound: Cells, fault: Fault, images: int) -> Kept:
    """What the fault costs on the first ``images``, where it costs most.

    Raises :class:`RefusedError` where the float network changes more than it may.
    """
    planted = plant(subject, fault)
    layers = planted.layers
    if len(layers) > LAYERS_TRIED:  # of a wrong calibration set many suffer, of a dark one the first most
        layers = (layers[0], *Random(subject.name).sample(layers[1:], LAYERS_TRIED - 1))
    cells = measure(planted.subject.first(images), layer_plans(planted.subject, layers))
    expected = sound.outputs[:images].flatten(1)
    change = (cells.outputs.flatten(1) - expected).norm(dim=1) / expected.norm(dim=1)
    float_change = float(change.max() if planted.exact else change.mean())
    float_lost = 100.0 * float((sound.correct[:images] - cells.correct).mean())
    if float_change > (FLOAT_TOLERANCE if planted.exact else FLOAT_CHANGE):
        raise RefusedError(f"the float output changes by {float_change:.1e}")
    if abs(float_lost) > FLOAT_POINTS:
        raise RefusedError(f"the float network loses {float_lost:.1f} points")
    worst = max(cells.lost.values(), key=lambda interval: interval.value, default=Interval(0.0, 0.0, 0.0))
    return Kept(planted, worst, float_change, float_lost)


def _off(kept: Kept, target: float) -> float:
    return abs(math.log(kept.lost.value / target))


@dataclass(frozen=True)
class Truth:
    """What is to be found: the layers that are faulty and the causes that hold, by the noise of their sites.

    A rescaled channel, say, wastes the range of its weight, of the activation, or of both. What makes a share of
    :data:`SIDE_SHARE` of the noisiest site's noise counts; the noisiest comes first.
    """

    layers: tuple[str, ...]
    causes: tuple[str, ...]
    noise: Mapping[str, float]  # by site


def truth(planted: Planted) -> Truth:
    """The planted fault's sites as a measurement on a few images has them."""
    if len(set(planted.sites.values())) == 1 and len(planted.layers) > LAYERS_TRIED:
        return Truth(planted.layers, (*set(planted.sites.values()),), {})
    subject = planted.subject
    plans = {f"{site.layer} {site.role}": Plan.of({site: subject.full[site]}) for site in planted.sites}
    noise = measure(subject.first(2 * TILE), plans).noise
    by_site = dict(zip(planted.sites, noise.values(), strict=True))
    counting = [site for site in by_site if by_site[site] >= SIDE_SHARE * max(by_site.values())]
    counting.sort(key=lambda site: -by_site[site])
    return Truth(
        tuple(dict.fromkeys(site.layer for site in counting)),
        tuple(dict.fromkeys(planted.sites[site] for site in counting)),
        dict(noise),
    )


def as_module(network: Network) -> nn.Module:
    """``network`` as a module that captures to the same layers: what a user would have with the fault in it."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    return fx.GraphModule(dict(network.tensors), graph).eval()


def analysed(subject: Subject, folder: Path) -> Results:
    """``quantopsy analyze --bits 8`` of the subject, the study in ``folder``."""
    settings = Settings(bits=(BITS,), scheme=subject.scheme, plan=subject.plan)
    return analyze(
        as_module(subject.network),
        TensorDataset(subject.images, subject.labels),
        calibration=TensorDataset(subject.calibration),
        out=folder,
        settings=settings,
    )


def diagnosed(subject: Subject, folder: Path) -> list[tuple[str, str, str]]:
    """(layer, cause, severity) of every finding about the subject whose study is in ``folder``."""
    raise NotImplementedError("there is no diagnosis yet: --no-diagnosis")


def record(kept: Kept, diagnosis: bool) -> dict[str, Any]:
    """Everything about one kept fault: the truth, the place of the faulty layer, what was said of it."""
    planted, found = kept.planted, truth(kept.planted)
    line = {
        "fault": asdict(planted.fault),
        "layers": found.layers,
        "causes": found.causes,
        "lost": [kept.lost.value, kept.lost.low, kept.lost.high],
        "float_change": kept.float_change,
        "float_lost": kept.float_lost,
        "site_noise": found.noise,
        "place": None,
        "findings": None,
    }
    silent = KINDS[planted.fault.kind].silent
    if silent and not diagnosis:
        return line
    with tempfile.TemporaryDirectory() as folder:
        results = analysed(planted.subject, Path(folder))
        if diagnosis:
            line["findings"] = diagnosed(planted.subject, Path(folder))
    order = ranked(results, BITS)
    if not silent:
        by_noise = order.sort_values("noise", ascending=False)
        line["place"] = _place(order["name"], found.layers)
        line["place_strict"] = _place(order["name"], found.layers[:1])
        line["place_noise"] = _place(by_noise["name"], found.layers)
    first = order[["name", "degradation", "noise", "method", "verdict"]].head(3).values.tolist()
    return {**line, "first": first, "passes": results.passes, "seconds": results.seconds}


def _place(names: Iterable[str], layers: Iterable[str]) -> int:
    """Where the first of ``layers`` comes, from 1."""
    wanted = set(layers)
    return next(place for place, name in enumerate(names, start=1) if name in wanted)


def attempts(subject: Subject, guilty: Iterable[str], kind: str, seed: int) -> Iterator[tuple[Fault, float]]:
    """Faults of a kind at random places that were sound, with the loss to aim at, the same for the same seed."""
    random = Random(f"{seed} {subject.name} {kind}")
    excluded = set(guilty)
    for fault in KINDS[kind].places(subject, random):
        target = math.exp(random.uniform(math.log(2.5), math.log(40.0)))
        if fault.layer not in excluded and _possible(subject, fault):
            yield fault, target


def _possible(subject: Subject, fault: Fault) -> bool:
    """Whether the algebra allows the fault at any strength."""
    if not fault.layer:
        return True
    try:
        plant(subject, replace(fault, strength=1.01 * KINDS[fault.kind].weakest))
    except RefusedError:
        return False
    return True


class Journal:
    """The lines of a file, one for every attempt: what is there is not done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a line
        if whole != text:
            path.write_text(whole)
        self.lines = [json.loads(line) for line in whole.splitlines()]

    def once(self, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The line that has ``key``; made, and written, where there is none."""
        for line in self.lines:
            if key.items() <= line.items():
                return line
        line = json.loads(json.dumps({**key, **make()}))
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line


def run(name: str, kinds: Iterable[str], each: int, seed: int, journal: Journal, diagnosis: bool) -> None:
    """All attempts on one network, and what is said of it unharmed."""
    if diagnosis:
        journal.once({"network": name, "what": "unharmed"}, lambda: _unharmed(name))
    subject = open_subject(name)
    sound = journal.once({"network": name, "what": "sound"}, lambda: _soundness(subject))
    subject = replace(subject, plan=sound["plan"])
    network = _once(lambda: measure(subject, {}))
    for kind in kinds:
        kept = 0
        for number, (fault, target) in enumerate(attempts(subject, sound["guilty"], kind, seed)):
            if kept == each or number == ATTEMPTS * each:
                break
            line = journal.once(
                {"network": name, "what": "fault", "kind": kind, "seed": seed, "number": number},
                lambda fault=fault, target=target: _attempt(subject, network(), fault, target, diagnosis),
            )
            kept += "place" in line
            print(_line(line), flush=True)


def _unharmed(name: str) -> dict[str, Any]:
    """What a diagnosis says of the network as it is, at 8 bits with weights per channel."""
    subject = replace(open_subject(name), scheme="per-channel")
    with tempfile.TemporaryDirectory() as folder:
        analysed(subject, Path(folder))
        return {"findings": diagnosed(subject, Path(folder))}


def _soundness(subject: Subject) -> dict[str, Any]:
    sound, guilty = made_sound(subject)
    return {"plan": sound.plan, "guilty": guilty}


def _once(make: Callable[[], Cells]) -> Callable[[], Cells]:
    made: list[Cells] = []

    def get() -> Cells:
        if not made:
            made.append(make())
        return made[0]

    return get


def _attempt(subject: Subject, cells: Cells, fault: Fault, target: float, diagnosis: bool) -> dict[str, Any]:
    begin = time.perf_counter()
    found = search(subject, cells, fault, target)
    if isinstance(found, str):
        return {"layer": fault.layer, "dropped": found, "took": time.perf_counter() - begin}
    return {"layer": fault.layer, **record(found, diagnosis), "took": time.perf_counter() - begin}


def _line(line: Mapping[str, Any]) -> str:
    head = f"{line['network']:20} {line['kind']:20} {line['layer'] or '(calibration)':34}"
    if "dropped" in line:
        return f"{head} dropped: {line['dropped']}"
    if line["place"] is None:
        return f"{head} costs nothing where integers are simulated"
    first = f"; first is {line['first'][0][0]}" if line["place"] > 1 else ""
    return f"{head} costs {line['lost'][0]:5.1f} points, comes {line['place']}{first}"


def share(hits: int, of: int) -> str:
    """A share with its exact 95 % interval."""
    if not of:
        return f"{'-':>24}"
    bounds = binomtest(hits, of).proportion_ci(0.95, method="exact")
    return f"{hits / of:6.1%} ({bounds.low:5.1%} to {bounds.high:6.1%})"


def named(line: Mapping[str, Any]) -> bool:
    """Whether the diagnosis gave one of the faulty layers a cause that holds."""
    return any(layer in line["layers"] and cause in line["causes"] for layer, cause, _ in line["findings"])


def table(lines: list[dict[str, Any]]) -> str:
    """By kind: attempts, kept, shares of those whose layer comes first and whose cause is named."""
    faults = [line for line in lines if line["what"] == "fault"]
    rows = [
        f"{'kind':20} {'tried':>5} {'kept':>5} {'points':>13}  {'a faulty layer first':24}  "
        f"{'the faultiest first':24}  {'first by noise':24}  cause named"
    ]
    for kind in (*KINDS, None):
        tried = [line for line in faults if kind in (None, line["kind"])]
        kept = [line for line in tried if "place" in line]
        if not tried:
            continue
        points = sorted(line["lost"][0] for line in kept if line["place"] is not None)
        span = f"{points[0]:.1f} to {points[-1]:.1f}" if points else "-"
        first = (sum(line.get(key) == 1 for line in kept) for key in ("place", "place_strict", "place_noise"))
        known = [line for line in kept if line["findings"] is not None]
        rows.append(
            f"{kind or 'all':20} {len(tried):5d} {len(kept):5d} {span:>13}  "
            + "  ".join(share(hits, len(points)) for hits in first)
            + f"  {share(sum(map(named, known)), len(known))}"
        )
    for line in lines:
        if line["what"] == "unharmed":
            severe = [f"{layer}: {cause}" for layer, cause, severity in line["findings"] if severity == SEVERE]
            rows.append(f"unharmed {line['network']}: severe findings: {', '.join(severe) or 'none'}")
    return "\n".join(rows)


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--each", type=int, default=4, help="faults to keep of every kind and network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("planted_faults.jsonl"), help="results, added to")
    parser.add_argument("--quick", action="store_true", help="resnet20 only, two of every kind")
    parser.add_argument("--no-diagnosis", action="store_true", help="only where the faulty layer comes")
    parser.add_argument("--table", action="store_true", help="only print what --out has")
    arguments = parser.parse_args()
    journal = Journal(arguments.out)
    if not arguments.table:
        networks, each = (("resnet20",), 2) if arguments.quick else (arguments.networks, arguments.each)
        for name in networks:
            run(name, arguments.kinds, each, arguments.seed, journal, not arguments.no_diagnosis)
    print(f"\n{table(journal.lines)}")


if __name__ == "__main__":
    main()
