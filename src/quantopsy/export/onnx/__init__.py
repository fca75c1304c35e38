"""ONNX files and ONNX Runtime. Nothing else imports them, and nothing here before something is exported.

Raises :class:`QuantopsyError` when imported without ONNX or ONNX Runtime.
"""

from quantopsy.core import QuantopsyError

try:
    import onnx
    import onnxruntime
except ImportError as error:
    raise QuantopsyError("ONNX", f"it cannot be imported ({error})", 'pip install "quantopsy[onnx]"') from error

__all__ = ["onnx", "onnxruntime"]
