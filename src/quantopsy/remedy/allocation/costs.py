"""What bit-widths cost: size of the weights, BitOps, latency by a table of layers."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from quantopsy.core import QuantopsyError, Site, names
from quantopsy.core.spec import MAX_BITS, MIN_BITS
from quantopsy.graph.network import Layer, Network
from quantopsy.quant.registry import stored_bits
from quantopsy.remedy.allocation.choices import Choice, Choices
from quantopsy.remedy.allocation.program import Cost, Limit, Product, nearest

Resource = Literal["size", "bitops", "latency"]

REFERENCE_BITS = 8
"""Of the weights that ``0.5x`` is half of."""

UNITS: Mapping[Resource, Mapping[str, float]] = {
    "size": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
    "bitops": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    "latency": {"": 1.0},
}
LIMIT_FORMS: Mapping[Resource, str] = {
    "size": "write 4bits, 0.5x (of 8 bits), 300KB or 2MiB",
    "bitops": "write 4bits, 0.5x (of 8-bit weights) or 1.5G",
    "latency": "write 4bits, 0.5x (of 8-bit weights) or a number in the table's unit",
}
_WANTED = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)


def number_and_unit(text: str) -> tuple[float, str] | None:
    """``1.5G`` as 1.5 and ``g``; None where it is nothing of the kind."""
    match = _WANTED.fullmatch(text)
    return None if match is None else (float(match[1]), match[2].lower())


@dataclass(frozen=True)
class LatencyTable:
    """Time of each layer by the bit-width of its weight, or of its activations where it has none."""

    entries: Mapping[tuple[str, int], float]

    @classmethod
    def read(cls, path: str | Path) -> LatencyTable:
        """From CSV: rows ``layer,bits,latency``, or a row per layer with a column per bit-width (``layer,2,4,8``).

        Raises :class:`QuantopsyError` naming the line that is wrong.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise QuantopsyError(f"latency table {str(path)!r}", f"cannot be read ({error})", "check it") from None
        rows = csv.reader(lines)
        head = [title.strip().lower() for title in next(rows, [])]
        long = head == ["layer", "bits", "latency"]
        widths = [title.removesuffix("bits").removesuffix("bit").strip() for title in head[1:]]
        if not long and (head[:1] != ["layer"] or not widths or not all(width.isdigit() for width in widths)):
            raise QuantopsyError(
                f"latency table {str(path)!r}",
                f"its first line is {','.join(head)!r}",
                "begin it with layer,bits,latency or with layer and the bit-widths, as in layer,2,4,8",
            )
        found: dict[tuple[str, int], float] = {}
        for number, row in enumerate(rows, 2):
            if not any(cell.strip() for cell in row):
                continue
            try:
                cells = [row[1:]] if long else [[width, cell] for width, cell in zip(widths, row[1:], strict=True)]
                for bits, latency in cells:
                    key = row[0].strip(), int(bits)
                    if key in found:
                        raise ValueError(f"{key[0]} at {key[1]} bits is there twice")
                    found[key] = _duration(latency)
            except ValueError as error:
                raise QuantopsyError(
                    f"line {number} of latency table {str(path)!r}", f"{error}", "give a layer and its times"
                ) from None
        return cls(found)

    def check(self, network: Network, choices: Choices) -> None:
        """Raise :class:`QuantopsyError` for layers that ``network`` lacks, or that the table does."""
        for name, _ in self.entries:
            if name not in network.names:
                raise names.unknown(name, network.names, "latency table's layer")
        missing: dict[str, list[int]] = {}
        for choice, bits in choices.options():
            for site in choice.sites if choice.of_weight else ():
                if (site.layer, bits) not in self.entries:
                    missing.setdefault(site.layer, []).append(bits)
        if missing:
            known = {name for name, _ in self.entries}
            some = [
                name if name not in known else f"{name} ({', '.join(map(str, widths))} bits)"
                for name, widths in missing.items()
            ]
            shown = ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
            raise QuantopsyError("latency table", f"it lacks {shown}", "add them, or restrict the widths with --bits")


