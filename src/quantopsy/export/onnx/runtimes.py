"""What files are run in, by the name that commands take. OpenVINO is loaded where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx

from quantopsy.core import names as known
from quantopsy.export.onnx import runtime
from quantopsy.export.onnx.runtime import Kernels, Opener, Session
from quantopsy.graph.network import Network


@dataclass(frozen=True)
class Runtime:
    """One runtime. ``title``: its name as its makers write it.

    ``open`` takes a model and ``optimised``, ``threads``. ``unsaturated``: the same, adding products up in 32 bits on
    every processor; None where the runtime has no such mode. ``kernels``: which layers of a model multiply in
    integers.
    """

    name: str
    title: str
    open: Callable[..., Session]
    unsaturated: Callable[..., Session] | None
    kernels: Callable[[onnx.ModelProto, Network], Kernels]

    def opener(self, *, optimised: bool = True, threads: int = 1) -> Opener:
        """Its way to load a model."""
        return partial(self.open, optimised=optimised, threads=threads)


ONNX_RUNTIME = Runtime(
    "onnxruntime",
    "ONNX Runtime",
    runtime.open_session,
    partial(runtime.open_session, unsaturated=True),
    runtime.kernels,
)


def _openvino() -> Runtime:
    from quantopsy.export.onnx import openvino

    return Runtime("openvino", openvino.NAME, openvino.open_session, None, openvino.kernels)


_FURTHER: dict[str, Callable[[], Runtime]] = {"openvino": _openvino}


def further(names: Sequence[str]) -> tuple[Runtime, ...]:
    """Runtimes beside ONNX Runtime by name, each once.

    Raises :class:`QuantopsyError` for a name that there is not, and for a runtime that is not installed.
    """
    for name in names:
        if name not in _FURTHER:
            raise known.unknown(name, list(_FURTHER), "runtime")
    return tuple(_FURTHER[name]() for name in dict.fromkeys(names))
