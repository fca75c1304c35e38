"""What a transform is: a frozen value that says what to do to a network, exactly."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from quantopsy.core import QuantopsyError
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network
from quantopsy.graph.outputs import output_tensors, squared_norms

TOLERANCE = 1e-4
"""Relative l2 distance per image that an exact transform may move the float outputs by: rounding."""


class Transform(Protocol):
    """From network to network; applied again, or read from JSON and applied, it gives the identical network.

    ``name`` is its name in JSON. ``exact``: it claims to leave the float function as it was but for rounding.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]

    def apply(self, network: Network) -> Network:
        """The transformed network; raises :class:`QuantopsyError` where the transform is of another one."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`."""


def check_function(before: Network, after: Network, batches: Iterable[Any]) -> float:
    """The largest relative l2 distance, over images, between the float outputs of two networks.

    ||y' - y|| / ||y|| with several outputs as one long vector; ``batches`` are inputs as ``Program.place``
    takes them. Raises :class:`QuantopsyError` where there is no batch.
    """
    first, second = compile_network(before), compile_network(after)
    found = []
    with torch.inference_mode():
        for inputs in batches:
            y, moved = (output_tensors(program.forward(program.place(inputs))) for program in (first, second))
            found.append((squared_norms(moved, y) / squared_norms(y).clamp(min=1e-24)).sqrt().max())
    if not found:
        raise QuantopsyError("check of a transform", "there is no image to check it on", "give a batch")
    return float(torch.stack(found).max())


def apply_checked(transform: Transform, network: Network, batches: Iterable[Any]) -> tuple[Network, float]:
    """``network`` transformed, and by how much its float outputs moved (:func:`check_function`).

    Raises :class:`QuantopsyError` where a transform that is exact moves them by more than ``TOLERANCE``.
    """
    transformed = transform.apply(network)
    moved = check_function(network, transformed, batches)
    if transform.exact and not moved <= TOLERANCE:
        raise QuantopsyError(
            f"transform {transform.name!r}",
            f"it moves the float outputs by {moved:.2g} of their length where it may not move them",
            "leave it out, and please report it",
        )
    return transformed, moved


def encode(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Vectors by name, float32 little-endian in base64."""
    return {
        name: base64.b64encode(tensor.detach().cpu().numpy().astype("<f4").tobytes()).decode()
        for name, tensor in tensors.items()
    }


def decode(data: Mapping[str, str | Sequence[float]]) -> dict[str, Tensor]:
    """The inverse of :func:`encode`; lists of numbers are taken too."""
    return {name: _vector(name, value) for name, value in data.items()}


def _vector(name: str, value: str | Sequence[float]) -> Tensor:
    try:
        if isinstance(value, str):
            return torch.from_numpy(np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32))
        return torch.tensor([float(number) for number in value], dtype=torch.float32)
    except (ValueError, TypeError) as error:
        raise QuantopsyError(
            f"vector of {name!r}", f"it does not decode ({error})", "give numbers, or base64 of float32 values"
        ) from None
