"""Why a layer hurts: suspects from evidence, each confirmed or cleared by a counterfactual that is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantopsy.analysis import significance
from quantopsy.analysis.causes import (
    FIXES,
    ORDER,
    Scene,
    Suspect,
    in_16_bits,
    left_by_error,
    overflowing,
    suspects,
    wide_plans,
)
from quantopsy.analysis.phases import Measuring, measure_plans, pieces
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.results import Results
from quantopsy.analysis.schemes import at_bits, single_layer
from quantopsy.analysis.subject import Subject, calibrated, measuring, reopen
from quantopsy.analysis.summary import local_json, summarise
from quantopsy.core import Cause, Finding, Plan, QuantopsyError, Removed, Role, Site, Spec
from quantopsy.data import prefetch
from quantopsy.engine.layer_noise import Local, look
from quantopsy.graph.network import Layer
from quantopsy.metrics import Metric
from quantopsy.study import FLOAT, RunResult, Store

LAYERS = 8
"""Layers that are examined where the user names none: those that cost most."""

SAMPLES = 256
"""Images that tests are run on, where nothing else is said."""

EXPLAINED = 0.5
"""A cause is confirmed where its counterfactual removes at least this share of the cell's noise."""

AS_GOOD = 0.8
"""Of confirmed causes the most specific one that explains this share of what the best one does is primary."""

LUCK = 4.0
"""A change may leave this much less noise than independent errors of the weight would (``left_by_error``): behind
inputs that vary together few errors add up, and chance is large. Up to 3 in the layers of MobileNet-V1 as they are."""

_HIGH_GAIN = 2.0  # robust standard deviations of log gain above the network's layers


@dataclass(frozen=True)
class Trial:
    """A suspect with the best of its changes, and what that removes."""

    suspect: Suspect
    change: str
    removed: Removed
    accounted: float = 1.0  # share of what is removed that the weight's smaller error accounts for

    @property
    def explained(self) -> float:
        """Share of the noise that the suspect explains."""
        return self.accounted * self.removed.noise[0]


def diagnose(
    study: str | Path,
    *,
    bits: int | None = None,
    layers: Sequence[str] = (),
    samples: int | None = SAMPLES,
    progress: Progress | None = None,
    **instead: Any,
) -> Results:
    """Find out why layers of ``study`` hurt at ``bits``, and add the findings to it.

    ``bits``: the highest bit-width at which something hurts where none is given; ``layers``: patterns,
    else those whose cells hurt, and open ones that seem to, :data:`LAYERS` at most. ``samples`` images of
    the study's are run. ``instead``: as of :func:`quantopsy.analysis.subject.reopen`. Raises
    :class:`QuantopsyError` for whatever the user can mend.
    """
    progress = progress or Silent()
    with reopen(study, progress, **instead) as (store, subject):
        return diagnosed(store, subject, progress, bits=bits, layers=layers, samples=samples)


def diagnosed(
    store: Store,
    subject: Subject,
    progress: Progress,
    *,
    bits: int | None = None,
    layers: Sequence[str] = (),
    samples: int | None = SAMPLES,
) -> Results:
    """:func:`diagnose` of a study that is open."""
    results = summarise(store, subject.metric, complete=True)
    at, chosen = _chosen(results, subject, bits, layers)
    findings = examine(store, replace(subject, order=subject.order[:samples]), at, chosen, results, progress)
    again = {layer.name for layer in chosen}
    kept = [
        f
        for f in store.noted("findings", [])
        if f["bits"] != at or (f["layer"] not in again and f["cause"] != "bias_overflow")
    ]
    store.note("findings", kept + [finding.to_json() for finding in findings])
    store.note("diagnosed", sorted({*store.noted("diagnosed", []), at}))
    return summarise(store, subject.metric, complete=True)


def _chosen(
    results: Results, subject: Subject, bits: int | None, patterns: Sequence[str]
) -> tuple[int, tuple[Layer, ...]]:
    """The bit-width, and the layers to examine in topological order."""
    cells = results.cells
    if bits is not None and bits not in results.bits:
        raise QuantopsyError(
            f"bit-width {bits}",
            f"the study has {', '.join(map(str, results.bits))}",
            f"run `quantopsy analyze` with --bits {bits} first",
        )
    suspicious = (cells["verdict"] == "hurts") | (
        (cells["verdict"] == "undecided") & (cells["degradation"] > max(results.tolerance, 0.0))
    )
    at = (
        bits if bits is not None else int(cells.loc[suspicious, "bits"].max()) if suspicious.any() else results.bits[-1]
    )
    if patterns:
        return at, subject.network.match(patterns)
    here = cells[suspicious & (cells["bits"] == at)]
    names = set(here.sort_values("degradation", ascending=False)["name"].head(LAYERS))
    return at, tuple(layer for layer in subject.network.layers if layer.name in names)


