"""Trainable fake-quantizers: the methods by name, each a thin module over pure functions with their gradients."""

from quantopsy.training.quantizers.fake_quantizer import FakeQuantizer
from quantopsy.training.quantizers.registry import METHODS, Method, method, trainable

__all__ = ["METHODS", "FakeQuantizer", "Method", "method", "trainable"]
