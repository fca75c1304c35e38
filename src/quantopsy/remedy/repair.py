"""The cheapest repair, proven (layer-wise paper, section 5 and Table 1): local, measured, rolled back where it fails.

The study's images are split in three. On the first, proposals are compared; on the second, one is kept or dropped; the
third is looked at once, at the end, and is what the result is reported on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from quantopsy.analysis.budget import Budget
from quantopsy.analysis.diagnose import diagnosed
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.results import Results
from quantopsy.analysis.schemes import at_bits
from quantopsy.analysis.subject import Subject, reopen
from quantopsy.analysis.summary import summarise
from quantopsy.core import Cause, Plan, QuantopsyError, Site
from quantopsy.core.allocation import Decisions
from quantopsy.core.recipe import RECIPE, Mended, Recipe, Repair, Step
from quantopsy.engine.adaround import Effort
from quantopsy.graph.network import Layer, Network
from quantopsy.quant.grouping import rows_per_channel
from quantopsy.remedy.fixes import FIXES, Cost, Proposal, proposals, sharing
from quantopsy.remedy.proof import Parts, proof, provenance_of, written
from quantopsy.remedy.target import ANY, Target, check_start
from quantopsy.remedy.target import target as profile_of
from quantopsy.remedy.variants import Correction, Difference, Variant, Variants
from quantopsy.study import Store
from quantopsy.transforms.bias_absorption import find_bias_absorption
from quantopsy.transforms.dead_channels import find_dead_channels
from quantopsy.transforms.equalization import find_equalization

LAYERS = 8  # that a round of local fixes looks at
EFFECT_WHOLE, EFFECT_ALONE = 0.95, 0.7
"""Noise after over before from which less of it is worth a step: of the whole network, of a layer alone."""

TRIED = 2  # fixes of a layer that are run, of those that the screen likes best


def repair(
    study: str | Path,
    *,
    bits: int | None = None,
    max_drop: float | None = None,
    target: str | Path = ANY,
    out: str | Path | None = None,
    budget: str | None = None,
    effort: Effort = Effort(),
    progress: Progress | None = None,
    **instead: Any,
) -> Results:
    """Repair the network of ``study`` with weights at ``bits`` until it loses at most ``max_drop`` of the metric.

    ``bits``: the study's highest where none is given. ``max_drop``: in the metric's unit, half the study's tolerance
    where none is given. ``target``: the profile of what it is to run on. ``out``: the recipe's file, ``recipe.json`` of
    the study where none is given. ``budget``: a time, after which nothing new is tried. ``instead``: as of
    :func:`quantopsy.analysis.subject.reopen`. What was done is ``repaired`` of what is returned. Raises
    :class:`QuantopsyError` for whatever the user can mend.
    """
    progress = progress or Silent()
    folder = Path(study)
    profile = profile_of(target)
    limit = _seconds(budget)
    if max_drop is not None and not isfinite(max_drop):
        raise QuantopsyError(f"--max-drop {max_drop}", "is no loss to end at", "give a number in the metric's unit")
    with reopen(folder, progress, **instead) as (store, subject):
        results = summarise(store, subject.metric, complete=True)
        at = _width(results, bits)
        Parts.of(subject.order)
        start = at_bits(subject.full, at)
        check_start(profile, start, {layer.name: layer.op for layer in subject.network.layers})
        drop = results.tolerance / 2 if max_drop is None else max_drop
        session = Session(subject, store, results, at, profile, drop, limit, effort, progress)
        recipe, done = session.run()
        recipe.save(out if out is not None else folder / RECIPE)
        store.note("repair", done.to_json())
        return summarise(store, subject.metric, complete=True)


class Session:
    """One repair under way: the variant so far, and what was tried."""

    def __init__(
        self,
        subject: Subject,
        store: Store,
        results: Results,
        bits: int,
        profile: Target,
        max_drop: float,
        seconds: float,
        effort: Effort,
        progress: Progress,
    ) -> None:
        self.subject, self.store, self.results, self.profile, self.progress = subject, store, results, profile, progress
        self.bits, self.max_drop, self.level = bits, max_drop, results.level
        self.parts = Parts.of(subject.order)
        self.before = Variant(at_bits(subject.full, bits))
        self.now = self.before
        self.steps: list[Step] = []
        self.causes = _causes(results, bits)
        specs = set(self.before.plan.values())
        changed = [replace(s, **fix.fields) for s in specs for fix in FIXES if fix.fields and "kind" not in fix.fields]
        self.variants = Variants(subject, store, [*specs, *changed], effort, progress, time.monotonic() + seconds)

    def run(self) -> tuple[Recipe, Repair]:
        """Try, cheapest first, until the target is met or nothing helps; then prove it on the last part."""
        rounds: dict[str, Callable[[], None]] = {
            "dead channels": self._clean,
            "other ranges and grids for layers that hurt": lambda: self._local("free", self._guilty),
            # Free and for all layers: not spared once a repair has begun, since few images may flatter the rest.
            "equalization": self._equalize,
            "bias absorption": self._absorb,
            "bias correction": lambda: self._correct("iterative", "bias correction, layer after layer (IBC)"),
            "local fixes undone": self._undo,
            "other ranges and grids for the loudest layers": lambda: self._local("free", self._loud),
            "AdaRound": lambda: self._round("adaround", "weights rounded for their layer's output (AdaRound)"),
            "AdaRound by blocks": lambda: self._round(
                "blocks", "weights rounded for the output of blocks of layers (AdaRound)"
            ),
            "scales per channel": lambda: self._local("scales", self._loud),
            "more bits": lambda: self._local("bits", self._loud),
            "layers in float": lambda: self._local("float", self._loud),
        }
        untried: tuple[str, ...] = ()
        if not self._met():
            self._diagnose()
            for number, attempt in enumerate(rounds.values()):
                if self.variants.over:
                    untried = () if self._met() else tuple(rounds)[number:]
                    break
                attempt()
        if self._worse_at_last():
            self.now = self.before
            self.steps.append(self._rolled_back())
        return self._proven(untried)

    def _diagnose(self) -> None:
        """Learn the causes where the study has none yet; the budget is of what is tried with them."""
        if self.bits in self.store.noted("diagnosed", []):
            return
        begin = time.monotonic()
        self.results = diagnosed(self.store, self.subject, self.progress, bits=self.bits)
        self.causes = _causes(self.results, self.bits)
        self.variants.end += time.monotonic() - begin

    # What is tried ------------------------------------------------------------------------------

    def _local(self, cost: Cost, layers: Callable[[], list[str]]) -> None:
        """Fixes of ``cost`` layer by layer, the worst first; the screen is asked again after each that was kept."""
        tried: set[str] = set()
        while not self._met() and not self.variants.over:
            name = next((name for name in layers() if name not in tried), None)
            if name is None or len(tried) >= LAYERS:
                return
            tried.add(name)
            for proposal in self._best(name, cost)[:TRIED]:
                variant = replace(self.now, plan=proposal.plan)
                if self._try(variant, f"{name}: {proposal.fix.words}", (name,), cost):
                    break

    def _best(self, name: str, cost: Cost) -> list[Proposal]:
        """Fixes of one layer that the screen expects something of, the best first."""
        network = self._network()
        layer = network.layer(name)
        found = list(proposals(network, self.now.plan, layer, cost, self.profile, self.causes.get(name, ())))
        if not found:
            return []
        if cost == "float":
            return found
        sites = {site for proposal in found for site in proposal.sites}
        candidates = {
            site: list(dict.fromkeys([self.now.plan[site], *(p.plan[site] for p in found if site in p.plan)]))
            for site in sites
        }
        scores = self.variants.screened(self.now, candidates, self.parts.search)

        def noise(plan: Plan, proposal: Proposal) -> float:
            return scores.predicted(Plan.of({site: plan[site] for site in proposal.sites}))[0]

        gains = [(noise(p.plan, p) / max(noise(self.now.plan, p), 1e-30), p) for p in found]
        return [p for gain, p in sorted(gains, key=lambda pair: pair[0]) if gain < 1.0]

    def _clean(self) -> None:
        """Channels that hardly move take a range for nothing: they become their constant."""
        network, ranges = self._network(), self.variants.channel_ranges(self.now.transforms)
        found = find_dead_channels(network, ranges)
        if found.constants:
            number = sum(int((~constant.isnan()).sum()) for constant in found.constants.values())
            variant = replace(self.now, transforms=(*self.now.transforms, self.variants.register(found)))
            self._try(variant, f"{number} dead channels made constant", tuple(found.constants), "free")

    def _equalize(self) -> None:
        """Function-preserving scales between layers; the variant is chosen by measuring it with biases corrected."""
        network = self._network()
        ranges = self.variants.channel_ranges(self.now.transforms)
        found_by = {
            "weights": find_equalization(network, sweeps=10),
            "weights, to convergence": find_equalization(network),
            "weights, ranges as they are": find_equalization(network, sweeps=10, normalised=False),
            "weights and activations": find_equalization(network, sweeps=10, activation_ranges=ranges),
        }
        known = [
            (
                f"cross-layer equalization ({words})",
                replace(self.now, transforms=(*self.now.transforms, self.variants.register(found))),
            )
            for words, found in found_by.items()
            if found.scales
        ]
        if known:
            words, best = min(
                known, key=lambda pair: self.variants.noise(replace(pair[1], correction="analytic"), self.parts.search)
            )
            self._try(best, words, (), "free")

    def _absorb(self) -> None:
        """High biases, which equalization makes, are the next layers' (DFQ, section 4.1.3): ranges begin at zero."""
        ranges = self.variants.channel_ranges(self.now.transforms)
        found = find_bias_absorption(self._network(), {value: low for value, (low, _) in ranges.items()})
        if found.absorbed:
            variant = replace(self.now, transforms=(*self.now.transforms, self.variants.register(found)))
            self._try(variant, "high biases absorbed by the layers behind", (), "free")

    def _undo(self) -> None:
        """Local fixes that were kept early may be in the way now that all else has changed: without each of them."""
        specs, first = self.now.plan, self.before.plan
        changed: dict[str, list[Site]] = {}
        for site in first:
            if specs.get(site) != first[site]:
                changed.setdefault(site.layer, []).append(site)
        for name, sites in changed.items():
            # What shares a grid was changed together and is undone together: no value is rounded twice.
            together = {site: first[site] for site in sharing(self._network(), first, sites)}
            without = self.now.plan | together
            if without != self.now.plan:
                self._try(replace(self.now, plan=without), f"{name}: as it was", (name,), "free")

    def _correct(self, correction: Correction, words: str) -> None:
        self._try(replace(self.now, correction=correction), words, (), "free")

    def _round(self, correction: Correction, words: str) -> None:
        if not self._met():
            self._correct(correction, words)

    # What decides -------------------------------------------------------------------------------

    def _try(self, variant: Variant, words: str, layers: tuple[str, ...], cost: Cost) -> bool:
        """Measure a variant against the one so far; keep it where the second part of the images confirms it."""
        begin = time.monotonic()
        against = self.variants.difference(self.now, variant, self.parts.confirm, self.level)
        decisions = self.variants.decisions(self.now, variant, self.parts.confirm, self.level)
        kept, why = judged(against, decisions, len(self.parts.confirm), self.max_drop, self.results.unit)
        # A layer left float makes no noise alone, whatever it made: that it costs something has to show together.
        shown = against.noise.high < 1 if cost == "float" else against.noise.value <= 1
        if not kept and layers and against.change.low <= 0 and shown:
            kept, why = self._judge_alone(variant, layers, why)
        after = self.variants.degradation(variant, self.parts.confirm, self.level)
        self.steps.append(
            Step(
                words, layers, cost, kept, why, against.change.estimate, against.noise.estimate, after.estimate,
                round(time.monotonic() - begin, 3),
            )
        )  # fmt: skip
        if kept:
            self.now = variant
        self.progress.say(f"{'kept   ' if kept else 'dropped'} {words}: {why}")
        return kept

    def _judge_alone(self, variant: Variant, layers: tuple[str, ...], why: str) -> tuple[bool, str]:
        """The layers alone in an otherwise float network: what other layers destroy does not hide there what these
        two variants differ in."""

        def alone(whole: Variant) -> Variant:
            kept = Plan(tuple((site, spec) for site, spec in whole.plan.sites if site.layer in layers))
            return replace(whole, plan=kept, correction="none")

        found = self.variants.difference(alone(self.now), alone(variant), self.parts.confirm, self.level)
        if found.noise.high < 1 and found.noise.value <= EFFECT_ALONE and found.change.value <= 0:
            removed, regained = 100 * (found.noise.value - 1), amount(-found.change.value, self.results.unit, sign="+")
            return True, f"alone: noise {removed:+.0f} %, {regained}; together {why}"
        return False, why

    def _met(self) -> bool:
        """Whether the loss over both parts that decide is within what was asked for."""
        return self.variants.degradation(self.now, self._deciding, self.level).value <= self.max_drop

    def _worse_at_last(self) -> bool:
        """Whether both parts that decide, together, say that it had better been left alone.

        The last part is not asked: what is reported on it would be what it had chosen.
        """
        if self.now == self.before:
            return False
        return self.variants.difference(self.before, self.now, self._deciding, self.level).change.value > 0

    @property
    def _deciding(self) -> np.ndarray:
        return np.sort(np.concatenate([self.parts.search, self.parts.confirm]))

    def _rolled_back(self) -> Step:
        nothing = (0.0, 0.0, 0.0)
        lost = self.variants.degradation(self.before, self.parts.confirm, self.level).estimate
        return Step(
            "all of it undone",
            (),
            "free",
            True,
            "the images that decide say it is worse",
            nothing,
            (1.0, 1.0, 1.0),
            lost,
        )

    # Where to look ------------------------------------------------------------------------------

    def _guilty(self) -> list[str]:
        """Layers that the study found to hurt, those that cost most first."""
        cells = self.results.cells
        here = cells[(cells["bits"] == self.bits) & (cells["verdict"] == "hurts")]
        return list(here.sort_values("degradation", ascending=False)["name"])

    def _loud(self) -> list[str]:
        """Layers by the noise that the screen expects of them as the network is now."""
        noises = self._noises(self.now)
        return sorted(noises, key=lambda name: -noises[name])[:LAYERS]

    def _noises(self, variant: Variant) -> dict[str, float]:
        """By layer the noise that the screen expects of its sites under a variant."""
        plan = self.variants.plan(variant)
        scores = self.variants.screened(variant, {site: [spec] for site, spec in plan.sites}, self.parts.search)
        return {name: float(np.square(e).mean()) for name, e in scores.by_layer(plan).items()}

    def _mended(self) -> Iterator[Mended]:
        noises = [self._noises(variant) for variant in (self.before, self.now)]
        networks = [self.variants.transformed(variant.transforms).network for variant in (self.before, self.now)]
        for layer in networks[0].layers:
            if layer.name in noises[0]:
                spread = [_spread(network, layer) for network in networks] if layer.weight else None
                before, after = (noise.get(layer.name, 0.0) for noise in noises)
                yield Mended(layer.name, (before, after), None if spread is None else (spread[0], spread[1]))

    def _network(self) -> Network:
        return self.variants.transformed(self.now.transforms).network

    # What comes out -----------------------------------------------------------------------------

    def _proven(self, untried: tuple[str, ...]) -> tuple[Recipe, Repair]:
        variants, level = self.variants, self.level
        expected = proof(variants, self.before, self.now, self.parts.report, level)
        lost = expected.lost[0]
        provenance = {**provenance_of(self.results, self.subject, self.parts), "bits": self.bits}
        provenance["target"] = self.profile.name
        recipe = written(variants, self.now, expected, self.parts.report, tuple(self.steps), provenance)
        wide = Variant(Plan.of({site: spec.wide for site, spec in self.before.plan.sites}))
        unbounded = variants.degradation(wide, self.parts.confirm, level).estimate
        done = Repair(
            bits=self.bits,
            target=self.profile.name,
            max_drop=self.max_drop,
            met=lost <= self.max_drop,
            steps=recipe.steps,
            expected=expected,
            layers=tuple(self._mended()),
            unbounded=unbounded,
            untried=untried,
        )
        return recipe, done


