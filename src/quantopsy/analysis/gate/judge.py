"""The gate: a check for each rule, from what studies and recipes hold. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd

from quantopsy.analysis import significance
from quantopsy.analysis.change import Evidence, change, common_images, degradation, drop
from quantopsy.analysis.comparison import Compared, Difference, compare
from quantopsy.analysis.gate.candidate import (
    Candidate,
    RecipeSource,
    Source,
    StudySource,
    candidate,
    evidence_at,
)
from quantopsy.analysis.gate.differences import RangeChange, SpecChange, range_changes, spec_changes
from quantopsy.analysis.gate.rules import Rules
from quantopsy.analysis.results import headline
from quantopsy.analysis.significance import Interval, corrected_level
from quantopsy.core import QuantopsyError

DEFAULT_LEVEL = 0.95

Status = Literal["passed", "failed", "skipped"]

Finding = Literal["within", "beyond", "undecided", "unavailable", "not judged"]
"""What is known of a limit: kept for certain, broken for certain, neither, nothing recorded, or there is no limit."""


@dataclass(frozen=True)
class Check:
    """One rule put to the two networks.

    ``value`` is what the rule limits, ``interval`` how sure it is where it was estimated from images, ``before`` what
    the old network has (of a drop, a growth: nothing). ``images``: over which the two were paired, 0 where they were
    not; ``predicted``: a whole network was screened, not run. ``lacking`` says what is not recorded where the finding
    is ``unavailable``. ``names``: layers or sites that the value counts, worst first.
    """

    rule: str
    name: str
    status: Status
    finding: Finding
    limit: float | None = None
    value: float | None = None
    before: float | None = None
    interval: Interval | None = None
    images: int | None = None
    predicted: bool = False
    lacking: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """Both networks, the checks, and what changed between them.

    ``layers``: as :class:`quantopsy.analysis.comparison.Compared`, None where either is a recipe. ``partners``: names
    of the layers that both have, old to new; the others stand in ``only_old`` and ``only_new``. ``ranges`` is None
    where either did not keep its grids.
    """

    old: Candidate
    new: Candidate
    rules: Rules
    level: float
    checks: tuple[Check, ...]
    specs: tuple[SpecChange, ...]
    ranges: tuple[RangeChange, ...] | None
    only_old: tuple[str, ...] = ()
    only_new: tuple[str, ...] = ()
    layers: Compared | None = field(repr=False, default=None)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)

    @property
    def difference(self) -> Difference | None:
        """What changed layer by layer; None where either is a recipe."""
        return None if self.layers is None else self.layers.differences[0]


def judge(old: Source, new: Source, rules: Rules) -> Judged:
    """Put ``rules`` to ``new`` in the place of ``old``.

    Raises :class:`QuantopsyError` for bits that a study lacks, and where not a single rule can be judged: a gate that
    looks at nothing must not be taken for one that lets through.
    """
    level = rules.level or _level(old)
    bits = _bits(old, new, rules.bits)
    before, after = candidate(old, bits[0], level), candidate(new, bits[1], level)
    compared = None
    if isinstance(old, StudySource) and isinstance(new, StudySource) and bits[0] is not None:
        compared = compare([old.recorded, new.recorded], [bits[0]], level=level)
    partners = _partners(before, after, compared)
    specs = spec_changes(before, after, partners)
    ranges = None
    if before.grids is not None and after.grids is not None:
        ranges = range_changes(before.grids, after.grids, partners)
    checks = (
        *_drops(before, after, rules, level),
        _loss(after, rules),
        _noise(before, after, rules, level),
        _paired(before, after, rules),
        _layers(compared, rules),
        _specs(specs, partners, rules),
        _ranges(ranges, partners, rules),
        _coverage(before, after, rules),
        _size(before, after, rules),
    )
    if all(check.status == "skipped" for check in checks):
        why = next((check.lacking for check in checks if check.finding == "unavailable"), "no limit is set")
        raise QuantopsyError("gate", f"no rule can be judged ({why})", "set rules that these two can be held to")
    return Judged(
        old=before,
        new=after,
        rules=rules,
        level=level,
        checks=checks,
        specs=specs,
        ranges=ranges,
        only_old=tuple(sorted(before.layers - set(partners))),
        only_new=tuple(sorted(after.layers - set(partners.values()))),
        layers=compared,
    )


def found_of(interval: Interval, limit: float) -> Finding:
    """Whether an estimate keeps below ``limit``: the whole interval decides, either way."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "unavailable"
    if interval.high <= limit:
        return "within"
    return "beyond" if interval.low > limit else "undecided"


def status_of(finding: Finding, rules: Rules) -> Status:
    """What becomes of a check under ``undecided`` and ``unavailable`` of ``rules``."""
    if finding == "undecided":
        return "passed" if rules.undecided == "pass" else "failed"
    if finding == "unavailable":
        return "skipped" if rules.unavailable == "skip" else "failed"
    return {"within": "passed", "beyond": "failed", "not judged": "skipped"}[finding]  # type: ignore[return-value]


# The metric ---------------------------------------------------------------------------------------


