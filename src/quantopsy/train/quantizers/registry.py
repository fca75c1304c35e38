"""All training methods by name, and the quantizer that a method makes of a calibrated grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quantopsy.core import QuantopsyError, Spec, names
from quantopsy.core.plan import Role
from quantopsy.quant import LevelsQParams, QParams, UniformQParams
from quantopsy.quant.registry import quantizer
from quantopsy.train.quantizers.ddq import DDQ
from quantopsy.train.quantizers.fake_quantizer import FakeQuantizer
from quantopsy.train.quantizers.lsq import LearnedScale, LearnedScaleAndOffset
from quantopsy.train.quantizers.ste import StraightThrough

ROLES: tuple[Role, ...] = ("input", "weight", "output")


@dataclass(frozen=True)
class Options:
    """What :func:`trainable` is given beyond the grid, see there."""

    role: Role
    correction: float = 0.0
    mixed: bool = False
    minimum_bits: int = 2
    stored_bits: int = 8


@dataclass(frozen=True)
class Method:
    """A way to train a grid.

    ``kind`` of the grid it starts from, ``None`` for whatever the plan says; ``source`` in the papers;
    ``make(spec, qparams, options)`` its quantizer; ``roles`` it was made for.
    """

    name: str
    summary: str
    source: str
    kind: str | None
    grid: type[QParams]
    make: Callable[[Spec, QParams, Options], FakeQuantizer]
    roles: tuple[Role, ...] = ROLES

    def start(self, spec: Spec) -> Spec:
        """The spec whose calibrated grid training starts from: of this method's kind, rounded to nearest.

        Raises :class:`QuantopsyError` for bits that the kind does not have.
        """
        kind = self.kind or spec.kind
        options = {name: value for name, value in spec.options if name in quantizer(kind).options}
        started = replace(spec, kind=kind, options=tuple(options.items()), rounding="nearest", tensors=1)
        quantizer(kind).check(started)
        return started


_ENTRIES = (
    Method(
        name="ste",
        summary="straight through a grid that is fixed or follows the data's range",
        source="Jacob et al. 2018, section 3.1",
        kind=None,
        grid=QParams,
        make=lambda spec, qparams, options: StraightThrough(spec, qparams, options.role),
    ),
    Method(
        name="lsq",
        summary="the step size is trained",
        source="Esser et al. 2020, equations (3) and (4)",
        kind="uniform",
        grid=UniformQParams,
        make=lambda spec, qparams, options: LearnedScale(spec, qparams, options.role, options.correction),
    ),
    Method(
        name="lsq+",
        summary="step size and offset are trained",
        source="Bhalgat et al. 2020, equations (5) and (6)",
        kind="uniform",
        grid=UniformQParams,
        make=lambda spec, qparams, options: LearnedScaleAndOffset(spec, qparams, options.role, options.correction),
    ),
    Method(
        name="ddq",
        summary="every level is trained, and with mixed bit-width how many there are",
        source="DDQ sections 2.2 to 3.2",
        kind="learned",
        grid=LevelsQParams,
        make=lambda spec, qparams, options: DDQ(
            spec, qparams, options.role, options.correction, stored_bits=options.stored_bits
        ),
    ),
)
METHODS: dict[str, Method] = {entry.name: entry for entry in _ENTRIES}


def method(name: str) -> Method:
    """The method named ``name``; raises :class:`QuantopsyError` with the nearest names."""
    if name not in METHODS:
        raise names.unknown(name, list(METHODS), "training method")
    return METHODS[name]


def trainable(
    name: str,
    spec: Spec,
    qparams: QParams,
    role: Role,
    *,
    correction: float = 0.0,
    mixed: bool = False,
    minimum_bits: int = 2,
    stored_bits: int = 8,
) -> FakeQuantizer:
    """A quantizer that trains by method ``name`` and starts as ``qparams``, the calibrated grid of ``spec``.

    ``spec`` is :meth:`Method.start`'s; ``correction`` lambda of DDQ equation (9); ``mixed`` trains the bit-width
    from ``spec.bits`` down to ``minimum_bits``; ``stored_bits`` b_q of DDQ. Raises :class:`QuantopsyError` for
    a name that there is not and for a grid that the method does not train.
    """
    entry = method(name)
    if not isinstance(qparams, entry.grid) or role not in entry.roles:
        raise QuantopsyError(
            f"{name} for the {role} with a {spec.kind} grid",
            f"it trains {' and '.join(entry.roles)}, from a {entry.kind} grid",
            "calibrate the spec that the method starts from",
        )
    return entry.make(spec, qparams, Options(role, correction, mixed, minimum_bits, stored_bits))
