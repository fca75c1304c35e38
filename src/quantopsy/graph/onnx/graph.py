"""An ONNX graph as plain values, read and checked: what is left needs ONNX no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantopsy.core import QuantopsyError


class UnsupportedError(Exception):
    """What a node asks for that is not read; the message says what."""


@dataclass(frozen=True)
class Node:
    """A node with its attributes, those left out at their defaults.

    ``version`` is the opset in which its operator got the meaning it has here (the 18 of ReduceMean-18). ``scopes``,
    ``classes`` and ``trace`` are what torch's exporter notes of the module path and the line that made the node.
    """

    name: str
    op_type: str
    version: int
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    trace: str = ""

    @property
    def label(self) -> str:
        """What error lines call it."""
        called = self.name or next((name for name in self.outputs if name), "")
        return f"node {called!r} ({self.op_type}-{self.version}, opset {self.opset})"

    def error(self, reason: str, remedy: str) -> QuantopsyError:
        """An error about this node."""
        return QuantopsyError(self.label, reason, remedy)


@dataclass(frozen=True)
class Input:
    """An input of the file; a dimension that is free is None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class OnnxGraph:
    """A file: nodes in topological order, constants by name."""

    file: str
    producer: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
