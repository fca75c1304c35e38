"""Quantization-aware training: grids that are learned, and what they may cost."""
