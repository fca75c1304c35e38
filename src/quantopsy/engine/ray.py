"""Tasks on the workers of a Ray cluster. Nothing else imports Ray.

Raises :class:`QuantopsyError` when imported without Ray.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import textwrap
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quantopsy.core import QuantopsyError
from quantopsy.data import reader
from quantopsy.engine.pool import Pool, Result, Task, Worker

# Ray prints these on standard output, which may be meant for a document; a pool mends what they tell.
_TOLD_BY_RAY = "worker died or was killed|due to memory pressure|marked dead|Raylet is terminated"
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _TOLD_BY_RAY)

try:
    import ray
    from ray import cloudpickle
    from ray._private.services import canonicalize_bootstrap_address as _found_here  # no public name has it
    from ray.exceptions import RayError, RaySystemError, RayTaskError
except ImportError as error:
    raise QuantopsyError("Ray", f"it cannot be imported ({error})", 'pip install "quantopsy[ray]"') from error

# Calls that wait at an actor, the running one included: it goes on while the driver is busy with a
# result. One more task is known to each, so that the last of the calls can load ahead too.
_QUEUED = 2
_HELD = _QUEUED + 1

_LOSSES = 3  # of a task's workers, before the task is what is blamed; of a worker while it starts
_REACHED_WITHIN = 5.0  # seconds
_SETTLED_WITHIN = 5.0  # until a cluster that has just started knows its own CPUs


class RayPool(Pool[Task, Result]):
    """One worker per ``threads`` CPUs of a Ray cluster.

    Every worker is a process that computes ``build(shared)`` once; ``shared`` travels once to each
    node. All of them compute with ``threads`` threads, because the number of threads decides the order
    of sums. Tasks are sent twice, once to load ahead: they should be small.

    ``address`` as of :func:`quantopsy.engine.pool.parse_engine`; None is the cluster that is running on
    this machine, or one that is started for as long as the pool lasts. A process that is already
    connected stays where it is. A task waits for ever where the cluster has no room for a worker.

    A worker that dies is replaced, and what it was given is done again. Raises :class:`QuantopsyError`
    for a cluster that cannot be reached or has no CPUs; the rest is raised by :meth:`map`.
    """

    def __init__(
        self, build: Callable[[Any], Worker[Task, Any, Result]], shared: Any, *, address: str | None, threads: int
    ) -> None:
        self._build = build
        self._threads = threads
        self._numbers = itertools.count()
        self._lanes: list[_Lane] = []
        self._closed = False
        self._connected_here = _connect(address)
        try:
            self._cpus, count = _room(threads)
            self._shared = ray.put(shared)
            self._lanes = [self._open() for _ in range(count)]
        except BaseException:
            self.close()
            raise

    def map(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """The result of every task exactly once, in the order in which they are done.

        What a worker raises is raised here as it was, and ends the iteration. Raises
        :class:`QuantopsyError` naming the task whose worker died three times, and when workers die
        before they have started. After an early end every worker still ends the one or two tasks it
        was called for, before what the pool is given next.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        work = _Work(deque(_Job(next(self._numbers), task) for task in tasks))
        try:
            self._hand_out(work)
            while work.waiting or work.suspects or any(lane.jobs for lane in self._lanes):
                lane, call = self._ready()
                try:
                    result = ray.get(call)
                except RayTaskError as error:
                    raise error.cause from error
                except RaySystemError:
                    raise  # it came, and cannot be read: doing it again would not help
                except RayError as error:
                    self._replace(lane, error, work)
                    self._hand_out(work)
                    continue
                is_result = lane.settle(call)
                self._hand_out(work)  # first: the caller may take long with the result
                if is_result:
                    yield result
        finally:
            for lane in self._lanes:
                # Not cancelled: for a call that is missing Ray lets those behind it wait half a minute.
                lane.jobs.clear()
                lane.calls.clear()

    def close(self) -> None:
        """End the workers, and the connection where this pool made it. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        with suppress(Exception):  # a cluster that is gone has no workers left
            for lane in self._lanes:
                ray.kill(lane.actor)
        self._lanes = []
        if self._connected_here:
            ray.shutdown()

    def _open(self, failed_starts: int = 0) -> _Lane:
        here = str(Path.cwd()), [str(Path(folder).absolute()) for folder in sys.path]
        actor: Any = ray.remote(num_cpus=self._cpus, max_restarts=0)(_Actor).remote(self._threads, *here)
        return _Lane(actor, actor.start.remote(self._build, self._shared), failed_starts)

    def _ready(self) -> tuple[_Lane, Any]:
        """A call that has ended, and whose it is."""
        calls = {call: lane for lane in self._lanes for call in lane.pending}
        ready, _ = ray.wait(list(calls), num_returns=1)
        return calls[ready[0]], ready[0]

    def _hand_out(self, work: _Work) -> None:
        """Give the workers that have started what they can take, evenly."""
        lanes = [lane for lane in self._lanes if lane.starting is None]
        for held in range(_HELD):
            for lane in lanes:
                if len(lane.jobs) == held and (job := self._job_for(lane, work)) is not None:
                    lane.jobs.append(job)
        for lane in lanes:
            # Near the end what is not yet called stays free for a worker that has nothing to do.
            lane.call(_QUEUED if work.waiting else 1)

    def _job_for(self, lane: _Lane, work: _Work) -> _Job | None:
        if lane.jobs and lane.jobs[0].losses:
            return None
        if work.suspects and not lane.jobs:
            return work.suspects.popleft()
        if work.waiting:
            return work.waiting.popleft()
        if not lane.jobs:
            richest = max(self._lanes, key=lambda other: other.spare)
            return richest.jobs.pop() if richest.spare > 0 else None
        return None

    def _replace(self, lane: _Lane, error: RayError, work: _Work) -> None:
        """Another worker for one that is lost; raises where that has happened too often."""
        ray.kill(lane.actor)  # it may only be out of reach
        reason = _cause(error)
        failed_starts = 0 if lane.starting is None else lane.failed_starts + 1
        if failed_starts == _LOSSES:
            raise QuantopsyError(
                "Ray worker",
                f"it died {_LOSSES} times while it started ({reason})",
                "give the workers more memory, or look for the cause in the logs of Ray",
            )
        self._lanes[self._lanes.index(lane)] = self._open(failed_starts)
        for job in lane.jobs:
            job.losses += 1
            if job.losses == _LOSSES:
                raise QuantopsyError(
                    f"task {_shortened(repr(job.task))}",
                    f"its worker died {_LOSSES} times ({reason})",
                    "give the workers more memory, or run it with the local engine to see the cause",
                )
        work.suspects.extend(lane.jobs)


@dataclass(eq=False)
class _Job:
    """A task that has no result yet; ``losses`` are the workers that died while they held it."""

    number: int  # never given twice by a pool
    task: Any
    losses: int = 0


@dataclass(eq=False)
class _Work:
    """What no worker holds. ``suspects`` were with a worker that died.

    A suspect is given to a worker alone, so that the one that kills is known from those beside it.
    """

    waiting: deque[_Job]
    suspects: deque[_Job] = field(default_factory=deque)


@dataclass(eq=False)
class _Lane:
    """An actor, the call that starts it until that has ended, its jobs, and calls for the first of them.

    ``failed_starts`` are of the actors that it replaces, one after the other.
    """

    actor: Any
    starting: Any | None
    failed_starts: int
    jobs: deque[_Job] = field(default_factory=deque)
    calls: deque[Any] = field(default_factory=deque)

    @property
    def pending(self) -> Sequence[Any]:
        """Calls to wait for."""
        return self.calls if self.starting is None else [self.starting]

    @property
    def spare(self) -> int:
        """Jobs that another worker can have."""
        return len(self.jobs) - max(len(self.calls), 1)

    def call(self, limit: int) -> None:
        """Call for jobs until ``limit`` calls wait."""
        while len(self.calls) < min(limit, len(self.jobs)):
            here = len(self.calls)
            job, ahead = self.jobs[here], self.jobs[here + 1] if here + 1 < len(self.jobs) else None
            following = None if ahead is None else (ahead.number, ahead.task)
            self.calls.append(self.actor.run.remote(job.number, job.task, following))

    def settle(self, call: Any) -> bool:
        """Take note that ``call`` has ended; True where it was for a job."""
        if self.starting is not None:
            self.starting = None
            return False
        here = self.calls.index(call)
        del self.calls[here], self.jobs[here]
        return True


class _Actor:
    """A worker in a process of its own.

    Calls run in the main thread, which alone has glibc's main arena: in another one the large blocks
    of a forward pass would be handed back to the kernel each time (see ``engine/allocator.py``).
    """

    def __init__(self, threads: int, folder: str, path: Sequence[str]) -> None:
        torch.set_num_threads(threads)
        # A user's relative paths and modules are found as at the driver, where this node has them.
        with suppress(OSError):
            os.chdir(folder)
        sys.path.extend(place for place in path if place not in sys.path)
        self._reader = reader()
        self._ahead: tuple[int, Future[Any]] | None = None
        self._worker: Worker[Any, Any, Any] | None = None

    def start(self, build: Callable[[Any], Worker[Any, Any, Any]], shared: Any) -> None:
        with _errors_that_travel():
            self._worker = build(shared)

    def run(self, number: int, task: Any, following: tuple[int, Any] | None) -> Any:
        """The result of ``task``; the one that is probably next is loaded meanwhile."""
        assert self._worker is not None
        with _errors_that_travel():
            held, loading = self._ahead or (None, None)
            if loading is None or held != number:  # else it went to another worker
                loading = self._reader.submit(self._worker.load, task)
            self._ahead = None
            batch = loading.result()
            if following is not None:
                self._ahead = following[0], self._reader.submit(self._worker.load, following[1])
            return self._worker.run(task, batch)


@contextmanager
def _errors_that_travel() -> Iterator[None]:
    """An exception that cannot be pickled becomes a RuntimeError that says the same."""
    try:
        yield
    except Exception as error:
        try:
            cloudpickle.loads(cloudpickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__qualname__}: {error}") from error
        raise


def _connect(address: str | None) -> bool:
    """Connect this process to the cluster; False where it is connected already."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = _reachable(address)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None or "://" not in address:
        settings["include_dashboard"] = False
    try:
        with warnings.catch_warnings():
            # Ray warns of its own future; nothing that a caller could act on.
            warnings.simplefilter("ignore")
            ray.init(address=address, **settings)
    except Exception as error:
        raise QuantopsyError(
            f"Ray cluster {address or 'on this machine'!r}",
            f"no connection ({_cause(error.__cause__ or error)})",
            "look whether it runs, has your versions of Ray and Python, and asks for a token (RAY_AUTH_MODE=token)",
        ) from error
    return True


