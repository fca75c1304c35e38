"""The pool in this process, names of places, and what has to travel to other processes."""

from __future__ import annotations

import importlib
import pickle
import sys
import threading
from typing import NamedTuple

import pytest
import torch
from torch import nn

from quantopsy.core import QuantopsyError
from quantopsy.engine.pool import LocalPool, Place, parse_engine
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network


class Loaded(NamedTuple):
    """A batch that knows where it was loaded."""

    task: int
    thread: threading.Thread


class Doubler:
    """Doubles tasks, notes in which order what happens, and fails where it is told to."""

    def __init__(self, *, bad_load: int = -1, bad_run: int = -1, interrupt: int = -1) -> None:
        self.bad_load, self.bad_run, self.interrupt = bad_load, bad_run, interrupt
        self.loaded: list[int] = []

    def load(self, task: int) -> Loaded:
        if task == self.bad_load:
            raise QuantopsyError(f"image {task}", "it is bad", "mend it")
        self.loaded.append(task)
        return Loaded(task, threading.current_thread())

    def run(self, task: int, batch: Loaded) -> tuple[int, int]:
        assert batch.task == task
        assert batch.thread is not threading.current_thread() is threading.main_thread()
        if task == self.bad_run:
            raise ZeroDivisionError(task)
        if task == self.interrupt:
            raise KeyboardInterrupt
        return task, 2 * task


def loaders() -> list[str]:
    """Names of the threads that load."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("quantopsy-")]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_task_once_and_in_order(count) -> None:
    with LocalPool(Doubler()) as pool:
        assert list(pool.map(range(count))) == [(task, 2 * task) for task in range(count)]
    assert not loaders()


def test_one_task_is_loaded_ahead_and_no_more() -> None:
    worker = Doubler()
    for task, _ in LocalPool(worker).map(range(9)):
        assert len(worker.loaded) <= task + 2


def test_the_next_task_is_loaded_while_one_runs() -> None:
    following = threading.Event()

    class Waiting(Doubler):
        def load(self, task: int) -> Loaded:
            if task == 1:
                following.set()
            return super().load(task)

        def run(self, task: int, batch: Loaded) -> tuple[int, int]:
            assert following.wait(10)
            return super().run(task, batch)

    assert len(list(LocalPool(Waiting()).map(range(2)))) == 2


@pytest.mark.parametrize(
    ("worker", "kind"),
    [
        (Doubler(bad_load=3), QuantopsyError),
        (Doubler(bad_run=3), ZeroDivisionError),
        (Doubler(interrupt=3), KeyboardInterrupt),
    ],
)
def test_what_a_worker_raises_comes_behind_the_results_before_it(worker, kind) -> None:
    results: list[tuple[int, int]] = []
    with pytest.raises(kind):
        results.extend(LocalPool(worker).map(range(9)))
    assert results == [(0, 0), (1, 2), (2, 4)]
    assert not loaders()


def test_a_caller_that_stops_early_leaves_no_thread() -> None:
    results = LocalPool(Doubler()).map(range(9))
    assert next(results) == (0, 0)
    assert loaders()
    results.close()  # type: ignore[attr-defined]
    assert not loaders()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("local", Place("local")),
        ("ray", Place("ray")),
        ("ray:auto", Place("ray", "auto")),
        ("ray:10.0.0.1:6379", Place("ray", "10.0.0.1:6379")),
        ("ray:[::1]:6379", Place("ray", "[::1]:6379")),
        ("ray:ray://head.example.org:10001", Place("ray", "ray://head.example.org:10001")),
    ],
)
def test_places_by_name(text, place) -> None:
    assert parse_engine(text) == place


@pytest.mark.parametrize(
    "text", ["", "Ray", "dask", "local:1", "ray:", "ray:head", "ray:head:port", "ray://h:1", "ray: a:1", "ray:a:1\n"]
)
def test_other_names_are_refused(text) -> None:
    with pytest.raises(QuantopsyError, match="engine") as caught:
        parse_engine(text)
    assert "ray:" in caught.value.remedy


def test_without_ray_the_remedy_is_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "quantopsy.engine.ray", raising=False)
    with pytest.raises(QuantopsyError) as caught:
        importlib.import_module("quantopsy.engine.ray")
    assert caught.value.remedy == 'pip install "quantopsy[ray]"'


class Several(nn.Module):
    """Two outputs by name, an operator with a list of values, and sizes computed in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.stem(x)
        return {"pair": torch.cat([y, -y], 1), "flat": y.reshape(y.shape[0], -1)}


@pytest.mark.parametrize("kind", ["small", "several"])
def test_a_pickled_network_computes_the_same(small, images, kind) -> None:
    network = capture(small if kind == "small" else Several().eval(), (images,))
    travelled = pickle.loads(pickle.dumps(network))
    programs = [compile_network(each) for each in (network, travelled)]
    first, second = ([*program.forward(program.place((images,)))] for program in programs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert str(travelled.graph) == str(network.graph)
    assert travelled.fingerprint == network.fingerprint
    assert travelled.layers == network.layers
    assert travelled.output_tree == network.output_tree
