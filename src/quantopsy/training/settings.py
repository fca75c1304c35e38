"""What the user may choose about a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantopsy.analysis.schemes import SCHEMES
from quantopsy.core import QuantopsyError, names
from quantopsy.training.network import Learning
from quantopsy.training.norm import NORMS
from quantopsy.training.quantizers import METHODS

FLOAT = "float"
"""The method that quantizes nothing: the float network trained the same way, to compare with."""

CORRECTION = 1e-3
"""Lambda of DDQ equation (9), where nothing else is said; the paper gives none."""

PRECISIONS = ("no", "bf16", "fp16")
"""Of the computation: float32, or mixed with a half precision."""

BATCH, LEAST_BATCH = 64, 8
"""Images of a step, where nothing else is said."""

STEPS = 8
"""Of an epoch, for which batches are made smaller, down to the least."""

EDGES = ("all", "inputs")
"""Values that are quantized of a model: all, or the inputs of layers with weights alone."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained; all of it is echoed, and kept in the folder.

    ``bits`` of weights: None for a recipe's own, else 4 (8, the most, where bits learn); ``activation_bits``: None for
    a study's or a recipe's own, else 8. ``method`` of weights; ``activation_method`` where it is not given is the
    same, but of methods with uneven levels, or for weights alone, LSQ: runtimes look no levels of activations up.
    ``edges``: see :func:`quantopsy.training.start.usual_plan`. ``edge_bits``: of a model's first and last layer with a
    weight; 0 treats them as the others. ``target``: of the footprint of all weights, such as ``4bits``, ``500KB`` or
    ``0.125x``; it makes the bits of weights learn, ``bits`` the most; the layers that a pattern of ``share`` matches
    learn one bit-width together. ``bitops``: instead of the operations, such as ``4bits`` (of weights, with activations
    at their most), ``0.5x`` (of 8-bit weights) or ``1.5G``; it makes the bits of what layers with weights read learn
    too. ``distillation``: weight of the divergence from
    the float network's outputs beside the labels' loss; 0 for none. ``correction``: lambda of DDQ equation (9), by
    default :data:`CORRECTION` with DDQ and 0 else.
    ``batch``: images of a step, None for :data:`BATCH`, and fewer where few images are trained on.
    ``rate``: of weights and biases; the others follow from it
    (:func:`quantopsy.training.optimizers.optimizers`). ``patience``: epochs without a better one after which it ends.
    """

    method: str = "ddq"
    activation_method: str | None = None
    bits: int | None = None
    activation_bits: int | None = None
    edge_bits: int = 8
    bias_bits: int | None = None
    scheme: str = "per-tensor"
    edges: str = "all"
    weight_range: str = "mse"
    activation_range: str = "mse"
    plan: Mapping[str, Any] | None = None
    target: str | None = None
    bitops: str | None = None
    footprint: str = "bits"
    share: tuple[str, ...] = ()
    correction: float | None = None
    norms: str = "kept"
    epochs: int = 10
    batch: int | None = None
    rate: float = 0.01
    decay: float = 1e-4
    warm_up: float = 0.05
    distillation: float = 1.0
    augment: str = "auto"
    ema: float = 0.0
    patience: int | None = None
    freeze_oscillations: bool = True
    validation: float = 0.1
    samples: int | None = None
    calibration_samples: int = 256
    seed: int = 0
    device: str = "cpu"
    precision: str = "no"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for method in (self.method, self.activation_method):
            if method is not None and method != FLOAT and method not in METHODS:
                raise names.unknown(method, [*METHODS, FLOAT], "method")
        if self.target is not None and self.bitops is not None:
            raise QuantopsyError(
                f"target {self.target!r} and BitOps {self.bitops!r}",
                "training takes one limit",
                "give one of them, or `quantopsy allocate` both",
            )
        if self.limit is not None and not (self.method in METHODS and METHODS[self.method].mixes):
            able = " or ".join(name for name, entry in METHODS.items() if entry.mixes)
            raise QuantopsyError(f"limit {self.limit!r}", f"{self.method} does not learn bits", f"give --method {able}")
        if self.share and self.limit is None:
            raise QuantopsyError(
                f"shared bits of {self.share[0]!r}", "bits do not learn", "give a --target or --bitops"
            )
        if self.scheme not in SCHEMES:
            raise names.unknown(self.scheme, tuple(SCHEMES), "scheme")
        if self.edges not in EDGES:
            raise names.unknown(self.edges, EDGES, "choice of edges")
        if self.norms not in NORMS:
            raise names.unknown(self.norms, NORMS, "treatment of batch norms")
        if self.precision not in PRECISIONS:
            raise names.unknown(self.precision, PRECISIONS, "precision")
        if self.precision == "fp16" and self.device == "cpu":
            raise QuantopsyError("precision 'fp16'", "it is for other devices than cpu", "give bf16, or --device cuda")
        if not 0 <= self.seed < 2**32:
            raise QuantopsyError(f"seed {self.seed}", "out of range", "give one from 0 to 2^32 - 1")
        for name, least in (("epochs", 1), ("batch", 1), ("samples", 1), ("calibration_samples", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise QuantopsyError(f"{name} {value}", "must be positive", f"give at least {least}")
        for name in ("rate", "decay", "distillation", "correction", "warm_up", "edge_bits"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < float("inf"):
                raise QuantopsyError(f"{name} {value:g}", "must not be negative", "give 0 or more")
        if not 0.0 < self.validation < 1.0:
            raise QuantopsyError(f"validation {self.validation:g}", "is no share", "give a share such as 0.1")
        if not 0.0 <= self.ema < 1.0:
            raise QuantopsyError(f"ema {self.ema:g}", "is no decay", "give 0 for none, or one such as 0.999")

    def batch_of(self, images: int) -> int:
        """How many images a step takes where ``images`` are trained on."""
        usual = min(BATCH, max(images // STEPS, LEAST_BATCH))
        return min(usual if self.batch is None else self.batch, images)

    @property
    def limit(self) -> str | None:
        """What makes bits learn, of memory or of operations."""
        return self.target if self.bitops is None else self.bitops

    @property
    def learning(self) -> Learning:
        """How grids learn."""
        activation = self.activation_method
        if self.method == FLOAT:
            return Learning()
        if activation is None:
            same = "input" in METHODS[self.method].roles and METHODS[self.method].kind in (None, "uniform")
            activation = self.method if same else "lsq"
        correction = self.correction
        if correction is None:
            correction = CORRECTION if self.method == "ddq" else 0.0
        mixed, mixed_inputs = self.limit is not None, self.bitops is not None
        return Learning(self.method, activation, correction, mixed, mixed_inputs, self.bias_bits)