def _reachable(address: str | None) -> str | None:
    """``address`` as Ray should have it; raises where nothing answers there.

    Ray itself tries for minutes, and fills the terminal meanwhile.
    """
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    if address == "local":
        return address
    wanted: Any = address
    if address in (None, "auto"):
        try:
            wanted = _found_here(wanted)
        except ConnectionError as error:
            raise QuantopsyError(
                "Ray", "no cluster runs on this machine", "start one with ray start --head, or give ray:HOST:PORT"
            ) from error
    if wanted is None:
        return "local"
    host, _, port = wanted.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_WITHIN).close()
    except (OSError, ValueError, OverflowError) as error:
        if address is None:
            return "local"  # the note of a cluster that is gone
        raise QuantopsyError(
            f"Ray cluster {wanted!r}",
            f"nothing answers there ({error})",
            "give the HOST:PORT that `ray start --head` printed, and look whether a firewall is between",
        ) from error
    return address


def _room(threads: int) -> tuple[int, int]:
    """CPUs that a worker asks for, and how many workers of ``threads`` threads the cluster has room for."""
    end = time.monotonic() + _SETTLED_WITHIN
    while not any(cpus := [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]):
        if time.monotonic() > end:
            raise QuantopsyError("Ray cluster", "it has no CPUs", "add a node: ray start --address=HOST:PORT")
        time.sleep(0.1)
    return min(threads, max(cpus)), max(1, sum(count // threads for count in cpus))


def _cause(error: BaseException) -> str:
    """What of Ray's many lines says what happened."""
    last = str(error).strip().rpartition("\n")[2]
    return _shortened(last.rpartition("Worker exit detail: ")[2]) or type(error).__name__


def _shortened(text: str) -> str:
    return textwrap.shorten(text, 160, placeholder=" ...")
