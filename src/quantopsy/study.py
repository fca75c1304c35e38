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
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantopsy.core import Plan, QuantopsyError

FILE = "study.sqlite"
FLOAT = 0  # the run of the float network
_VERSION = 5

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
CREATE TABLE runner_up (
    images BLOB NOT NULL,       -- int32 (n,)
    gaps BLOB NOT NULL,         -- float32 (n, M): of the float network's largest score to the next ones
    statistics BLOB NOT NULL    -- float64 (n, K): the metric's, had the second largest been the largest
);
CREATE TABLE screen (
    id INTEGER PRIMARY KEY,
    design TEXT NOT NULL UNIQUE -- JSON: columns and probes
);
CREATE TABLE screen_tile (
    screen INTEGER NOT NULL REFERENCES screen (id),
    images BLOB NOT NULL,       -- int32 (n,)
    margins BLOB NOT NULL,      -- float32 (n, M), of the decision probe
    e BLOB NOT NULL,            -- float32 (S, n, P); P counts a decision probe only where M > 0
    kind TEXT NOT NULL
);
CREATE TABLE draw (
    run INTEGER PRIMARY KEY REFERENCES run (id),
    images BLOB NOT NULL,        -- int32 (n,): all that could be drawn
    probabilities BLOB NOT NULL, -- float64 (n,): with which each was, or not
    seed INTEGER NOT NULL
);
CREATE TABLE cost (
    phase TEXT NOT NULL,
    images INTEGER NOT NULL,
    seconds REAL NOT NULL,
    pace REAL NOT NULL          -- seconds that an image of a float pass took at that moment
);
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


@dataclass(frozen=True)
class RunnerUp:
    """How far the float network's decisions are from the next best, and what the metric says of those.

    ``gaps`` (n, M): distances of the largest score to the next ones, ascending; M = 0 for maps and for
    outputs that are no scores. ``statistics`` (n, K): the metric's had the two largest scores changed
    places (in every pixel of a map); K = 0 where there are none.
    """

    images: np.ndarray
    gaps: np.ndarray
    statistics: np.ndarray


@dataclass(frozen=True)
class ScreenTile:
    """What the screen found on one tile: see :class:`quantopsy.engine.screen.Screened`."""

    images: np.ndarray  # (n,) int
    margins: np.ndarray  # (n, M), M = 0 without a decision probe
    e: np.ndarray  # (S, n, P)
    kind: str


@dataclass(frozen=True)
class Draw:
    """The images that a run could be measured on, and with which probability each is drawn, by ``seed``."""

    images: np.ndarray  # (n,), ascending
    probabilities: np.ndarray  # (n,)
    seed: int = 0

    @property
    def by_chance(self) -> bool:
        """Whether some image may be left out, so that those that are not stand for others too."""
        return bool((self.probabilities < 1.0).any())


