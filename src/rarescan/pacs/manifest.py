"""What a folder that `rarescan pull` fills holds: which series is which, promised and received.

`opened` is the way in: one process at a time has the `Manifest` of a folder.
"""

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rarescan.errors import ChangedRecipeError, InputError
from rarescan.imaging.unpack import STATE
from rarescan.pacs.peer import Promise
from rarescan.pacs.spec import PullConfig

_OF_THE_FOLDER = ("address", "modality", "description")
"""Settings that all series of a folder share; days and persons may grow."""


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull came to."""

    export: Path
    n_series: int
    n_files: int
    n_incomplete: int


class Manifest:
    """Which series is which, how many files were promised and how many came."""

    def __init__(self, folder: Path, database: sqlite3.Connection) -> None:
        self._folder, self._database = folder, database

    def _place(self, kind: str, number: int) -> Path:
        return self._folder / kind / f"{number:06d}"

    def add(self, promised: Sequence[Promise]) -> list[tuple[int, Promise]]:
        """Note what was promised; return the series that are not complete, numbered."""
        for promise in dict.fromkeys(promised):
            self._database.execute(
                "INSERT INTO series(study, series, promised, received) VALUES(?, ?, ?, 0) "
                "ON CONFLICT(study, series) DO UPDATE SET promised = excluded.promised",
                (promise.study_uid, promise.series_uid, promise.n_files),
            )
        self._database.commit()
        asked = {(p.study_uid, p.series_uid) for p in promised}
        rows = self._database.execute(
            "SELECT number, study, series, promised, received FROM series ORDER BY number"
        ).fetchall()
        return [
            (number, Promise(study_uid=study, series_uid=series, n_files=n_files))
            for number, study, series, n_files, received in rows
            if (study, series) in asked
            and not (
                received == n_files and (n_files == 0 or self._place("export", number).exists())
            )
        ]

    def settle(self, numbered: tuple[int, Promise], received: int | None) -> None:
        """Put a series where it belongs, by how much of it came."""
        number, promise = numbered
        incoming = self._place("incoming", number)
        complete = received == promise.n_files
        for kind in ("export", "incomplete"):
            shutil.rmtree(self._place(kind, number), ignore_errors=True)
        if received:
            place = self._place("export" if complete else "incomplete", number)
            place.parent.mkdir(exist_ok=True)
            incoming.rename(place)
        else:
            shutil.rmtree(incoming, ignore_errors=True)
        self._database.execute(
            "UPDATE series SET received = ? WHERE number = ?", (received or 0, number)
        )
        self._database.commit()

    def missing(self, waiting: Sequence[tuple[int, Promise]]) -> list[tuple[int, Promise]]:
        """Return those that are still incomplete."""
        rows = self._database.execute("SELECT number FROM series WHERE received != promised")
        numbers = {row[0] for row in rows}
        return [item for item in waiting if item[0] in numbers]

    def summary(self) -> Pulled:
        """Return what lies in the folder."""
        query = "SELECT COUNT(*), COALESCE(SUM(received), 0) FROM series WHERE received = promised"
        n_series, n_files = self._database.execute(query).fetchone()
        query = "SELECT COUNT(*) FROM series WHERE received != promised"
        n_incomplete = self._database.execute(query).fetchone()[0]
        return Pulled(
            export=self._folder / "export",
            n_series=n_series,
            n_files=n_files,
            n_incomplete=n_incomplete,
        )


@contextmanager
def opened(folder: Path, config: PullConfig, *, overwrite: bool) -> Iterator[Manifest]:
    """Open the folder for this process alone."""
    shared = {key: getattr(config, key) for key in _OF_THE_FOLDER}
    if folder.is_dir() and any(folder.iterdir()) and not (folder / STATE).exists():
        if not overwrite:
            raise ChangedRecipeError(
                f"{folder} is not empty and was not filled by `rarescan pull`.",
                remedy="Choose another folder, or add --overwrite to replace it.",
            )
        shutil.rmtree(folder)
    (folder / "export").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with closing(sqlite3.connect(folder / STATE, timeout=0)) as database:
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise InputError(
                f"Another process is already filling {folder}.",
                remedy="Wait until it ends, or choose another folder.",
            ) from None
        database.execute("CREATE TABLE IF NOT EXISTS about(key TEXT PRIMARY KEY, value TEXT)")
        database.execute(
            "CREATE TABLE IF NOT EXISTS series(number INTEGER PRIMARY KEY, study TEXT, "
            "series TEXT, promised INTEGER, received INTEGER, UNIQUE(study, series))"
        )
        query = "SELECT key, value FROM about WHERE EXISTS(SELECT * FROM series)"
        stored = dict(database.execute(query))
        changed = [f"pull.{key}" for key in stored if stored[key] != shared[key]]
        if changed and not overwrite:
            raise ChangedRecipeError(
                f"{folder} was filled with other settings (changed: {', '.join(changed)}).",
                remedy="Choose another folder, or add --overwrite to replace it.",
            )
        if changed:
            database.execute("DELETE FROM series")
            for kind in ("export", "incomplete"):
                shutil.rmtree(folder / kind, ignore_errors=True)
            (folder / "export").mkdir()
        database.executemany("INSERT OR REPLACE INTO about VALUES(?, ?)", shared.items())
        database.commit()
        yield Manifest(folder, database)
