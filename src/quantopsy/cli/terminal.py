"""What commands print: progress with the time left, one JSON document, results."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Watch:
    """Progress on a terminal, with an estimate of the time left; silent elsewhere."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.bar = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.task: TaskID | None = None

    def start(self, phase: str, total: float) -> None:
        """A phase begins."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(phase, total=total or 1, completed=0 if total else 1)

    def advance(self, amount: float) -> None:
        """Some of the phase's work is done."""
        if self.task is not None:
            self.bar.advance(self.task, amount)

    def say(self, line: str) -> None:
        """A line above the progress bar."""
        if not self.quiet:
            self.console.print(line, highlight=False, markup=False)


def new_console(**options: Any) -> Console:
    """A console on which names stay what they are: ``images:one:`` has no emoji in it."""
    return Console(emoji=False, **options)


@contextmanager
def watched(quiet: bool) -> Iterator[Watch]:
    """A progress display on standard error; standard output is for results. Of several processes only the first
    one's is seen."""
    watch = Watch(new_console(stderr=True), quiet or os.environ.get("RANK", "0") != "0")
    with watch.bar:
        yield watch


def kept_clean(as_json: bool) -> AbstractContextManager[Any]:
    """Standard output is for the document; a cluster's own notices would go there too."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def stopped(words: str = "Stopped; the same command goes on where it was.") -> typer.Exit:
    new_console(stderr=True).print(words)
    return typer.Exit(130)


def print_json(value: Any) -> None:
    """For programs: what JSON cannot hold is null."""
    from quantopsy.core.plain import plain

    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def show(study: Any, as_json: bool, printed: Callable[[Any, Console], None]) -> None:
    """The document, or the results as ``printed`` shows them, and where the files are."""
    from quantopsy.analysis.document import document
    from quantopsy.api import CELLS, REPORT

    if as_json:
        print_json(document(study.results))
        return
    console = new_console()
    printed(study.results, console)
    console.print(f"\nReport: {study.folder / REPORT}   table: {study.folder / CELLS}", highlight=False)


_NEXT = {"diagnose": "why", "repair": "the cheapest repair", "export": "a file that runs"}


def print_next(of: Path, *commands: str) -> None:
    """Commands that go on from the study or recipe ``of``, to be copied, and what each gives."""
    console = new_console()
    lines = [f"quantopsy {name} {shlex.quote(str(of))}" for name in commands]
    width = max(map(len, lines))
    for place, (line, name) in enumerate(zip(lines, commands, strict=True)):
        begins = "      " if place else "Next: "
        console.print(f"{begins}{line:{width}}   # {_NEXT[name]}", highlight=False, markup=False, soft_wrap=True)