class Cost(NamedTuple):
    """What a tile of a phase took, and ``pace``: the seconds that an image of a float pass took at that moment."""

    phase: str
    images: int
    seconds: float
    pace: float


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

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Raise :class:`QuantopsyError` naming what differs where the study is of another experiment."""
        stored = self.noted("identity", {})
        differences = [
            f"{key} was {_short(stored.get(key))}, now {_short(identity.get(key))}"
            for key in dict.fromkeys([*stored, *identity])
            if stored.get(key) != identity.get(key)
        ]
        if differences:
            raise QuantopsyError(
                f"study {str(self.path.parent)!r}",
                f"is of another experiment: {'; '.join(differences)}",
                "give another --out, or --fresh to discard it",
            )

    def run(self, plan: Plan, ranges: str = "") -> int:
        """The id of the run that measures ``plan``, made where there is none.

        ``ranges`` tells runs of one plan apart whose ranges are of other images than the study's.
        """
        fingerprint = f"{plan.fingerprint}{ranges and ' '}{ranges}"
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO run (fingerprint, plan) VALUES (?, ?)",
                (fingerprint, json.dumps(plan.to_json())),
            )
        found = self._connection.execute("SELECT id FROM run WHERE fingerprint = ?", (fingerprint,))
        return int(found.fetchone()[0])

    def plan(self, run: int) -> Plan:
        """The plan that ``run`` measures."""
        row = self._connection.execute("SELECT plan FROM run WHERE id = ?", (run,)).fetchone()
        return Plan.recorded(json.loads(row[0]))

    def append(self, results: Iterable[TileResult], runner_up: RunnerUp | None = None) -> None:
        """Commit what the runs gave on one tile of images, all or nothing."""
        rows = [
            (
                result.run,
                _int32(result.images),
                _float64(result.energy),
                _float64(result.agreement),
                _float64(result.statistics),
                result.seconds,
            )
            for result in results
        ]
        with self._transaction() as connection:
            connection.executemany("INSERT INTO tile VALUES (?, ?, ?, ?, ?, ?)", rows)
            if runner_up is not None:
                row = (_int32(runner_up.images), _float32(runner_up.gaps), _float64(runner_up.statistics))
                connection.execute("INSERT INTO runner_up VALUES (?, ?, ?)", row)

    def images(self, run: int) -> np.ndarray:
        """Images that ``run`` has been measured on, ascending."""
        return _together(self._connection.execute("SELECT images FROM tile WHERE run = ?", (run,)))

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

    def runner_up(self) -> RunnerUp | None:
        """All of it, images in ascending order; None where the float network has not been run."""
        rows = self._connection.execute("SELECT images, gaps, statistics FROM runner_up").fetchall()
        if not rows:
            return None
        images = np.concatenate([np.frombuffer(row[0], dtype=np.int32) for row in rows])
        gaps = np.concatenate([np.frombuffer(row[1], dtype=np.float32).reshape(len(row[0]) // 4, -1) for row in rows])
        statistics = np.concatenate([np.frombuffer(row[2]).reshape(len(row[0]) // 4, -1) for row in rows])
        order = np.argsort(images, kind="stable")
        return RunnerUp(images[order], gaps[order], statistics[order])

    def screen(self, design: Mapping[str, Any]) -> int:
        """The id of the screen with this ``design``, made where there is none."""
        text = json.dumps(design, sort_keys=True)
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO screen (design) VALUES (?)", (text,))
        return int(self._connection.execute("SELECT id FROM screen WHERE design = ?", (text,)).fetchone()[0])

    def screen_design(self, screen: int) -> dict[str, Any]:
        """The design that :meth:`screen` was given."""
        found = self._connection.execute("SELECT design FROM screen WHERE id = ?", (screen,)).fetchone()
        design: dict[str, Any] = json.loads(found[0])
        return design

    def append_screened(self, screen: int, tile: ScreenTile) -> None:
        """Commit one tile of a screen."""
        row = (screen, _int32(tile.images), _float32(tile.margins), _float32(tile.e), tile.kind)
        with self._transaction() as connection:
            connection.execute("INSERT INTO screen_tile VALUES (?, ?, ?, ?, ?)", row)

    def screened_images(self, screen: int) -> np.ndarray:
        """Images that a screen has scored, ascending."""
        return _together(self._connection.execute("SELECT images FROM screen_tile WHERE screen = ?", (screen,)))

    def screened(self, screen: int) -> list[ScreenTile]:
        """All tiles of a screen, in the order in which they came."""
        rows = self._connection.execute(
            "SELECT images, margins, e, kind FROM screen_tile WHERE screen = ? ORDER BY rowid", (screen,)
        )
        width = len(self.screen_design(screen)["columns"])
        tiles = []
        for images, margins, e, kind in rows:
            n = len(images) // 4
            tiles.append(
                ScreenTile(
                    np.frombuffer(images, dtype=np.int32),
                    np.frombuffer(margins, dtype=np.float32).reshape(n, -1),
                    np.frombuffer(e, dtype=np.float32).reshape(width, n, -1),
                    kind,
                )
            )
        return tiles

    def set_draw(self, run: int, draw: Draw) -> None:
        """Remember with which probabilities the images of ``run`` are drawn; the newest counts."""
        row = (run, _int32(draw.images), _float64(draw.probabilities), draw.seed)
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO draw VALUES (?, ?, ?, ?)", row)

    def forget_draw(self, run: int) -> None:
        """From now on ``run`` is asked for on all images."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM draw WHERE run = ?", (run,))

    def draw(self, run: int) -> Draw | None:
        """The draw of ``run``'s images, or None where it is measured on all it is asked for."""
        row = self._connection.execute("SELECT images, probabilities, seed FROM draw WHERE run = ?", (run,)).fetchone()
        return None if row is None else Draw(np.frombuffer(row[0], dtype=np.int32), np.frombuffer(row[1]), row[2])

    def spend(self, cost: Cost) -> None:
        """Remember what a tile took."""
        with self._transaction() as connection:
            connection.execute("INSERT INTO cost VALUES (?, ?, ?, ?)", cost)

    def costs(self) -> list[Cost]:
        """Of every tile, in the order in which they came."""
        rows = self._connection.execute("SELECT phase, images, seconds, pace FROM cost ORDER BY rowid")
        return [Cost(*row) for row in rows]


def check_folder(folder: Path) -> None:
    """Raise :class:`QuantopsyError` where nothing can be written to ``folder``; what is not there stays so."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else f"cannot be written ({error.strerror})"
        raise QuantopsyError(f"folder {str(folder)!r}", reason, "give another --out") from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


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
    try:
        store.check_identity(identity)
    except QuantopsyError:
        store.close()
        raise
    return store


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # survives a killed process, if not a power cut
    except sqlite3.DatabaseError as error:
        raise QuantopsyError(f"study {str(path)!r}", f"cannot be opened ({error})", "give another --out") from error
    return connection


def _together(tiles: Iterable[tuple[bytes]]) -> np.ndarray:
    """The images of all ``tiles``, ascending."""
    return np.sort(np.frombuffer(b"".join(images for (images,) in tiles), dtype=np.int32))


def _int32(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, dtype=np.int32).tobytes()


def _float32(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, dtype=np.float32).tobytes()


def _float64(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, dtype=np.float64).tobytes()


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 24 else f"{text[:12]}…"
