"""ONNX files as modules that capture understands.

Our own reading of the graph rather than a converter: `onnx2torch`, the candidate, fails on ReduceMean-18 of a freshly
exported MobileNetV2 and needs torchvision.
"""

from __future__ import annotations

from pathlib import Path

from quantopsy.core import QuantopsyError
from quantopsy.graph.onnx.module import OnnxModule

__all__ = ["OnnxModule", "load_onnx"]


def load_onnx(path: str | Path) -> OnnxModule:
    """The float network in the ONNX file ``path``.

    Raises :class:`QuantopsyError` where ONNX is not installed, and in a line for whatever is wrong with the file.
    """
    try:
        from quantopsy.graph.onnx.file import read
    except ImportError as error:
        raise QuantopsyError(
            f"model {str(path)!r}", f"ONNX cannot be imported ({error})", 'pip install "quantopsy[onnx]"'
        ) from error
    return OnnxModule(read(path))
