"""All training methods by name, and the quantizer that a method makes of a calibrated grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from quantopsy.core import QuantopsyError, Spec, names
from quantopsy.core.plan import ROLES, Role
from quantopsy.core.spec import MIN_BITS
from quantopsy.quant import LevelsQParams, QParams, UniformQParams
from quantopsy.quant.registry import quantizer
from quantopsy.training.quantizers.ddq import DDQ
from quantopsy.training.quantizers.dorefa import DoReFa
from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer
from quantopsy.training.quantizers.gates import Gates
from quantopsy.training.quantizers.lsq import LearnedScale, LearnedScaleAndOffset
from quantopsy.training.quantizers.pact import LearnedThreshold
from quantopsy.training.quantizers.ste import StraightThrough


@dataclass(frozen=True)
class Options:
    """What :func:`trainable` is given beyond the grid, see there."""

    role: Role
    correction: float
    mixed: bool
    minimum_bits: int
    stored_bits: int

    def gates(self, spec: Spec) -> Gates | None:
        """New ones, where the bit-width is to be trained."""
        return Gates(spec.bits, self.minimum_bits) if self.mixed else None


@dataclass(frozen=True)
class Method:
    """A way to train a grid.

    ``source`` in the papers; ``kind`` of the grid it starts from, ``None`` for whatever the plan says; ``grids``
    that it can train; ``make(spec, qparams, options)`` its quantizer; ``roles`` it is for; ``mixes`` whether it
    trains the bit-width too.
    """

    name: str
    summary: str
    source: str
    kind: str | None
    grids: tuple[type, ...]
    make: Callable[[Spec, Any, Options], FakeQuantizer]
    roles: tuple[Role, ...] = ROLES
    mixes: bool = False

    def start(self, spec: Spec) -> Spec:
        """The spec whose calibrated grid training starts from: of this method's kind, rounded to nearest.

        Raises :class:`QuantopsyError` for bits that the kind does not have.
        """
        entry = quantizer(self.kind or spec.kind)
        options = {name: value for name, value in spec.options if name in entry.options}
        started = replace(spec, kind=entry.name, options=tuple(options.items()), rounding="nearest", tensors=1)
        entry.check(started)
        return started


def _ste(spec: Spec, qparams: QParams, options: Options) -> FakeQuantizer:
    return StraightThrough(spec, qparams, options.role)


def _learned_scale(spec: Spec, qparams: UniformQParams | LevelsQParams, options: Options) -> FakeQuantizer:
    return LearnedScale(spec, qparams, options.role, options.correction, options.gates(spec))


def _learned_scale_and_offset(spec: Spec, qparams: UniformQParams, options: Options) -> FakeQuantizer:
    if options.role == "weight":
        return _learned_scale(spec, qparams, options)
    return LearnedScaleAndOffset(spec, qparams, options.role, options.correction)


def _pact(spec: Spec, qparams: UniformQParams, options: Options) -> FakeQuantizer:
    if options.role == "weight":
        return DoReFa(spec, qparams)
    return LearnedThreshold(spec, qparams, options.correction)


def _dorefa(spec: Spec, qparams: UniformQParams, _: Options) -> FakeQuantizer:
    return DoReFa(spec, qparams)


def _ddq(spec: Spec, qparams: LevelsQParams, options: Options) -> FakeQuantizer:
    return DDQ(spec, qparams, options.role, options.correction, options.stored_bits, options.gates(spec))


_ENTRIES = (
    Method(
        name="ste",
        summary="straight through a grid that is fixed or follows the data's range",
        source="Jacob et al. 2018, section 3.1",
        kind=None,
        grids=(QParams,),
        make=_ste,
    ),
    Method(
        name="lsq",
        summary="the step size is trained, and with mixed bit-width how many there are",
        source="Esser et al. 2020, equation (3)",
        kind="uniform",
        grids=(UniformQParams,),
        make=_learned_scale,
        mixes=True,
    ),
    Method(
        name="lsq+",
        summary="step size and offset of activations are trained; weights as in lsq, as in the paper",
        source="Bhalgat et al. 2020, sections 3.1 and 3.2",
        kind="uniform",
        grids=(UniformQParams,),
        make=_learned_scale_and_offset,
    ),
    Method(
        name="pact",
        summary="an activation's clipping threshold is trained; weights as in dorefa, as in the paper's tables",
        source="Choi et al. 2018, section 3",
        kind="uniform",
        grids=(UniformQParams,),
        make=_pact,
    ),
    Method(
        name="dorefa",
        summary="weights squashed by a tanh, straight through a fixed grid",
        source="Zhou et al. 2016, section 2.3",
        kind="uniform",
        grids=(UniformQParams,),
        make=_dorefa,
        roles=("weight",),
    ),
    Method(
        name="pot",
        summary="levels are powers of two, their scale is trained",
        source="DDQ equation (2); gradient of Li et al. 2020, section 2.3",
        kind="power_of_two",
        grids=(LevelsQParams,),
        make=_learned_scale,
    ),
    Method(
        name="apot",
        summary="levels are sums of powers of two, their scale is trained",
        source="Li et al. 2020, sections 2.2 and 2.3",
        kind="additive_power_of_two",
        grids=(LevelsQParams,),
        make=_learned_scale,
    ),
    Method(
        name="ddq",
        summary="every level is trained, and with mixed bit-width how many there are",
        source="DDQ sections 2.2 to 3.2",
        kind="learned",
        grids=(LevelsQParams,),
        make=_ddq,
        mixes=True,
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
    minimum_bits: int = MIN_BITS,
    stored_bits: int = 8,
) -> FakeQuantizer:
    """A quantizer that trains by method ``name`` and starts as ``qparams``, the calibrated grid of ``spec``.

    ``spec`` is :meth:`Method.start`'s; ``correction`` lambda of DDQ equation (9); ``mixed`` trains the bit-width
    from ``spec.bits`` down to ``minimum_bits``; ``stored_bits`` b_q of DDQ. Raises :class:`QuantopsyError` for
    a name that there is not, a role or a grid that the method does not train, and a bit-width that it cannot mix.
    """
    entry = method(name)
    if role not in entry.roles:
        raise QuantopsyError(f"{name} for an {role}", f"it is for a {' or '.join(entry.roles)}", "take another method")
    if not isinstance(qparams, entry.grids):
        raise QuantopsyError(
            f"{name} from a grid of kind {spec.kind}",
            f"it trains one of kind {entry.kind}",
            "calibrate the spec that the method starts from",
        )
    if mixed and not entry.mixes:
        able = ", ".join(other.name for other in METHODS.values() if other.mixes)
        raise QuantopsyError(f"mixed bit-width with {name}", "it keeps its bits", f"take {able}")
    return entry.make(spec, qparams, Options(role, correction, mixed, minimum_bits, stored_bits))
