"""What there is to choose: a bit-width for each weight, and for each set of activations that shares its grids.

V options, those of one choice after those of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from quantopsy.core import Plan, Site, Spec
from quantopsy.graph.network import Network
from quantopsy.remedy.allocation.program import Options, Selection
from quantopsy.remedy.fixes import sharing


@dataclass(frozen=True)
class Choice:
    """Sites that have one bit-width, out of ``widths`` (ascending): those of a weight, or activations together."""

    sites: tuple[Site, ...]
    widths: tuple[int, ...]

    @property
    def of_weight(self) -> bool:
        """Whether it is a weight's."""
        return self.sites[0].role == "weight"


@dataclass(frozen=True)
class Choices:
    """All choices, and the ``plan`` that says what else holds at every site."""

    plan: Plan
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, network: Network, plan: Plan, widths: Sequence[int], activation_widths: Sequence[int] = ()) -> Choices:
        """Every weight of ``plan`` at one of ``widths``; activations as they are, or at ``activation_widths``.

        A weight that several layers share is stored once and has one width.
        Activations have one width where a layer reads them together (addition, concatenation) and across layers
        without weights, which run on the grid of what they read.
        """
        tensors: dict[str | None, list[Site]] = {}
        for site in plan:
            if site.role == "weight":
                tensors.setdefault(network.layer(site.layer).weight, []).append(site)
        weights = [Choice(tuple(sites), tuple(sorted(widths))) for sites in tensors.values()]
        groups = list(_shared(network, plan)) if activation_widths else []
        activations = [Choice(group, tuple(sorted(activation_widths))) for group in groups]
        return cls(plan, (*weights, *activations))

    @cached_property
    def shape(self) -> Options:
        """How many options each choice has."""
        return Options(tuple(len(choice.widths) for choice in self.choices))

    @cached_property
    def by_site(self) -> Mapping[Site, int]:
        """The choice that decides on a site."""
        return {site: number for number, choice in enumerate(self.choices) for site in choice.sites}

    def options(self) -> Iterator[tuple[Choice, int]]:
        """(choice, bits) of every option, in order."""
        return ((choice, bits) for choice in self.choices for bits in choice.widths)

    def specs(self, choice: Choice, bits: int) -> dict[Site, Spec]:
        """The sites of ``choice`` at ``bits``."""
        return {site: self.plan[site].with_bits(bits) for site in choice.sites}

    def realised(self, selection: Selection) -> Plan:
        """The plan with the option of that number at each choice."""
        specs = dict(self.plan)
        for choice, number in zip(self.choices, selection, strict=True):
            specs |= self.specs(choice, choice.widths[number])
        return Plan.of(specs)

    def uniform(self, bits: int) -> Selection | None:
        """The selection with every weight at ``bits``, activations at their most; None where one has no such width."""
        if any(choice.of_weight and bits not in choice.widths for choice in self.choices):
            return None
        return tuple(
            choice.widths.index(bits) if choice.of_weight else len(choice.widths) - 1 for choice in self.choices
        )


def _shared(network: Network, plan: Plan) -> Iterator[tuple[Site, ...]]:
    """Sites of activations in sets that share grids, in topological order."""
    specs = {site: spec for site, spec in plan.sites if site.role != "weight"}
    seen: set[Site] = set()
    for layer in network.layers:
        for role in ("input", "output"):
            site = Site(layer.name, role)
            if site not in specs or site in seen:
                continue
            group = {site}
            while True:
                weightless = {s.layer for s in group if network.layer(s.layer).weight is None}
                grown = set(sharing(network, specs, [s for s in specs if s in group or s.layer in weightless]))
                if grown == group:
                    break
                group = grown
            seen |= group
            yield tuple(s for s in specs if s in group)