def judged(
    against: Difference, decisions: Decisions | None, images: int, max_drop: float, unit: str
) -> tuple[bool, str]:
    """Whether a step is kept that makes the difference ``against`` what was before it on so many ``images``, and why.

    It is where the metric certainly gains; or where noise certainly falls, by 5 % at least, and either the metric loses
    at most half of ``max_drop`` or as many ``decisions`` as before are float's. Of few images the labels of one or two
    that flip make points of the metric; how many flip says more.
    """
    change, noise = against.change, against.noise
    removed = f"noise {100 * (noise.value - 1):+.0f} %"
    gained, signed = amount(-change.value, unit), amount(-change.value, unit, sign="+")
    if change.low > 0:
        return False, f"certainly worse by {amount(change.value, unit)}"
    if change.high < 0:
        return True, f"{gained} regained, {removed}"
    if noise.high < 1 and noise.value <= EFFECT_WHOLE:
        if change.value <= max_drop / 2:
            return True, f"{removed}, {signed}"
        if decisions is not None and decisions.gained[0] >= 0:
            return True, f"{removed}, {signed}; decided as in float no less often"
    if change.value < min(0.0, -max_drop):
        needed = ceil(images * ((change.high - change.value) / -change.value) ** 2)
        return False, f"{gained} better, but {images} images cannot tell: about {needed} could"
    return False, f"{removed}, {signed}: no gain that is certain"