def examine(
    store: Store, subject: Subject, bits: int, chosen: Sequence[Layer], results: Results, progress: Progress
) -> list[Finding]:
    """Findings with weights at ``bits``: evidence, tests and causes of ``chosen`` layers, and biases that overflow.

    Those are looked for in all layers: no cell shows them, since floats that stand for integers do not overflow.
    """
    full = at_bits(subject.full, bits)
    plans = {layer.name: single_layer(full, layer) for layer in subject.network.layers}
    plans = {name: plan for name, plan in plans.items() if plan}
    # Tests may fix a range, for which extremes have to be known, whatever the plan's own estimators collect.
    wanted = [subject.full, _by_extremes(subject.full), *plans.values()]
    ranges = calibrated(subject, wanted + [p for layer in chosen for p in wide_plans(plans[layer.name])], progress)
    with measuring(subject, store, ranges, progress) as bench:
        locals_ = _looked_at(bench, subject, plans)
        store.note(f"local.{bits}", {name: local_json(local) for name, local in locals_.items()})
        every = {name: _scene(subject, subject.network.layer(name), plans[name], locals_[name]) for name in plans}
        scenes = {layer.name: every[layer.name] for layer in chosen}
        suspected = {name: suspects(scene) for name, scene in scenes.items()}
        tests = [
            plan
            for name, scene in scenes.items()
            for plan in (
                scene.plan,
                *in_16_bits(scene).values(),
                *(change for suspect in suspected[name] for change in suspect.changes.values()),
            )
        ]
        # A change may leave nothing quantized at all: then all its noise is gone without running it.
        runs = {store.run(plan): plan for plan in tests if plan}
        if runs:
            measure_plans(bench, runs, everywhere=set(runs))
        gains = _gains(results, bits, locals_)
        court = Court(store, subject.metric, np.sort(subject.order), results.level, bits, results, gains)
        tried = {name: [court.tested(scene, s) for s in suspected[name]] for name, scene in scenes.items()}
        # What no single change explains, several may: a loud channel spoils the grids of weight and output alike.
        pairs = {name: together(scenes[name].plan, trials) for name, trials in tried.items() if not confirmed(trials)}
        joint = {name: pair for name, pair in pairs.items() if pair is not None}
        runs = {store.run(plan): plan for plan, _ in joint.values()}
        if runs:
            measure_plans(bench, runs, everywhere=set(runs))
        found: list[Finding] = []
        for name, scene in every.items():
            if name in scenes:
                found += court.findings(scene, tried[name], joint.get(name))
            overflow = overflowing(scene)
            if overflow is not None:
                found.append(court.finding(scene, overflow, primary=name not in scenes))
        return found


def _by_extremes(plan: Plan) -> Plan:
    """The activations of ``plan`` with ranges from their extremes."""
    return Plan.of(
        {
            site: replace(spec, kind="uniform", options=(), range_estimator="min_max")
            for site, spec in plan.sites
            if site.role != "weight"
        }
    )


def _looked_at(bench: Measuring, subject: Subject, plans: Mapping[str, Plan]) -> dict[str, Local]:
    some = subject.order[:64]  # what is seen there is a mean over as many positions as images times pixels
    bench.progress.start("evidence", len(some))

    def batches() -> Iterable[Any]:
        for batch in prefetch(subject.images, pieces(np.sort(some), subject.tile)):
            yield batch.inputs
            bench.progress.advance(len(batch.indices))

    return look(bench.engine, batches(), plans)


def _scene(subject: Subject, layer: Layer, plan: Plan, local: Local) -> Scene:
    tensors = subject.network.tensors
    bias = None if layer.bias is None else tensors[layer.bias]
    return Scene(layer, plan, subject.network.weight(layer), bias, local)


def _gains(results: Results, bits: int, locals_: Mapping[str, Local]) -> dict[str, float]:
    """Network noise over local noise, by layer: what the rest of the network makes of an error there."""
    cells = results.cells[results.cells["bits"] == bits].set_index("name")["noise"]
    return {
        name: float(cells[name]) / local.noise for name, local in locals_.items() if name in cells and local.noise > 0
    }


