"""Does the analysis find a fault that was planted, and does the diagnosis name it?

    python benchmarks/planted_faults.py [NETWORK ...] [--out results.jsonl] [--quick] [--no-diagnosis] [--table]

Works through the faults that ``fault_search.py`` kept: each is planted again, and the network with it analysed as
``quantopsy analyze --bits 8`` and ``quantopsy diagnose`` do. Every fault is a line of ``--out``; started again, the
benchmark goes on behind the last. Then the tables: how often the faulty layer comes first, how often its cause is
named, with exact intervals (Clopper and Pearson), and what is found severe in the networks as they are, at 8 bits with
weights per channel.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fault_search import LIST, Journal, open_subject
from faults import KINDS, Fault, Subject, plant
from scipy.stats import binomtest
from torch.utils.data import TensorDataset

from quantopsy.analysis.analyze import analyze
from quantopsy.analysis.diagnose import diagnose
from quantopsy.analysis.results import Results
from quantopsy.analysis.settings import Settings
from quantopsy.report.tables import ranked

BITS = 8
SEVERE = "severe"
QUICK = "resnet20"


def analysed(subject: Subject, folder: Path) -> Results:
    """``quantopsy analyze --bits 8`` of the subject, the study in ``folder``."""
    settings = Settings(bits=(BITS,), scheme=subject.scheme, plan=subject.plan)
    return analyze(**_given(subject), out=folder, settings=settings)


def diagnosed(subject: Subject, folder: Path) -> list[tuple[str, str, str]]:
    """(layer, cause, severity): the first cause of every layer that ``quantopsy diagnose`` finds one for.

    A bias that overflows is arithmetic, and said beside whatever else is found.
    """
    found = diagnose(folder, bits=BITS, **_given(subject)).findings
    return [(f.layer, f.cause, f.severity) for f in found if f.primary or f.cause == "bias_overflow"]


def _given(subject: Subject) -> dict[str, Any]:
    return {
        "model": subject.network.module(),
        "data": TensorDataset(subject.images, subject.labels),
        "calibration": TensorDataset(subject.calibration),
    }


def outcome(subject: Subject, fault: Mapping[str, Any], diagnosis: bool) -> dict[str, Any]:
    """What is found with the fault of a line of the list in ``subject``: its layers' place, the findings."""
    begin = time.perf_counter()
    planted = plant(subject, Fault(**{**fault["fault"], "where": tuple(fault["fault"]["where"])}))
    with tempfile.TemporaryDirectory() as folder:
        results = analysed(planted.subject, Path(folder))
        findings = diagnosed(planted.subject, Path(folder)) if diagnosis else None
    order = ranked(results, BITS)
    by_noise = order.sort_values("noise", ascending=False)["name"]
    return {
        "place": place(order["name"], fault["layers"]),
        "place_faultiest": place(order["name"], fault["layers"][:1]),
        "place_noise": place(by_noise, fault["layers"]),
        "first": order[["name", "degradation", "noise", "method", "verdict"]].head(3).values.tolist(),
        "findings": findings,
        "passes": results.passes,
        "seconds": time.perf_counter() - begin,
    }


def place(names: Iterable[str], layers: Sequence[str]) -> int:
    """Where the first of ``layers`` comes among ``names``, from 1."""
    return next(place for place, name in enumerate(names, start=1) if name in layers)


def unharmed(name: str) -> dict[str, Any]:
    """What a diagnosis says of the network as it is, at 8 bits with weights per channel."""
    subject = replace(open_subject(name), scheme="per-channel")
    with tempfile.TemporaryDirectory() as folder:
        analysed(subject, Path(folder))
        return {"findings": diagnosed(subject, Path(folder))}


KEY = ("network", "kind", "seed", "number")


def run(
    name: str, faults: Iterable[Mapping[str, Any]], sound: Mapping[str, Any], out: Journal, diagnosis: bool
) -> None:
    """Everything about one network."""
    if diagnosis:
        out.once({"network": name, "what": "unharmed"}, lambda: unharmed(name))
    subject = replace(open_subject(name), plan=sound["plan"])
    for fault in faults:
        key = {"what": "fault", "diagnosis": diagnosis, **{part: fault[part] for part in KEY}}
        line = out.once(key, lambda fault=fault: outcome(subject, fault, diagnosis))
        print(described(fault, line), flush=True)


