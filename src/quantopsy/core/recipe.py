"""A recipe: what was decided for a network, as plain values that are read back to the identical one."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantopsy.core.errors import QuantopsyError
from quantopsy.core.files import write_file
from quantopsy.core.form import NUMBER, counted, misfit, spelled
from quantopsy.core.plan import Plan

FORMAT = 1
RECIPE = "recipe.json"
"""The file of a recipe in a folder of other things."""

_REMEDY = "give what `quantopsy repair` wrote"
_ESTIMATE = (NUMBER, NUMBER, NUMBER)
_GIVEN = {"dtype": str, "shape": [int], "data": str}
_FORM: dict[str, Any] = {
    "model": {
        "weights": {str: [int]},
        "macs": {str: int},
        "activations": {str: [str | None]},
        "layers": [(str, [int])],
        "norms": {str: NUMBER},
    },
    "expected": {
        "metric": str,
        "unit": str,
        "samples": int,
        "level": NUMBER,
        **dict.fromkeys(("float", "before", "after", "lost_before", "lost", "gained"), _ESTIMATE),
    },
    "proof": dict.fromkeys(("images", "float", "after"), _GIVEN),
    "transforms": [{}],
    "plan": {"layers": {str: {str: {}}}},
    "encodings": {str: {str: [{}]}},
    "given": {str: _GIVEN},
    "steps": [
        {
            **dict.fromkeys(("words", "cost", "why"), str),
            **dict.fromkeys(("change", "noise", "degradation"), _ESTIMATE),
            "layers": [str],
            "kept": bool,
            "seconds": NUMBER,
        }
    ],
    "provenance": {
        "given": dict.fromkeys(("model", "data", "metric", "preprocess"), str | dict | None),
        "limits": {},
        "training": {},
    },
}

Encodings = Mapping[str, Mapping[str, list[Mapping[str, Any]]]]
"""Qparams as JSON, ``{layer: {role: [...]}}``, one for each value of the site."""

Estimate = tuple[float, float, float]
"""A value with the ends of its interval."""


@dataclass(frozen=True)
class Step:
    """One thing that a repair tried.

    ``layers``: those it changes, empty for the whole network. ``cost``: of running it, a name of
    :data:`quantopsy.remedy.fixes.Cost`. ``change``: of the degradation over the images that decide, positive is
    worse; ``noise``: that of the network after over before. ``degradation``: after the step, over the same images.
    ``why``: in words, of what was not kept too.
    """

    words: str
    layers: tuple[str, ...]
    cost: str
    kept: bool
    why: str
    change: Estimate
    noise: Estimate
    degradation: Estimate
    seconds: float = 0.0


@dataclass(frozen=True)
class Expected:
    """What the network of a recipe is worth on ``samples`` images that no decision has seen.

    ``float`` and ``after`` are the metric's values, ``before`` that of the network as it was quantized first;
    ``lost_before`` and ``lost`` the degradations; ``gained`` the difference of the two, positive is better.
    """

    metric: str
    unit: str
    samples: int
    level: float
    float: Estimate
    before: Estimate
    after: Estimate
    lost_before: Estimate
    lost: Estimate
    gained: Estimate


@dataclass(frozen=True)
class Mended:
    """A layer before and after a repair.

    ``noise``: what the screen expects its quantization to add to the network's noise. ``spread`` of its weight: the
    widest output channel's range over the median one's; None of a layer without a weight.
    """

    name: str
    noise: tuple[float, float]
    spread: tuple[float, float] | None


@dataclass(frozen=True)
class Repair:
    """What a repair did and what is left.

    ``met``: whether the loss on images held out is at most ``max_drop``. ``layers``: all of them, in topological
    order. ``unbounded``: what the network would lose with 16 bits at every site. ``untried``: what the budget left no
    time for, in words.
    """

    bits: int
    target: str
    max_drop: float
    met: bool
    steps: tuple[Step, ...]
    expected: Expected
    layers: tuple[Mended, ...]
    unbounded: Estimate
    untried: tuple[str, ...] = ()

    @property
    def left(self) -> tuple[tuple[str, float], ...]:
        """Layers by their share of the noise that remains, the largest first."""
        total = sum(layer.noise[1] for layer in self.layers) or 1.0
        ordered = sorted(self.layers, key=lambda layer: -layer.noise[1])
        return tuple((layer.name, layer.noise[1] / total) for layer in ordered)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Repair:
        """The inverse of :meth:`to_json`."""
        return cls(
            **{
                **data,
                "steps": tuple(Step(**_tuples(step)) for step in data["steps"]),
                "expected": Expected(**_tuples(data["expected"])),
                "layers": tuple(Mended(**_tuples(layer)) for layer in data["layers"]),
                "unbounded": tuple(data["unbounded"]),
                "untried": tuple(data.get("untried", ())),
            }
        )


@dataclass(frozen=True)
class StoredTensor:
    """A tensor, such as a spec means by ``given:HASH``: ``dtype`` is numpy's name of it, ``data`` its bytes
    (little-endian; bits where bool, eight to a byte, the first in the lowest bit), compressed, in base64."""

    dtype: str
    shape: tuple[int, ...]
    data: str

    @classmethod
    def of(cls, dtype: str, shape: tuple[int, ...], raw: bytes) -> StoredTensor:
        """From bytes."""
        return cls(dtype, shape, base64.b64encode(zlib.compress(raw)).decode())

    @property
    def raw(self) -> bytes:
        """The bytes."""
        return zlib.decompress(base64.b64decode(self.data))


@dataclass(frozen=True)
class Proof:
    """What an expectation was computed from, so that recipes proven on the same images can be compared in pairs.

    ``images``: (n,) int32, ascending positions in the data. ``float`` and ``after``: (n, K) float64, the metric's
    statistics of the float network and of the recipe's.
    """

    images: StoredTensor
    float: StoredTensor
    after: StoredTensor


@dataclass(frozen=True)
class Recipe:
    """Transforms (as their ``to_json``) in order, then a plan with the encodings of its sites.

    ``model``: the network that it was made for: ``name``, ``fingerprint``, by layer the ``weights``' shapes and the
    ``macs`` an image and the ``activations`` behind it (its name, and its module's path where it is one), and
    ``total_macs`` with those of what is no layer.
    ``proof``: ``expected`` image by image. ``provenance``: versions, data, settings.
    """

    plan: Plan
    transforms: tuple[Mapping[str, Any], ...] = ()
    encodings: Encodings = field(default_factory=dict)
    given: Mapping[str, StoredTensor] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    expected: Expected | None = None
    proof: Proof | None = None
    steps: tuple[Step, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """What wrote it, as far as it says."""
        noted = self.provenance
        if "training" in noted:
            return f"train ({noted.get('trained from')}, {noted['training'].get('method')})"
        if "limits" in noted:
            return f"allocate (limit on {' and '.join(noted['limits'])})"
        if "bits" in noted:
            return f"repair ({noted['bits']} bits, target {noted.get('target')})"
        return "an unnamed command"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite is its name, such as ``"Infinity"``."""
        document = {
            "format": FORMAT,
            "model": dict(self.model),
            "expected": self.expected and asdict(self.expected),
            "proof": self.proof and asdict(self.proof),
            "transforms": [dict(transform) for transform in self.transforms],
            "plan": self.plan.to_json(),
            "encodings": {layer: dict(roles) for layer, roles in self.encodings.items()},
            "given": {name: asdict(given) for name, given in self.given.items()},
            "steps": [asdict(step) for step in self.steps],
            "provenance": dict(self.provenance),
        }
        return {name: spelled(part) for name, part in document.items()}

    @classmethod
    def from_json(cls, data: Any) -> Recipe:
        """The inverse of :meth:`to_json`; raises :class:`QuantopsyError` for what is no recipe."""
        if not isinstance(data, dict) or "plan" not in data:
            raise QuantopsyError("recipe", "it is no object with a 'plan'", _REMEDY)
        if data.get("format") != FORMAT:
            raise QuantopsyError(
                "recipe", f"it is of format {data.get('format')!r}, not {FORMAT}", "write it again with this version"
            )
        data = counted({name: value for name, value in data.items() if value is not None}, _FORM)
        if (found := misfit(data, _FORM)) is not None:
            raise QuantopsyError("recipe", f"it does not read: {found}", _REMEDY)
        try:
            expected, proof = data.get("expected"), data.get("proof")
            return cls(
                plan=Plan.recorded(data["plan"]),
                transforms=tuple(data.get("transforms", ())),
                encodings=data.get("encodings", {}),
                given={name: StoredTensor(**_tuples(value)) for name, value in data.get("given", {}).items()},
                model=data.get("model", {}),
                expected=Expected(**_tuples(expected)) if expected else None,
                proof=None if not proof else Proof(**{k: StoredTensor(**_tuples(v)) for k, v in proof.items()}),
                steps=tuple(Step(**_tuples(step)) for step in data.get("steps", ())),
                provenance=data.get("provenance", {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise QuantopsyError("recipe", f"it does not read ({error!r})", _REMEDY) from None

    def save(self, path: str | Path) -> Path:
        """Write it to ``path``, whole or not at all."""
        return write_file(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", "recipe")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read what :meth:`save` wrote; raises :class:`QuantopsyError` for a file that is no recipe."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if path.name == RECIPE and path.parent.is_dir():
                thing, reason = f"folder {str(path.parent)!r}", "it holds no recipe"
            else:
                thing, reason = f"recipe {str(path)!r}", "there is no such file"
            raise QuantopsyError(thing, reason, "run `quantopsy repair` or `quantopsy allocate` first") from None
        except (OSError, UnicodeDecodeError) as error:
            raise QuantopsyError(f"recipe {str(path)!r}", f"cannot be read ({error})", "give a recipe.json") from None
        try:
            return cls.from_json(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise QuantopsyError(f"recipe {str(path)!r}", f"is no JSON ({error})", "give a recipe.json") from None
        except QuantopsyError as error:
            raise QuantopsyError(f"recipe {str(path)!r}", error.reason, error.remedy) from None


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
