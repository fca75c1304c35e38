"""Mixed precision: the bit-widths that lose least under limits, proposed by an integer program, proven by running.

The study's images are split in three, as of a repair. On the first, bit-widths are valued and proposals compared; on
the second the front is measured; the third is looked at once, for what the result is reported on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from quantopsy.analysis.phases import pieces
from quantopsy.analysis.prediction import Baseline
from quantopsy.analysis.progress import Progress, Silent
from quantopsy.analysis.results import Results
from quantopsy.analysis.subject import Subject, reopen
from quantopsy.analysis.summary import summarise
from quantopsy.core import QuantopsyError, names
from quantopsy.core.allocation import Allocation, Outcome
from quantopsy.core.recipe import RECIPE, Recipe
from quantopsy.engine.adaround import Effort
from quantopsy.engine.curvature import mean_curvature
from quantopsy.remedy.allocation.choices import Choices
from quantopsy.remedy.allocation.costs import Costs, LatencyTable, Resource, check_feasible, wanted_limits
from quantopsy.remedy.allocation.criteria import CRITERIA, Criterion, Values
from quantopsy.remedy.allocation.program import Limit, Selection, greedy, minimise
from quantopsy.remedy.proof import Parts, proof, provenance_of, written
from quantopsy.remedy.variants import SCREENED_IMAGES, Correction, Variant, Variants
from quantopsy.study import FLOAT, Store

FRONT = 12
"""Limits of the front, evenly between the least and the most that bit-widths can cost."""

Proposal = tuple[str, Criterion, Selection]
"""What it is called, the criterion that it comes from, and the selection."""

PROBES = 4
"""Random probes of the noise: their products are what interactions are estimated from."""


def allocate(
    study: str | Path,
    *,
    size: str | None = None,
    bitops: str | None = None,
    latency_limit: str | None = None,
    latency: str | Path | None = None,
    bits: Sequence[int] | None = None,
    activation_bits: Sequence[int] = (),
    criterion: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **instead: Any,
) -> Results:
    """Choose the bits of every weight of ``study``'s network under at least one limit.

    ``size``: of all weights, ``4bits``, ``0.5x`` (of 8 bits), ``300KB``. ``bitops``: multiply-accumulates times bits
    of weight and input, ``4bits``, ``0.5x``, ``1.5G``. ``latency``: CSV table by layer and bits, ``latency_limit`` in
    its unit. ``bits``: widths to choose from, the study's where none are given; ``activation_bits`` likewise of
    activations, which stay as they are where none are given. ``criterion``: one of
    :data:`quantopsy.remedy.allocation.criteria.CRITERIA`; without it all are tried. ``out``: the recipe's file,
    ``recipe.json`` of the study where none is given. ``instead``: as of
    :func:`quantopsy.analysis.subject.reopen`. What was chosen is ``allocated`` of what is returned. Raises
    :class:`QuantopsyError` for whatever the user can mend, a limit that cannot be met with the nearest that can.
    """
    progress = progress or Silent()
    folder = Path(study)
    wanted = _wanted(size, bitops, latency_limit, latency)
    if criterion is not None and criterion not in CRITERIA:
        raise names.unknown(criterion, tuple(CRITERIA), "criterion")
    table = None if latency is None else LatencyTable.read(latency)
    with reopen(folder, progress, **instead) as (store, subject):
        results = summarise(store, subject.metric, complete=True)
        Parts.of(subject.order)
        choices = Choices.of(subject.network, subject.full, bits or results.bits, activation_bits)
        costs = Costs(subject.network, choices, table)
        if table is not None:
            table.check(subject.network, choices)
        limits = wanted_limits(costs, wanted)
        check_feasible(costs, limits)
        session = Session(subject, store, results, costs, limits, progress)
        recipe, done = session.run(criterion)  # type: ignore[arg-type]
        recipe.save(out if out is not None else folder / RECIPE)
        store.note("allocation", done.to_json())
        return summarise(store, subject.metric, complete=True)


def _wanted(
    size: str | None, bitops: str | None, latency_limit: str | None, latency: str | Path | None
) -> dict[Resource, str]:
    given: dict[Resource, str | None] = {"size": size, "bitops": bitops, "latency": latency_limit}
    wanted = {resource: text for resource, text in given.items() if text is not None}
    if (latency is None) != (latency_limit is None):
        given_one, lacking = (
            ("--latency", "--latency-limit") if latency is not None else ("--latency-limit", "--latency")
        )
        raise QuantopsyError(given_one, f"says nothing without {lacking}", "give both")
    if not wanted:
        raise QuantopsyError("allocate", "no limit was given", "give --size 4bits, --bitops or --latency-limit")
    return wanted


class Session:
    """One allocation under way."""

    def __init__(
        self,
        subject: Subject,
        store: Store,
        results: Results,
        costs: Costs,
        limits: Mapping[Resource, float],
        progress: Progress,
    ) -> None:
        self.subject, self.store, self.results, self.progress = subject, store, results, progress
        self.costs, self.choices, self.wanted = costs, costs.choices, limits
        self.limits = [Limit(costs.of(resource), most) for resource, most in limits.items()]
        self.along: Resource = next(iter(limits))
        self.level = results.level
        self.parts = Parts.of(subject.order)
        options = self.choices.options()
        specs = {spec for choice, bits in options for spec in self.choices.specs(choice, bits).values()}
        self.variants = Variants(subject, store, specs, Effort(), progress)

    def run(self, criterion: Criterion | None) -> tuple[Recipe, Allocation]:
        """Propose, choose on the first images, draw the front on the second, prove on the last."""
        proposed = self._proposals([criterion] if criterion else self._able())
        rivals = [self._outcome(name, name, proposed[name], self.parts.search) for name in proposed]
        best: Criterion = min(rivals, key=lambda rival: rival.noise).words  # type: ignore[assignment]
        self.progress.say(f"chosen: {CRITERIA[best]}")
        chosen, correction = proposed[best], self._correction(proposed[best])
        baseline = self._baseline()
        now = Variant(self.choices.realised(chosen), correction=correction)
        before = Variant(self.choices.realised(self._uniform(baseline)), correction=correction)
        front, rest = (
            tuple(self._outcome(words, name, selection, self.parts.confirm) for words, name, selection in found)
            for found in self._fronts(best)
        )
        uniform = tuple(
            self._outcome(f"uniform {bits} bits", best, self._uniform(bits), self.parts.confirm)
            for bits in self._widths
        )
        expected = proof(self.variants, before, now, self.parts.report, self.level)
        ratio = self.variants.difference(before, now, self.parts.report, self.level).noise
        taken = [(site, c.widths[n]) for c, n in self._taken(chosen) for site in c.sites]
        weights = {site.layer: bits for site, bits in taken if site.role == "weight"}
        inputs = {site.layer: bits for site, bits in taken if site.role == "input"}
        done = Allocation(
            criterion=best,
            correction=correction,
            along=self.along,
            limits={str(resource): most for resource, most in self.wanted.items()},
            uses=self._uses(chosen),
            bits={name: weights[name] for name in self.subject.network.names if name in weights},
            activation_bits={name: inputs[name] for name in self.subject.network.names if name in inputs},
            rivals=tuple(rivals),
            front=front,
            greedy=rest,
            uniform=uniform,
            baseline=baseline,
            baseline_uses=self._uses(self._uniform(baseline)),
            expected=expected,
            noise_ratio=ratio.estimate,
            decisions=self.variants.decisions(before, now, self.parts.report, self.level),
        )
        provenance = {
            **provenance_of(self.results, self.subject, self.parts),
            "limits": dict(self.wanted),
            "criterion": best,
        }
        return written(self.variants, now, expected, self.parts.report, (), provenance), done

    # What is proposed ---------------------------------------------------------------------------

    def _able(self) -> list[Criterion]:
        """The criteria that say something of this network."""
        able: list[Criterion] = []
        for name in get_args(Criterion):
            try:
                self.values.objective(name)
            except QuantopsyError:
                continue
            able.append(name)
        return able

    def _proposals(self, criteria: Sequence[Criterion]) -> dict[Criterion, Selection]:
        found = {name: self._solved(name, self.limits) for name in criteria}
        proposed = {name: selection for name, selection in found.items() if selection is not None}
        if not proposed:
            raise QuantopsyError("allocate", "greedy steps end beyond the limits", "take another criterion")
        return proposed

    def _solved(
        self, criterion: Criterion, limits: Sequence[Limit], start: Selection | None = None
    ) -> Selection | None:
        objective, shape = self.values.objective(criterion), self.choices.shape
        if criterion == "greedy":
            return greedy(shape, objective.linear, limits)
        found = minimise(shape, objective, limits, start)
        return None if found is None else found.selection

    @cached_property
    def values(self) -> Values:
        """What every option is worth, as screened on the first images with biases corrected in closed form."""
        scored = replace(self.choices, plan=self.variants.corrected(self.choices.plan))
        candidates = {site: [spec] for site, spec in scored.plan.sites}
        for choice, bits in scored.options():
            for site, spec in scored.specs(choice, bits).items():
                candidates[site] = list(dict.fromkeys([*candidates[site], spec]))
        images = np.sort(self.parts.search[:SCREENED_IMAGES])
        nothing = Variant(self.choices.plan)
        scores = self.variants.screened(nothing, candidates, images, noise_probes=PROBES, decision=True)
        result, runner_up = self.store.result(FLOAT), self.store.runner_up()
        assert result is not None
        assert runner_up is not None
        transformed = self.variants.transformed(())
        self.progress.start("curvature", len(images))
        batches = (self.subject.images.batch(piece).inputs for piece in pieces(images, self.subject.screen_tile))
        return Values(
            scored,
            scores,
            Baseline.of(result, runner_up, scores.images),
            self.subject.metric,
            transformed.network,
            transformed.calibration,
            mean_curvature(transformed.engine.program, batches, advance=self.progress.advance),
        )

    # What is measured ---------------------------------------------------------------------------

    def _outcome(self, words: str, criterion: Criterion, selection: Selection, images: np.ndarray) -> Outcome:
        """Measured with biases corrected in closed form, as it was valued."""
        variant = Variant(self.choices.realised(selection), correction="analytic")
        x = self.choices.shape.indicator(selection)
        return Outcome(
            words=words,
            uses=self._uses(selection),
            predicted=self.values.objective(criterion).value(x),
            noise=self.variants.noise(variant, images),
            degradation=self.variants.degradation(variant, images, self.level).estimate,
        )

    def _correction(self, selection: Selection) -> Correction:
        """The correction of biases that leaves least noise on the first images."""
        plan = self.choices.realised(selection)
        known: tuple[Correction, ...] = ("none", "analytic", "iterative")

        def noise(correction: Correction) -> float:
            return self.variants.noise(Variant(plan, (), correction), self.parts.search)

        return min(known, key=noise)

    def _fronts(self, criterion: Criterion) -> tuple[list[Proposal], list[Proposal]]:
        """The best, and the greedy, under limits that rise from least to most, other limits held.

        The best of a limit is what leaves less noise on the first images, greedy steps being a candidate too: a
        program's optimum is one of predicted noise.
        """
        cost, shape = self.limits[0].cost, self.choices.shape
        parts = np.split(cost.linear, shape.starts[1:])
        least = shape.cost(cost, tuple(int(part.argmin()) for part in parts))
        # Of equal ones the most bits: what a choice costs may be in products with another alone.
        most = shape.cost(cost, tuple(len(part) - 1 - int(part[::-1].argmax()) for part in parts))
        front: dict[Selection, Proposal] = {}
        steps: dict[Selection, Proposal] = {}
        last: Selection | None = None
        for budget in np.unique([*np.linspace(least, most, FRONT), self.limits[0].most]):
            if budget > most:
                continue
            limits = [Limit(cost, float(budget)), *self.limits[1:]]
            last = self._solved(criterion, limits, last) or last
            stepped = self._solved("greedy", limits)
            candidates: list[Proposal] = []
            if last is not None:
                candidates.append((criterion, criterion, last))
            if stepped is not None:
                candidates.append(("greedy", "greedy", stepped))
                steps[stepped] = candidates[-1]
            if candidates:
                taken = min(candidates, key=lambda proposal: self._noise(proposal[2]))
                front.setdefault(taken[2], taken)
        return list(front.values()), list(steps.values())

    def _noise(self, selection: Selection) -> float:
        variant = Variant(self.choices.realised(selection), correction="analytic")
        return self.variants.noise(variant, self.parts.search)

    @property
    def _widths(self) -> list[int]:
        """At which all weights can be."""
        every = sorted({bits for choice in self.choices.choices for bits in choice.widths})
        return [bits for bits in every if self.choices.uniform(bits) is not None]

    def _uniform(self, bits: int) -> Selection:
        found = self.choices.uniform(bits)
        assert found is not None
        return found

    def _baseline(self) -> int:
        """The most bits of a uniform network within the limits, else the fewest."""
        within = [bits for bits in self._widths if self.choices.shape.within(self.limits, self._uniform(bits))]
        return max(within, default=min(self._widths))

    def _uses(self, selection: Selection) -> dict[str, float]:
        resources: list[Resource] = ["size", "bitops", *(["latency"] if self.costs.latency else [])]  # type: ignore[list-item]
        return {resource: self.choices.shape.cost(self.costs.of(resource), selection) for resource in resources}

    def _taken(self, selection: Selection) -> Any:
        return zip(self.choices.choices, selection, strict=True)