def _duration(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{text.strip()} is no time")
    return value


@dataclass(frozen=True)
class Costs:
    """What options of ``choices`` on ``network`` cost, by resource."""

    network: Network
    choices: Choices
    latency: LatencyTable | None = None

    def of(self, resource: Resource) -> Cost:
        """In bytes; in multiply-accumulates times bits of the weight times bits of the input; in the table's unit."""
        if resource == "size":
            return self._size()
        return self._bitops() if resource == "bitops" else self._latency()

    def uniform(self, resource: Resource, bits: int) -> float | None:
        """What all weights at ``bits`` cost, activations as they are in the plan; None where a table does not say."""
        if resource == "size":
            # A limit may be said in bits that no grid has, such as 1bits.
            known = min(max(bits, MIN_BITS), MAX_BITS)
            weights = (choice for choice in self.choices.choices if choice.of_weight)
            return sum(self._bytes(choice, known) for choice in weights) * bits / known
        layers = [layer for _, layer, _, _ in self._weights()]
        if resource == "bitops":
            return float(sum(layer.macs * bits * self._input_bits(layer) for layer in layers))
        assert self.latency is not None
        times = [self.latency.entries.get((layer.name, bits)) for layer in layers]
        if any(time is None for time in times):
            return None
        return self._weightless() + sum(time for time in times if time is not None)

    def _vector(self) -> np.ndarray:
        return np.zeros(sum(self.choices.shape.sizes))

    def _weights(self) -> Iterator[tuple[int, Layer, Sequence[int], slice]]:
        """Layers with a weight: the choice that it is, with the options that are its."""
        for number, choice in enumerate(self.choices.choices):
            for site in choice.sites if choice.of_weight else ():
                start = int(self.choices.shape.starts[number])
                yield number, self.network.layer(site.layer), choice.widths, slice(start, start + len(choice.widths))

    def _bytes(self, choice: Choice, bits: int) -> float:
        """Of a weight, which is stored once for all layers that share it."""
        site = choice.sites[0]
        shape = self.network.layer(site.layer).weight_shape or (0,)
        return math.prod(shape) * stored_bits(self.choices.specs(choice, bits)[site]) / 8

    def _size(self) -> Cost:
        options = self.choices.options()
        return Cost(np.array([self._bytes(choice, bits) if choice.of_weight else 0.0 for choice, bits in options]))

    def _bitops(self) -> Cost:
        linear, products = self._vector(), []
        for number, layer, widths, own in self._weights():
            entering = self.choices.by_site.get(Site(layer.name, "input"))
            if entering is None:
                linear[own] += float(layer.macs * self._input_bits(layer)) * np.array(widths)
            else:
                factor = float(layer.macs) * np.outer(widths, self.choices.choices[entering].widths)
                products.append(Product(number, entering, factor))
        return Cost(linear, tuple(products))

    def _input_bits(self, layer: Layer) -> int:
        """Of what the layer reads; 32 where it is float."""
        spec = self.choices.plan.get(Site(layer.name, "input"))
        return 32 if spec is None else spec.bits

    def _latency(self) -> Cost:
        assert self.latency is not None
        linear = self._vector()
        for _, layer, widths, own in self._weights():
            linear[own] += [self.latency.entries[layer.name, bits] for bits in widths]
        return Cost(linear, constant=self._weightless())

    def _weightless(self) -> float:
        """Of layers without weights as far as the table has them, which does not depend on what is chosen."""
        assert self.latency is not None
        weighted = {layer.name for _, layer, _, _ in self._weights()}
        times = (
            self.latency.entries.get((layer.name, self._input_bits(layer)), 0.0)
            for layer in self.network.layers
            if layer.name not in weighted
        )
        return float(sum(times))


def wanted_limits(costs: Costs, wanted: Mapping[Resource, str]) -> dict[Resource, float]:
    """The limits that texts such as ``4bits`` mean, in each resource's unit."""
    return {resource: _amount(costs, resource, text) for resource, text in wanted.items()}


def check_feasible(costs: Costs, wanted: Mapping[Resource, float]) -> None:
    """Raise :class:`QuantopsyError` where no selection is within all limits, with the nearest that is there."""
    limits = [Limit(costs.of(resource), most) for resource, most in wanted.items()]
    options = costs.choices.shape
    found = nearest(options, limits)
    if options.within(limits, found):
        return
    needed = {resource: options.cost(limit.cost, found) for resource, limit in zip(wanted, limits, strict=True)}
    shown = ", ".join(f"{resource} {amount(resource, value, up=True)}" for resource, value in needed.items())
    asked = ", ".join(f"{resource} {amount(resource, value)}" for resource, value in wanted.items())
    raise QuantopsyError(
        f"limit {asked}",
        f"no choice of bit-widths is within it; the nearest feasible is {shown}",
        "raise the limit, or analyze with lower --bits",
    )


def amount(resource: Resource, value: float, up: bool = False) -> str:
    """``value`` for people; ``up``: rounded so that a limit that is given like that is not below it."""
    if resource == "latency":
        return f"{value:.4g}" if not up else f"{_ceiled(value, 4):.4g}"
    units = ("B", "KB", "MB", "GB") if resource == "size" else ("", "K", "M", "G", "T")
    power = 0
    while value >= 1000 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    value = _ceiled(value, 4) if up else value
    return f"{value:.4g} {units[power]}".strip().replace(" ", "" if resource == "bitops" else " ")


def _ceiled(value: float, digits: int) -> float:
    if value <= 0:
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / step - 1e-9) * step


def _amount(costs: Costs, resource: Resource, text: str) -> float:
    thing = f"--{'latency-limit' if resource == 'latency' else resource} {text!r}"
    wanted = number_and_unit(text)
    if wanted is None:
        raise QuantopsyError(thing, "is no limit", LIMIT_FORMS[resource])
    number, unit = wanted
    if unit in ("bit", "bits", "x"):
        bits = REFERENCE_BITS if unit == "x" else number
        if bits != int(bits):
            low, high = (costs.uniform(resource, int(end)) for end in (math.floor(bits), math.ceil(bits)))
            value = None if low is None or high is None else low + (bits - math.floor(bits)) * (high - low)
        else:
            value = costs.uniform(resource, int(bits))
        if value is None:
            raise QuantopsyError(thing, f"the latency table does not have {bits:g} bits", "give a number")
        return value * number if unit == "x" else value
    if unit not in UNITS[resource]:
        raise QuantopsyError(thing, "is no limit", LIMIT_FORMS[resource])
    return number * UNITS[resource][unit]