def described(fault: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """One fault and what was found, in a line."""
    text = f"{fault['network']:19} {fault['kind']:19} {fault['layer'] or '(calibration)':28} "
    text += f"costs {fault['lost'][0]:4.1f}, comes {line['place']:2d}"
    if line["place"] > 1:
        text += f" behind {line['first'][0][0]}"
    if line["findings"] is not None:
        causes = {cause for layer, cause, _ in line["findings"] if layer in fault["layers"]}
        text += f"; {'named' if named(fault, line) else 'NOT named'}: {', '.join(sorted(causes)) or 'nothing'}"
    return text


def named(fault: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    """Whether one of the faulty layers got a cause that holds."""
    return any(layer in fault["layers"] and cause in fault["causes"] for layer, cause, _ in line["findings"])


def share(hits: int, of: int) -> str:
    """A share with its exact 95 % interval."""
    if not of:
        return f"{'-':>25}"
    bounds = binomtest(hits, of).proportion_ci(0.95, method="exact")
    return f"{hits / of:6.1%} ({bounds.low:6.1%} to {bounds.high:6.1%})"


def table(faults: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> str:
    """By kind: attempts, kept faults, and shares of those whose layer comes first and whose cause is named.

    ``faults`` are the lines of the list, ``lines`` those of the results.
    """
    found = {tuple(line[part] for part in KEY): line for line in lines if line["what"] == "fault"}
    rows = [
        f"{'kind':19} {'tried':>5} {'kept':>5} {'points':>12}  {'a faulty layer first':25}  "
        f"{'the faultiest first':25}  {'first by noise':25}  cause named"
    ]
    for kind in (*KINDS, None):
        tried = [fault for fault in faults if fault["what"] == "fault" and kind in (None, fault["kind"])]
        kept = [fault for fault in tried if "fault" in fault]
        both = [(fault, line) for fault in kept if (line := found.get(tuple(fault[part] for part in KEY)))]
        # What costs nothing cannot come first.
        loud = [line for fault, line in both if not KINDS[fault["kind"]].silent]
        told = [named(fault, line) for fault, line in both if line["findings"] is not None]
        points = sorted(fault["lost"][0] for fault in kept if not KINDS[fault["kind"]].silent)
        if tried:
            shares = [
                share(sum(line[key] == 1 for line in loud), len(loud))
                for key in ("place", "place_faultiest", "place_noise")
            ]
            span = f"{points[0]:.1f} to {points[-1]:.1f}" if points else "-"
            cells = "  ".join([*shares, share(sum(told), len(told))])
            rows.append(f"{kind or 'all':19} {len(tried):5d} {len(kept):5d} {span:>12}  {cells}")
    return "\n".join([*rows, *_severe(lines)])


def _severe(lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for line in lines:
        if line["what"] == "unharmed":
            severe = [f"{layer}: {cause}" for layer, cause, severity in line["findings"] if severity == SEVERE]
            yield f"unharmed {line['network']}: severe findings: {', '.join(severe) or 'none'}"


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="[default: all of the list]")
    parser.add_argument("--list", type=Path, default=LIST, help="what fault_search.py found")
    parser.add_argument("--out", type=Path, default=Path("planted_faults_results.jsonl"), help="results, added to")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} only")
    parser.add_argument("--no-diagnosis", action="store_true", help="only where the faulty layer comes")
    parser.add_argument("--table", action="store_true", help="only print what --out has")
    arguments = parser.parse_args()
    faults, out = Journal(arguments.list), Journal(arguments.out)
    names = [QUICK] if arguments.quick else arguments.networks
    names = names or list(dict.fromkeys(line["network"] for line in faults.lines))
    some = [line for line in faults.lines if line["network"] in names]
    for name in [] if arguments.table else names:
        kept = [line for line in some if line["network"] == name and "fault" in line]
        if arguments.no_diagnosis:
            kept = [line for line in kept if not KINDS[line["kind"]].silent]
        sound = faults.line({"network": name, "what": "sound"})
        run(name, kept, sound, out, not arguments.no_diagnosis)
    print(f"\n{table(some, out.lines)}")


if __name__ == "__main__":
    main()