def _drops(old: Candidate, new: Candidate, rules: Rules, level: float) -> list[Check]:
    """The metric of the new quantized network against the old one's, at one bit-width or at several.

    Together they hold at ``level`` (Bonferroni).
    """
    limits = {old.bits: _max_drop(old, rules)}
    for bits, limit in rules.max_drop_per_bits.items():
        limits[bits] = limit
    strict = corrected_level(level, len(limits))
    return [_drop(old, new, bits, limit, rules, strict) for bits, limit in limits.items()]


def _drop(old: Candidate, new: Candidate, bits: int | None, limit: float | None, rules: Rules, level: float) -> Check:
    several = bool(rules.max_drop_per_bits.keys() - {old.bits})
    check = Check(
        rule="max_drop_per_bits" if bits in rules.max_drop_per_bits else "max_drop",
        name=f"max_drop at {bits} bits" if several and bits is not None else "max_drop",
        status="skipped",
        finding="unavailable",
        limit=limit,
    )
    if old.metric and new.metric and old.metric != new.metric:
        return _lacking(check, rules, f"the metrics differ: {old.metric} and {new.metric}")
    at_home = bits == old.bits
    mine, other = (side.evidence if at_home else evidence_at(side.source, bits) for side in (old, new))
    if mine is not None and other is not None:
        found, images = drop(mine, other, level), len(common_images(mine, other))
    elif at_home:
        found, images = significance.difference(_lost(new, other, level), _lost(old, mine, level)), 0
    else:
        recipe = next((side.label for side in (old, new) if isinstance(side.source, RecipeSource)), None)
        if recipe is not None:
            return _lacking(check, rules, f"{recipe} is a recipe, of one network alone")
        lacks = old.label if mine is None else new.label
        return _lacking(check, rules, f"{lacks} has no network at {bits} bits")
    if math.isnan(found.value):
        return _lacking(check, rules, _not_measured(old, new))
    predicted = _is_screened(mine) or _is_screened(other)
    return _estimated(replace(check, images=images, predicted=predicted), found, limit, rules)


def _is_screened(evidence: Evidence | None) -> bool:
    """Whether all that is known of a whole network is what the screen expects."""
    return evidence is not None and evidence.result is None


def _lost(side: Candidate, evidence: Evidence | None, level: float) -> Interval:
    """What a side loses against float, with an interval at ``level``."""
    return candidate(side.source, None, level).lost if evidence is None else degradation(evidence, level)


def _not_measured(old: Candidate, new: Candidate) -> str:
    for side in (old, new):
        if math.isnan(side.lost.value):
            what = "does not say what it is worth" if side.kind == "recipe" else "was not run as a whole"
            return f"{side.label} {what}"
    return "the two cannot be compared"


def _max_drop(old: Candidate, rules: Rules) -> float | None:
    limit = rules.max_drop
    if limit is None:
        if isinstance(old.source, StudySource):
            return old.source.recorded.results.tolerance
        return 1.0 if old.unit == "points" or math.isnan(old.float_value) else 0.01 * abs(old.float_value)
    return None if math.isinf(limit) and limit > 0 else limit


def _loss(new: Candidate, rules: Rules) -> Check:
    check = Check("max_loss", "max_loss", "skipped", "unavailable", rules.max_loss, images=new.samples)
    if math.isnan(new.lost.value):
        return _lacking(check, rules, f"{new.label} does not say what it loses against float")
    return _estimated(replace(check, predicted=_is_screened(new.evidence)), new.lost, rules.max_loss, rules)


def _noise(old: Candidate, new: Candidate, rules: Rules, level: float) -> Check:
    check = Check("max_noise_growth_db", "max_noise_growth_db", "skipped", "unavailable", rules.max_noise_growth_db)
    mine, other = old.evidence, new.evidence
    if mine is None or other is None or "recipe" in (old.kind, new.kind):
        return _lacking(check, rules, "a recipe does not keep noise")
    found = change(mine, other, level)
    if math.isnan(found.over_signal_db.value):
        return _lacking(check, rules, "the whole network was run in one of the two at most")
    check = replace(check, images=found.images, predicted=_is_screened(mine) or _is_screened(other))
    return _estimated(check, found.over_signal_db, rules.max_noise_growth_db, rules)


def _paired(old: Candidate, new: Candidate, rules: Rules) -> Check:
    mine, other = old.evidence, new.evidence
    images = 0 if mine is None or other is None else len(common_images(mine, other))
    finding: Finding = "not judged" if not rules.paired else "within" if images else "beyond"
    return Check(
        "paired", "paired", status_of(finding, rules), finding, 1.0 if rules.paired else None, images, images=images
    )


# What is deployed ---------------------------------------------------------------------------------


def worse_layers(layers: pd.DataFrame) -> pd.DataFrame:
    """Layers that for certain lose more, or are noisier, than before; those that lose most more first."""
    worse = layers[(layers["verdict"] == "worse") | (layers["noise_verdict"] == "worse")]
    keys = ["degradation_change", "noise_change_db"]
    return worse.sort_values(keys, ascending=False, kind="stable")


