"""Workers of a Ray cluster against the worker in this process, and workers that die."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_net import SmallNet, randomise_norms
from torch import Tensor

from quantopsy.analysis.schemes import at_bits, full_plan, grids, single_layer
from quantopsy.core import Plan, QuantopsyError
from quantopsy.engine.calibration import Calibration, calibrate, wanted_statistics
from quantopsy.engine.exact import ExactEngine
from quantopsy.engine.pool import LocalPool
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.graph.network import Network

ray = pytest.importorskip("ray")
from quantopsy.engine.ray import RayPool  # noqa: E402 it needs Ray


@dataclass(frozen=True)
class Shared:
    """What every worker needs, and a folder for marks."""

    network: Network
    calibration: Calibration
    images: Tensor
    plans: tuple[Plan, ...]
    folder: Path


class Job(NamedTuple):
    """A plan to run on a tile, or a mischief."""

    plan: int
    tile: int = 0
    mischief: str = ""


class Done(NamedTuple):
    """The outputs of a plan on a tile, and how they came about."""

    job: Job
    output: Tensor
    worker: int
    threads: int
    in_main_thread: bool


class StrangeError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("strange")
        self.lock = threading.Lock()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when ``condition`` holds; raises where it does not in half a minute."""
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


class Measurer:
    """Runs plans, and dies or raises where it is told to."""

    def __init__(self, shared: Shared) -> None:
        (shared.folder / f"built-{os.getpid()}").touch(exist_ok=False)
        self.shared = shared
        self.engine = ExactEngine(compile_network(shared.network), shared.calibration)

    def load(self, job: Job) -> Tensor:
        return self.shared.images.split(4)[job.tile]

    def run(self, job: Job, batch: Tensor) -> Done:
        if job.mischief == "die":
            os._exit(1)
        if job.mischief == "die once" and not (mark := self.shared.folder / "died").exists():
            mark.touch()
            os._exit(1)
        if job.mischief == "meet":
            (self.shared.folder / f"met-{os.getpid()}").touch()
            wait_for(lambda: len(list(self.shared.folder.glob("met-*"))) == 2)
        if job.mischief == "user's mistake":
            raise QuantopsyError("image 3", "it is bad", "mend it")
        if job.mischief == "strange":
            raise StrangeError
        plan = self.engine.prepare(self.shared.plans[job.plan])
        outputs = [measured.outputs[0] for measured in self.engine.run_tile((batch,), [plan])]
        main = threading.current_thread() is threading.main_thread()
        return Done(job, torch.stack(outputs), os.getpid(), torch.get_num_threads(), main)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two CPUs, as a cluster that is there already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own future
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,
        )
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of processes and files that Ray leaves to the collector
        ray.shutdown()
        gc.collect()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Shared:
    """The small network with its ranges, one plan a layer."""
    torch.manual_seed(0)
    images = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    program = compile_network(capture(randomise_norms(SmallNet()), (images,)))
    full = at_bits(full_plan(program.network, grids("per-tensor", 8)), 4)
    calibration = calibrate(program, [(images,)], wanted_statistics(program.network, [full]))
    plans = tuple(single_layer(full, layer) for layer in program.network.layers)
    return Shared(program.network, calibration, images, plans, tmp_path_factory.mktemp("marks"))


@pytest.fixture(scope="module")
def pool(shared) -> Iterator[RayPool[Job, Done]]:
    """Workers of one thread, which outlast every test of this module."""
    with RayPool(Measurer, shared, address=None, threads=1) as workers:
        # Whoever has started first is given both, and does not begin the second: it is for the other.
        assert len({done.worker for done in workers.map([Job(0, tile, "meet") for tile in range(2)])}) == 2
        yield workers


@pytest.fixture
def jobs(shared) -> list[Job]:
    """Every plan on every tile."""
    return [Job(plan, tile) for plan in range(len(shared.plans)) for tile in range(3)]


def test_the_same_numbers_as_in_this_process(pool, shared, jobs, tmp_path) -> None:
    here = Shared(shared.network, shared.calibration, shared.images, shared.plans, tmp_path)
    expected = {done.job: done.output for done in LocalPool(Measurer(here)).map(jobs)}
    found = list(pool.map(jobs))
    assert sorted(done.job for done in found) == jobs
    assert all(torch.equal(done.output, expected[done.job]) for done in found)
    assert {(done.threads, done.in_main_thread) for done in found} == {(1, True)}
    assert len({done.worker for done in found}) == 2


def test_shared_is_built_once_by_each_worker(pool, shared, jobs) -> None:
    before = sorted(shared.folder.glob("built-*"))
    assert {f"built-{done.worker}" for done in pool.map(jobs)} <= {path.name for path in before}
    assert sorted(shared.folder.glob("built-*")) == before


def test_what_a_dead_worker_held_is_done_again(pool, jobs) -> None:
    again = [*jobs[:7], Job(0, 0, "die once"), *jobs[7:]]
    assert sorted(done.job for done in pool.map(again)) == sorted(again)


def test_a_task_that_kills_every_worker_is_named(pool, jobs, shared) -> None:
    killer = Job(1, 2, "die")
    found: list[Job] = []
    before = len(list(shared.folder.glob("built-*")))
    with pytest.raises(QuantopsyError, match="its worker died 3 times") as caught:
        found.extend(done.job for done in pool.map([*jobs[:4], killer, *jobs[4:]]))
    assert caught.value.thing == f"task {killer}"
    assert len(found) == len(set(found))
    assert len(list(shared.folder.glob("built-*"))) - before <= 3
    assert sorted(done.job for done in pool.map(jobs)) == jobs  # others took their place


def test_what_a_worker_raises_arrives_as_it_was(pool, jobs) -> None:
    with pytest.raises(QuantopsyError) as caught:
        list(pool.map([*jobs[:3], Job(0, 0, "user's mistake"), *jobs[3:]]))
    assert type(caught.value) is QuantopsyError
    assert (caught.value.thing, caught.value.reason, caught.value.remedy) == ("image 3", "it is bad", "mend it")
    with pytest.raises(RuntimeError, match="StrangeError: strange"):
        list(pool.map([Job(0, 0, "strange")]))
    assert sorted(done.job for done in pool.map(jobs)) == jobs


def test_an_early_end_leaves_nothing_for_the_next_iteration(pool, jobs) -> None:
    results = pool.map(jobs)
    next(results)
    results.close()
    assert sorted(done.job for done in pool.map(jobs[:5])) == jobs[:5]
    assert list(pool.map([])) == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nothing_answers(monkeypatch, address) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(QuantopsyError, match="nothing answers there"):
        RayPool(Measurer, None, address=address, threads=1)


SCRIPT = """
import json, os
from quantopsy.engine.ray import RayPool
import ray

class Sleepy:
    def __init__(self, shared): pass
    def load(self, task): pass
    def run(self, task, batch):
        if task == 0 and not os.path.exists("died"):
            open("died", "w").close()
            os._exit(1)
        return os.getpid()

with RayPool(Sleepy, None, address=None, threads=1) as pool:
    workers = set(pool.map(range(9)))
    results = pool.map(range(99))
    next(results)
    results.close()
print(json.dumps({"workers": list(workers), "connected": ray.is_initialized()}))
"""


def test_a_pool_of_its_own_cluster_leaves_nothing_and_prints_nothing(tmp_path) -> None:
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    told: dict[str, Any] = json.loads(ended.stdout)
    assert not told["connected"]
    assert not ended.stderr
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in told["workers"]))
