"""Where tasks run: in this process, or on the workers of a cluster, with the same numbers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from quantopsy.core import QuantopsyError

Task = TypeVar("Task")
Result = TypeVar("Result")
Batch = TypeVar("Batch")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Worker(Protocol[Task_contra, Batch, Result_co]):
    """Does tasks, one after the other, each in two parts."""

    def load(self, task: Task_contra, /) -> Batch:
        """Read what ``task`` needs.

        Called from one thread beside the one that runs, while another task runs; and possibly for a
        task that then runs elsewhere, so it must change nothing that can be seen.
        """
        ...

    def run(self, task: Task_contra, batch: Batch, /) -> Result_co:
        """Do ``task``. The result says which task it is of: results come in any order."""
        ...


class Pool(ABC, Generic[Task, Result]):
    """Workers, wherever they are. A context manager: leaving it closes it."""

    @abstractmethod
    def map(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """The result of every task exactly once, in ANY order: each must carry what it is of.

        What a worker raises ends the iteration as it is. One iteration at a time.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the workers. Closing twice does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalPool(Pool[Task, Result]):
    """One worker in this process, run in the calling thread."""

    def __init__(self, worker: Worker[Task, Any, Result]) -> None:
        self._worker = worker

    def map(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order of ``tasks``, the next task being loaded while one runs.

        At most one loaded task waits, so that memory is two batches' whatever the number of tasks. A
        caller that stops early, or is interrupted, leaves no thread.
        """
        from quantopsy.data import reader  # which takes torch: an engine's name is checked without

        if not tasks:
            return
        with reader() as reading:
            loading = reading.submit(self._worker.load, tasks[0])
            for following, task in enumerate(tasks, 1):
                batch = loading.result()
                if following < len(tasks):
                    loading = reading.submit(self._worker.load, tasks[following])
                yield self._worker.run(task, batch)

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(frozen=True)
class Place:
    """Where a user wants tasks to run. ``address`` is a cluster's; None is whichever is found or started."""

    kind: Literal["local", "ray"]
    address: str | None = None


_HOST_AND_PORT = r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}"
_ADDRESS = re.compile(rf"auto|(ray://)?{_HOST_AND_PORT}", re.ASCII)


def parse_engine(text: str) -> Place:
    """The place that ``local``, ``ray`` or ``ray:ADDRESS`` names.

    ADDRESS is ``auto``, ``HOST:PORT`` of the cluster's head or ``ray://HOST:PORT`` of its client server.
    Raises :class:`QuantopsyError` for anything else.
    """
    if text in ("local", "ray"):
        return Place("local" if text == "local" else "ray")
    kind, _, address = text.partition(":")
    if kind == "ray" and _ADDRESS.fullmatch(address):
        return Place("ray", address)
    if kind == "ray":
        raise QuantopsyError(
            f"engine {text!r}",
            f"{address!r} is no address of a Ray cluster",
            "give ray:auto, ray:HOST:PORT or ray:ray://HOST:PORT",
        )
    raise QuantopsyError(f"engine {text!r}", "there is none of that name", "give local, ray or ray:ADDRESS")
