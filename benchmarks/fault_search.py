"""Look for faults that cost something: the list that ``planted_faults.py`` works through.

    python benchmarks/fault_search.py [NETWORK ...] [--each 3] [--list planted_faults.jsonl]

For every network of the zoo and every kind of fault (``faults.py``): the fault is planted at random places, its
strength searched until the layer alone costs between 1 and 60 points at 8 bits. Faults that cost less than a point, or
not for certain, are dropped. Every attempt is a line of ``--list``, the same for the same seed; started again, the
search goes on behind the last.

A network is first made sound: layers that lose accuracy at 8 bits per tensor get weights per channel, and layers that
are guilty even so get no faults.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
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
from torch import Tensor

from quantopsy.analysis import significance
from quantopsy.analysis.schemes import SCHEMES, single_layer
from quantopsy.analysis.significance import Interval
from quantopsy.core import Plan
from quantopsy.engine.calibration import calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.outputs import squared_norms
from quantopsy.metrics import TopK

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
NETWORKS = ("resnet20", "squeezenet1_1", "mobilenet_v2_10", "efficientnet_lite0", "mobilenet_v1_025", "resnet56")
LIST = Path(__file__).with_name("planted_faults.jsonl")
IMAGES = {"resnet20": 512, "resnet56": 512}  # of 32 x 32; others are of about 200 x 200
DEFAULT_IMAGES, CALIBRATION_IMAGES, TILE = 256, 96, 32
LEAST, MOST = 1.0, 60.0
"""Points of top-1 that a fault has to cost, and may."""
AIMS = 2.5, 40.0  # what the search aims at, at random in ratio
FLOAT_TOLERANCE = 1e-4  # relative l2 distance per image, where the float function is claimed unchanged
FLOAT_CHANGE, FLOAT_POINTS = 0.1, 1.0  # elsewhere: the same on average, and points of top-1
SOUND_SQNR_DB = 20.0  # the noise of a sound layer stays this far below the signal
SEARCH_STEPS, SEARCH_IMAGES = 8, 128
ATTEMPTS = 4  # for every fault that is wanted of a kind
SIDE_SHARE, PLAIN_SHARE = 0.2, 2 / 3
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


def open_subject(name: str, count: int | None = None) -> Subject:
    """A network of the zoo with ``count`` evaluation images, and others for its ranges."""
    import zoo

    sets = zoo.NETWORKS[name]["datasets"]
    images, labels = _stacked(zoo.images(name, sets[0], count or IMAGES.get(name, DEFAULT_IMAGES)))
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
    :data:`SIDE_SHARE` of the noisiest site's noise counts; the noisiest comes first. ``plain``: the first cause's
    share of the noise of all sites of the first layer.
    """

    layers: tuple[str, ...]
    causes: tuple[str, ...]
    plain: float
    noise: Mapping[str, float]  # by site


def truth(planted: Planted) -> Truth:
    """The planted fault's sites as a measurement on a few images has them."""
    subject = planted.subject
    plans = {f"{site.layer} {site.role}": Plan.of({site: subject.full[site]}) for site in planted.sites}
    noise = measure(subject.first(2 * TILE), plans).noise
    by_site = dict(zip(planted.sites, noise.values(), strict=True))
    counting = [site for site in by_site if by_site[site] >= SIDE_SHARE * max(by_site.values())]
    counting.sort(key=lambda site: -by_site[site])
    layers = tuple(dict.fromkeys(site.layer for site in counting))
    causes = tuple(dict.fromkeys(planted.sites[site] for site in counting))
    there = {site: by_site[site] for site in by_site if site.layer == layers[0]}
    plain = sum(there[site] for site in there if planted.sites[site] == causes[0]) / sum(there.values())
    return Truth(layers, causes, plain, dict(noise))


def attempts(subject: Subject, guilty: Iterable[str], kind: str, seed: int) -> Iterator[tuple[Fault, float]]:
    """Faults of a kind at random places that were sound, with the loss to aim at, the same for the same seed."""
    random = Random(f"{seed} {subject.name} {kind}")
    excluded = set(guilty)
    for fault in KINDS[kind].places(subject, random):
        target = math.exp(random.uniform(*map(math.log, AIMS)))
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

    def line(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """The line that has ``key``; raises KeyError where there is none."""
        for line in self.lines:
            if key.items() <= line.items():
                return line
        raise KeyError(f"no line of {self.path} has {dict(key)}")

    def once(self, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The line that has ``key``; made, and written, where there is none."""
        try:
            return self.line(key)
        except KeyError:
            line = json.loads(json.dumps({**key, **make()}))
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line


def search_all(name: str, kinds: Iterable[str], each: int, seed: int, journal: Journal) -> None:
    """All attempts on one network, until ``each`` faults of every kind are kept or there is no more to try."""
    subject = sound_subject(name, journal)
    guilty = journal.line({"network": name, "what": "sound"})["guilty"]
    cells = _once(lambda: measure(subject, {}))
    for kind in kinds:
        kept = 0
        for number, (fault, target) in enumerate(attempts(subject, guilty, kind, seed)):
            if kept == each or number == ATTEMPTS * each:
                break
            line = journal.once(
                {"network": name, "what": "fault", "kind": kind, "seed": seed, "number": number},
                lambda fault=fault, target=target: _attempt(subject, cells(), fault, target),
            )
            kept += "fault" in line
            words = f"costs {line['lost'][0]:5.1f} points" if "fault" in line else f"dropped: {line['dropped']}"
            print(f"{name:20} {kind:20} {line['layer'] or '(calibration)':34} {words}", flush=True)


def sound_subject(name: str, journal: Journal) -> Subject:
    """The network of the zoo under the plan that the journal has for it, or gets."""
    subject = open_subject(name)
    line = journal.once({"network": name, "what": "sound"}, lambda: _soundness(subject))
    return replace(subject, plan=line["plan"])


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


def _attempt(subject: Subject, cells: Cells, fault: Fault, target: float) -> dict[str, Any]:
    begin = time.perf_counter()
    kept = search(subject, cells, fault, target)
    spent = {"layer": fault.layer, "aim": target, "seconds": time.perf_counter() - begin}
    if isinstance(kept, str):
        return {"dropped": kept, **spent}
    found = truth(kept.planted)
    if found.plain < PLAIN_SHARE:
        return {"dropped": f"no single cause: {' and '.join(found.causes)}", **spent}
    return {
        "fault": asdict(kept.planted.fault),
        "layers": found.layers,
        "causes": found.causes,
        "exact": kept.planted.exact,
        "lost": [kept.lost.value, kept.lost.low, kept.lost.high],
        "float_change": kept.float_change,
        "float_lost": kept.float_lost,
        "noise": found.noise,
        **spent,
    }


def main() -> None:
    """Search what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--each", type=int, default=3, help="faults to keep of every kind and network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", type=Path, default=LIST, help="the attempts, added to")
    arguments = parser.parse_args()
    journal = Journal(arguments.list)
    for name in arguments.networks:
        search_all(name, arguments.kinds, arguments.each, arguments.seed, journal)


if __name__ == "__main__":
    main()