def _layers(compared: Compared | None, rules: Rules) -> Check:
    check = Check("max_changed_layers", "max_changed_layers", "skipped", "unavailable", rules.max_changed_layers)
    if compared is None:
        return _lacking(check, rules, "a recipe does not say what single layers lose")
    (difference,) = compared.differences
    if not difference.matching.pairs:
        return _lacking(check, rules, "the architectures differ")
    worse = worse_layers(difference.layers)
    return _counted(check, tuple(worse["name"]), rules)


def _specs(specs: tuple[SpecChange, ...], partners: Mapping[str, str], rules: Rules) -> Check:
    check = Check("max_changed_specs", "max_changed_specs", "skipped", "unavailable", rules.max_changed_specs)
    if not partners:
        return _lacking(check, rules, "the architectures differ")
    return _counted(check, tuple(f"{spec.layer} {spec.role}" for spec in specs), rules)


def _ranges(ranges: tuple[RangeChange, ...] | None, partners: Mapping[str, str], rules: Rules) -> Check:
    limit = rules.max_scale_change
    check = Check("max_scale_change", "max_scale_change", "skipped", "unavailable", limit)
    if ranges is None:
        return _lacking(check, rules, "a study did not keep its grids: run its `quantopsy analyze` again")
    if not partners or not ranges:
        return _lacking(check, rules, "no grid is of the same site")
    beyond = [found for found in ranges if limit is not None and found.factor > limit]
    names = tuple(f"{found.layer} {found.role}" for found in beyond)
    return _exact(replace(check, names=names), ranges[0].factor, rules)


def _coverage(old: Candidate, new: Candidate, rules: Rules) -> Check:
    limit, found = rules.min_coverage, new.coverage
    check = Check("min_coverage", "min_coverage", "skipped", "unavailable", limit, before=old.coverage)
    if found is None or new.macs is None:
        return _lacking(check, rules, f"{new.label} does not keep its MACs")
    macs = new.macs
    left = sorted((name for name in macs if macs[name] and name not in new.quantized), key=lambda name: -macs[name])
    finding: Finding = "not judged" if limit is None else "within" if found >= limit else "beyond"
    return replace(check, status=status_of(finding, rules), finding=finding, value=found, names=tuple(left))


def _size(old: Candidate, new: Candidate, rules: Rules) -> Check:
    check = Check("max_size_growth", "max_size_growth", "skipped", "unavailable", rules.max_size_growth)
    before, after = old.bytes, new.bytes
    if not before or not after:
        return _lacking(check, rules, "the shapes of the weights are not kept")
    return _exact(check, after / before - 1.0, rules)


# Findings -----------------------------------------------------------------------------------------


def _estimated(check: Check, found: Interval, limit: float | None, rules: Rules) -> Check:
    """By an interval."""
    finding: Finding = "not judged" if limit is None else found_of(found, limit)
    return replace(check, status=status_of(finding, rules), finding=finding, value=found.value, interval=found)


def _exact(check: Check, value: float, rules: Rules) -> Check:
    """By a number that is known."""
    finding: Finding = "not judged" if check.limit is None else "within" if value <= check.limit else "beyond"
    return replace(check, status=status_of(finding, rules), finding=finding, value=value)


def _counted(check: Check, names: tuple[str, ...], rules: Rules) -> Check:
    return _exact(replace(check, names=names), len(names), rules)


def _lacking(check: Check, rules: Rules, what: str) -> Check:
    """A limit that nobody can judge; without a limit there is nothing to judge either way."""
    finding: Finding = "not judged" if check.limit is None else "unavailable"
    return replace(check, status=status_of(finding, rules), finding=finding, lacking=what)


# What is held against what ------------------------------------------------------------------------


def _level(old: Source) -> float:
    if isinstance(old, StudySource):
        return old.recorded.results.level
    return old.recipe.expected.level if old.recipe.expected else DEFAULT_LEVEL


def _bits(old: Source, new: Source, wanted: int | None) -> tuple[int | None, int | None]:
    """The bit-width of the weights on either side, that of studies: of two the same."""
    studies = [source for source in (old, new) if isinstance(source, StudySource)]
    if wanted is None and studies:
        shared = set.intersection(*(set(study.plans) for study in studies))
        if not shared:
            known = "; ".join(f"{s.recorded.label}: {', '.join(map(str, sorted(s.plans)))}" for s in studies)
            raise QuantopsyError("studies", f"they share no bit-width ({known})", "analyze one of them at the other's")
        made = [source.recipe.provenance.get("bits") for source in (old, new) if isinstance(source, RecipeSource)]
        wanted = made[0] if made and made[0] in shared else headline(shared)
    first, second = (wanted if isinstance(source, StudySource) else None for source in (old, new))
    return first, second


def _partners(old: Candidate, new: Candidate, compared: Compared | None) -> dict[str, str]:
    """Names of the layers that both have, old to new: by name, of studies as they are matched there."""
    if compared is None:
        return {name: name for name in sorted(old.layers & new.layers)}
    (difference,) = compared.differences
    mine, other = (view.results.layers["name"] for view in (difference.before, difference.after))
    return {mine[pair.before]: other[pair.after] for pair in difference.matching.pairs}
