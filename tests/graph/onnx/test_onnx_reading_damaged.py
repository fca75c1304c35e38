"""Damaged and hostile files: a line of error or a network, never a traceback, never without end."""

from __future__ import annotations

import time

import pytest
import torch
from mutations import damaged_bytes, damaged_graphs

from quantopsy.core import QuantopsyError
from quantopsy.graph.capture import capture
from quantopsy.graph.onnx import load_onnx, module

PATIENCE = 5.0
"""Seconds for one file; the sound one takes a hundredth."""

BATCHES = {
    **{f"graphs {seed}": damaged_graphs(seed, 250) for seed in range(6)},
    **{f"bytes {seed}": damaged_bytes(seed, 250) for seed in range(2)},
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_damaged_file_is_refused_in_a_line_or_read(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGEST_VALUE", 2**18)
    monkeypatch.setattr(module, "LARGEST_CONSTANTS", 2**18)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outcomes = {"read": 0, "refused": 0}
    for index, content in enumerate(BATCHES[name]):
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        begin = time.perf_counter()
        line = ""
        try:
            found = load_onnx(path)
            with torch.no_grad():
                found(x)
            if index % 50 == 0:
                capture(found, (x,))
        except QuantopsyError as error:
            line = str(error)
        except Exception as error:
            raise AssertionError(f"file {index} of {name!r}: {type(error).__name__}: {error}") from error
        outcomes["refused" if line else "read"] += 1
        assert not line or line.isprintable()
        assert len(line) < 3000
        assert time.perf_counter() - begin < PATIENCE
    assert min(outcomes.values()) > 5
