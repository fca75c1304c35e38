"""The entry of one quantizer in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from quantopsy.core import QuantopsyError, Spec
from quantopsy.core.spec import MAX_BITS, MIN_BITS, Scalar
from quantopsy.quant.qparams import QParams
from quantopsy.quant.sample import Sample

Fit = Callable[[Spec, Sample, Tensor, Tensor], QParams]


@dataclass(frozen=True)
class Quantizer:
    """A kind of grid and how to find its qparams.

    ``fit(spec, sample, low, high)``
        qparams (``axis=0``, grid shape (R,)) for the R rows of ``sample`` within [``low``, ``high``], (R,)
        each. ``spec.signed`` is never ``None`` here: the caller has looked at the whole tensor.
    ``options``
        the kind's own options, name -> allowed values, the default first.
    ``needs_values``
        the fit looks at the distribution, not only at the range.
    ``stored_bits``
        what a spec takes for each value, where that is not its bits.
    """

    name: str
    summary: str
    fit: Fit
    options: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    needs_values: bool = False
    max_bits: int = MAX_BITS
    stored_bits: Callable[[Spec], int] = lambda spec: spec.bits

    def check(self, spec: Spec) -> None:
        """Raise :class:`QuantopsyError` for bits or options that this kind does not know."""
        if spec.bits > self.max_bits:
            raise QuantopsyError(
                f"{self.name} with {spec.bits} bits",
                "not a width of this kind",
                f"give {MIN_BITS} to {self.max_bits}",
            )
        for option, value in spec.options:
            if option not in self.options:
                known = ", ".join(self.options) or "none at all"
                raise QuantopsyError(
                    f"option {option!r} of {self.name}", "there is none of that name", f"known: {known}"
                )
            if value not in self.options[option]:
                allowed = ", ".join(map(str, self.options[option]))
                raise QuantopsyError(
                    f"option {option}={value!r} of {self.name}", "not a valid value", f"give {allowed}"
                )

    def option(self, spec: Spec, name: str) -> Scalar:
        """The value of option ``name`` in ``spec``, or its default."""
        value: Scalar = spec.option(name, self.options[name][0])
        return value
