"""What all tests share: a small network, and the real ones where they are at hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small_net import SmallNet, randomise_norms
from torch import nn

from quantopsy.cli import app as cli

ZOO = Path(os.environ.get("QUANTOPSY_ZOO", Path(__file__).parents[1].parent / "shared" / "zoo"))

# Small tensors: a second thread only waits, and on a busy machine it waits long.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    """Real pretrained networks and images; tests that need them skip where they are absent."""
    if not (ZOO / "networks.json").exists():
        pytest.skip("no zoo of real networks beside the project")
    sys.path.insert(0, str(ZOO.parent))
    import zoo as module

    return module


@pytest.fixture
def small() -> nn.Module:
    """A :class:`SmallNet` with fixed weights."""
    torch.manual_seed(0)
    return randomise_norms(SmallNet())


@pytest.fixture
def images() -> torch.Tensor:
    """A dozen images of 3 x 12 x 12."""
    return torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quantopsy", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