def _spread(network: Network, layer: Layer) -> float:
    """The widest output channel of a weight over the median one of those that are not all zero."""
    weight = network.weight(network.layer(layer.name))
    assert weight is not None
    reach = rows_per_channel(weight, layer.weight_axis).abs().amax(1)
    alive = reach[reach > 0]
    return float(alive.max() / alive.median()) if len(alive) else 1.0


def amount(value: float, unit: str, sign: str = "") -> str:
    """A change of the metric in words: points to a tenth, what has no unit to two digits; never a negative zero."""
    return f"{round(value, 1) + 0.0:{sign}.1f} {unit}" if unit else f"{value + 0.0:{sign}.2g}"


def _width(results: Results, bits: int | None) -> int:
    if bits is None:
        return results.bits[-1]
    if bits not in results.bits:
        raise QuantopsyError(
            f"bit-width {bits}",
            f"the study has {', '.join(map(str, results.bits))}",
            f"run `quantopsy analyze` with --bits {bits} first",
        )
    return bits


def _seconds(budget: str | None) -> float:
    if budget is None:
        return float("inf")
    found = Budget.parse(budget)
    if found.seconds is None:
        raise QuantopsyError(f"budget {budget}", "a repair is limited by time", "give a time such as 10m")
    return found.seconds


def _causes(results: Results, bits: int) -> dict[str, Sequence[Cause]]:
    found: dict[str, list[Cause]] = {}
    for finding in results.findings:
        if finding.bits == bits and finding.cause != "no_single_cause":
            found.setdefault(finding.layer, []).append(finding.cause)
    return dict(found)