@dataclass(frozen=True)
class Court:
    """Hears what was run on ``images`` (ascending) with weights at ``bits`` and decides; intervals at ``level``.

    ``gains``: of every layer, what the rest of the network makes of an error there.
    """

    store: Store
    metric: Metric
    images: np.ndarray
    level: float
    bits: int
    results: Results
    gains: Mapping[str, float]

    def findings(
        self, scene: Scene, tested: Sequence[Trial], joint: tuple[Plan, tuple[Trial, ...]] | None
    ) -> list[Finding]:
        """The causes of one layer that hold, the primary one first; one that says there is no single cause else."""
        shares = self.shares(scene)
        held = confirmed(tested)
        if not held and joint is not None:
            plan, trials = joint
            removed = self.removed(scene.plan, plan)
            both = " and ".join(trial.change for trial in trials)
            held = [replace(trial, change=both, removed=removed) for trial in trials if explains(removed)]
        found = [
            self.finding(scene, t.suspect, position == 0, shares=shares, change=t.change, removed=t.removed)
            for position, t in enumerate(held)
        ]
        if not held:
            most: Role = max(shares, key=lambda role: shares[role]) if shares else "weight"
            cause: Cause = "amplification" if _amplifies(scene.layer.name, self.gains) else "no_single_cause"
            best = self.removed(scene.plan, in_16_bits(scene)[most]) if shares else None
            change = f"16 bits at its {most}" if shares else None
            unnamed = Suspect(cause, (most,), {})
            found.append(self.finding(scene, unnamed, True, shares=shares, change=change, removed=best))
        return found

    def finding(self, scene: Scene, suspect: Suspect, primary: bool, **details: Any) -> Finding:
        """``suspect`` found in the layer of ``scene``."""
        name, local = scene.layer.name, scene.local
        cells = self.results.cells
        cell = cells[(cells["name"] == name) & (cells["bits"] == self.bits)].iloc[0]
        severe = cell["verdict"] == "hurts" and cell["degradation"] > self.results.tolerance
        evidence = {
            "local_sqnr_db": local.sqnr_db,
            "gain": self.gains.get(name, float("nan")),
            "shift_share": local.shift_share,
            **suspect.evidence,
        }
        return Finding(
            name, self.bits, suspect.cause, primary, "severe" if severe else "mild",
            sites=suspect.sites, evidence=evidence, fixes=FIXES[suspect.cause], **details,
        )  # fmt: skip

    def tested(self, scene: Scene, suspect: Suspect) -> Trial:
        """``suspect`` with the one of its changes that explains most."""

        def trial(words: str, change: Plan) -> Trial:
            removed = self.removed(scene.plan, change)
            expected = left_by_error(scene, change)
            left = max(0.0, 1.0 - removed.noise[0])
            return Trial(suspect, words, removed, min(1.0, LUCK * left / expected) if expected > 0.0 else 1.0)

        return max((trial(*change) for change in suspect.changes.items()), key=lambda trial: trial.explained)

    def removed(self, plan: Plan, change: Plan) -> Removed:
        """What ``change`` takes away from ``plan``'s noise (share) and degradation, paired over images."""
        before, after = self._result(plan), self._result(change)
        back = significance.degradation(self.metric, after.statistics, before.statistics, level=self.level)
        left = significance.ratio_of_means(after.energy, before.energy, self.level)
        return Removed((1 - left.value, 1 - left.high, 1 - left.low), back.estimate)

    def shares(self, scene: Scene) -> dict[Role, float]:
        """Of the cell's noise, what each site brings: what 16 bits there remove, scaled to a sum of 1."""
        gone = {
            role: max(0.0, self.removed(scene.plan, plan).noise[0]) for role, plan in in_16_bits(scene).items()
        }  # fmt: skip
        total = sum(gone.values())
        return {role: share / total for role, share in gone.items()} if total > 0 else {}

    def _result(self, plan: Plan) -> RunResult:
        run = self.store.run(plan) if plan else FLOAT
        result = self.store.result(run)
        assert result is not None
        found = result.on(self.images)
        return found if plan else replace(found, energy=np.zeros_like(found.energy))


def confirmed(tested: Sequence[Trial]) -> list[Trial]:
    """The tests whose change removes :data:`EXPLAINED` of the noise, some of it for certain; the primary first."""
    held = [t for t in tested if explains(t.removed)]
    if not held:
        return []
    best = max(t.explained for t in held)
    as_good = [t for t in held if t.explained >= AS_GOOD * best]
    first = min(as_good, key=lambda t: ORDER.index(t.suspect.cause))
    return [first, *sorted((t for t in held if t is not first), key=lambda t: -t.removed.noise[0])]


def explains(removed: Removed) -> bool:
    """Whether that is at least :data:`EXPLAINED` of the noise, and some of it for certain."""
    return removed.noise[0] >= EXPLAINED and removed.noise[1] > 0.0


def together(plan: Plan, tested: Sequence[Trial]) -> tuple[Plan, tuple[Trial, ...]] | None:
    """``plan`` with the changes of several trials, those that remove most first, each of other sites than the
    ones before; None where there are not two of them."""
    sites: dict[Site, Spec] = dict(plan)
    taken: list[Trial] = []
    touched: set[Site] = set()
    for trial in sorted(tested, key=lambda t: -t.removed.noise[0]):
        changed = trial.suspect.changes[trial.change]
        differing = {site for site in plan if changed.get(site) != plan[site]}
        if differing & touched or not all(site in changed for site in differing):
            continue
        touched |= differing
        sites |= {site: changed[site] for site in differing}
        taken.append(trial)
    return (Plan.of(sites), tuple(taken)) if len(taken) > 1 else None


def _amplifies(name: str, gains: Mapping[str, float]) -> bool:
    """Whether the network makes far more of an error at this layer than of one at others."""
    if name not in gains or len(gains) < 4:
        return False
    logs = np.log([gain for gain in gains.values() if gain > 0])
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    return bool(gains[name] > 0 and spread > 0 and np.log(gains[name]) > middle + _HIGH_GAIN * spread)
