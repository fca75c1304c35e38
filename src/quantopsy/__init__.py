"""Quantopsy: which layers lose the accuracy of a quantized network, why, and the cheapest repair."""
