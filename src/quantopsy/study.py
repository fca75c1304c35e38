"""The store: one SQLite file that holds everything measured, image by image.

Append-only. A *run* is a measured plan, found by the plan's fingerprint, so that cells which are the
same experiment share one measurement; run 0 is the float network. A *tile* is a run's per-image
results on some images; all runs of a tile of images are committed together, so that a killed process
loses at most the tile in flight.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantopsy.core import Plan, QuantopsyError

FILE = "study.sqlite"
FLOAT = 0  # the run of the float network
_VERSION = 1

_SCHEMA = """
CREATE TABLE note (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    plan TEXT NOT NULL
);
CREATE TABLE tile (
    run INTEGER NOT NULL REFERENCES run (id),
    images BLOB NOT NULL,       -- int32 (n,)
    energy BLOB NOT NULL,       -- float64 (n,): ||y_j - y||^2; of the float network ||y||^2
    agreement BLOB NOT NULL,    -- float64 (n,): share of decisions equal to the float network's
    statistics BLOB NOT NULL,   -- float64 (n, K): the metric's per-image statistics
    seconds REAL NOT NULL
);
CREATE INDEX tile_of_run ON tile (run);
"""


@dataclass(frozen=True)
class TileResult:
    """What one run gave on the images of one tile."""

    run: int
    images: np.ndarray  # (n,) int
    energy: np.ndarray  # (n,) float64
    agreement: np.ndarray  # (n,) float64, NaN where the outputs are no scores of classes
    statistics: np.ndarray  # (n, K) float64
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """All tiles of one run, images in ascending order."""

    images: np.ndarray
    energy: np.ndarray
    agreement: np.ndarray
    statistics: np.ndarray
    seconds: float

    def on(self, images: np.ndarray) -> RunResult:
        """The part of it on ``images`` (ascending, all of them present)."""
        rows = np.searchsorted(self.images, images)
        return RunResult(
            self.images[rows], self.energy[rows], self.agreement[rows], self.statistics[rows], self.seconds
        )


class Store:
    """A study folder's database. Use :func:`create` or :func:`open_existing`, and close it."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection:
                yield self._connection
        except sqlite3.OperationalError as error:
            raise QuantopsyError(
                f"study {str(self.path.parent)!r}",
                f"cannot be written ({error})",
                "make room or close other programs that use it, and run the same command again: it goes on",
            ) from error

    def note(self, key: str, value: Any) -> None:
        """Remember a JSON value under ``key``; the newest counts."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (key, json.dumps(value)))

    def noted(self, key: str, default: Any = None) -> Any:
        """The value remembered under ``key``."""
        row = self._connection.execute("SELECT value FROM note WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def run(self, plan: Plan) -> int:
        """The id of the run that measures ``plan``, made where there is none."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO run (fingerprint, plan) VALUES (?, ?)",
                (plan.fingerprint, json.dumps(plan.to_json())),
            )
        found = self._connection.execute("SELECT id FROM run WHERE fingerprint = ?", (plan.fingerprint,))
        return int(found.fetchone()[0])

    def find(self, plan: Plan) -> int | None:
        """The id of the run that measures ``plan``, or None."""
        row = self._connection.execute("SELECT id FROM run WHERE fingerprint = ?", (plan.fingerprint,)).fetchone()
        return None if row is None else int(row[0])

    def append(self, results: Iterable[TileResult]) -> None:
        """Commit what the runs gave on one tile of images, all or nothing."""
        rows = [
            (
                result.run,
                np.ascontiguousarray(result.images, dtype=np.int32).tobytes(),
                np.ascontiguousarray(result.energy, dtype=np.float64).tobytes(),
                np.ascontiguousarray(result.agreement, dtype=np.float64).tobytes(),
                np.ascontiguousarray(result.statistics, dtype=np.float64).tobytes(),
                result.seconds,
            )
            for result in results
        ]
        with self._transaction() as connection:
            connection.executemany("INSERT INTO tile VALUES (?, ?, ?, ?, ?, ?)", rows)

    def images(self, run: int) -> np.ndarray:
        """Images that ``run`` has been measured on, ascending."""
        rows = self._connection.execute("SELECT images FROM tile WHERE run = ?", (run,)).fetchall()
        if not rows:
            return np.empty(0, dtype=np.int32)
        return np.sort(np.concatenate([np.frombuffer(images, dtype=np.int32) for (images,) in rows]))

    def result(self, run: int) -> RunResult | None:
        """All that ``run`` gave, or None where it has not begun."""
        rows = self._connection.execute(
            "SELECT images, energy, agreement, statistics, seconds FROM tile WHERE run = ?", (run,)
        ).fetchall()
        if not rows:
            return None
        images = np.concatenate([np.frombuffer(row[0], dtype=np.int32) for row in rows])
        energy = np.concatenate([np.frombuffer(row[1]) for row in rows])
        agreement = np.concatenate([np.frombuffer(row[2]) for row in rows])
        statistics = np.concatenate([np.frombuffer(row[3]).reshape(len(row[0]) // 4, -1) for row in rows])
        order = np.argsort(images, kind="stable")
        return RunResult(
            images[order],
            energy[order],
            agreement[order],
            statistics[order],
            float(sum(row[4] for row in rows)),
        )


def create(folder: Path, identity: Mapping[str, Any]) -> Store:
    """A new study in ``folder``, of the experiment that ``identity`` describes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuantopsyError(
            f"study folder {str(folder)!r}", f"cannot be made ({error.strerror})", "give another --out"
        ) from error
    path = folder / FILE
    # Made whole under another name: a study that exists always has its schema and its identity.
    temporary = folder / f"{FILE}.new"
    temporary.unlink(missing_ok=True)
    store = Store(path, _connect(temporary))
    with store._transaction() as connection:
        connection.executescript(_SCHEMA)
        connection.execute(
            "INSERT INTO run VALUES (?, ?, ?)", (FLOAT, Plan().fingerprint, json.dumps(Plan().to_json()))
        )
    store.note("version", _VERSION)
    store.note("identity", dict(identity))
    store.close()
    for leftover in (path, folder / f"{FILE}-wal", folder / f"{FILE}-shm"):
        leftover.unlink(missing_ok=True)
    temporary.rename(path)
    return Store(path, _connect(path))


def open_existing(folder: Path) -> Store:
    """The study in ``folder``; raises where there is none or it is not readable."""
    path = folder / FILE
    if not path.exists():
        raise QuantopsyError(
            f"study {str(folder)!r}", f"has no {FILE}", "give the folder that `quantopsy analyze --out` wrote"
        )
    store = Store(path, _connect(path))
    try:
        version = store.noted("version")
    except sqlite3.DatabaseError as error:
        raise QuantopsyError(f"study {str(folder)!r}", f"is damaged ({error})", "start again with --fresh") from error
    if version != _VERSION:
        raise QuantopsyError(
            f"study {str(folder)!r}", f"was written in format {version}, not {_VERSION}", "start again with --fresh"
        )
    return store


def open_or_create(folder: Path, identity: Mapping[str, Any], *, fresh: bool) -> Store:
    """The study in ``folder`` if it is of this very experiment, a new one where there is none.

    Raises naming what differs where it is of another experiment, unless ``fresh`` starts it anew.
    """
    if fresh or not (folder / FILE).exists():
        return create(folder, identity)
    store = open_existing(folder)
    stored = store.noted("identity", {})
    differences = [
        f"{key} was {_short(stored.get(key))}, now {_short(identity.get(key))}"
        for key in dict.fromkeys([*stored, *identity])
        if stored.get(key) != identity.get(key)
    ]
    if differences:
        store.close()
        raise QuantopsyError(
            f"study {str(folder)!r}",
            f"is of another experiment: {'; '.join(differences)}",
            "give another --out, or --fresh to discard it",
        )
    return store


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # survives a killed process, if not a power cut
    except sqlite3.DatabaseError as error:
        raise QuantopsyError(f"study {str(path)!r}", f"cannot be opened ({error})", "give another --out") from error
    return connection


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 24 else f"{text[:12]}…"
