"""What an export holds: every file read once, in limited child processes, into a small database.

`build_index` is the way in: header and hashes come from one buffer each. The database lies in the
step's working folder, holds identities, and is removed with it; memory does not grow with the
export.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rarescan.imaging.header import Header
from rarescan.imaging.identity import normalise
from rarescan.imaging.parse import limit_this_process, read_header
from rarescan.imaging.stacks import File
from rarescan.imaging.unpack import regular_files
from rarescan.processes import run_parallel

_FILES_A_CHUNK = 200
_CHUNKS_A_BATCH = 64
_LARGEST_FILE = 256 << 20
_CHILD_MEMORY_MIB = 512

Row = tuple[int, str | None, str | None, str, str | None, str | None, str, str, str | None]
"""number, code, sha256, patient, issuer, birth, study, series, header."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The database of an export."""

    path: Path
    root: Path
    """Folder that the stored paths are relative to."""

    def connect(self) -> sqlite3.Connection:
        """Open the database."""
        connection = sqlite3.connect(self.path)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS files(number INTEGER PRIMARY KEY, path TEXT, code TEXT, "
            "sha TEXT, patient TEXT, issuer TEXT, birth TEXT, study TEXT, series TEXT, header TEXT)"
        )
        return connection

    def counts(self) -> dict[str, int]:
        """Return how many files each reason code kept from being part of a stack."""
        query = "SELECT code, COUNT(*) FROM files WHERE code IS NOT NULL GROUP BY code"
        with closing(self.connect()) as database:
            return dict(database.execute(query).fetchall())

    def n_files(self) -> int:
        """Return how many files the export holds."""
        with closing(self.connect()) as database:
            return int(database.execute("SELECT COUNT(*) FROM files").fetchone()[0])

    def read(self, numbers: Sequence[int]) -> list[tuple[File, Path]]:
        """Return files by number, with their paths."""
        with closing(self.connect()) as database:
            rows = [
                database.execute("SELECT header, path FROM files WHERE number=?", (n,)).fetchone()
                for n in numbers
            ]
        return [
            (File(number=n, header=Header.from_json(header)), self.root / path)
            for n, (header, path) in zip(numbers, rows, strict=True)
        ]


def build_index(root: Path, private: Path, *, workers: int | None = None) -> Index:
    """Read every file once and return the index; what an earlier run indexed is kept.

    Parameters
    ----------
    root : Path
        Folder with the files.
    private : Path
        Folder for the database, which holds identities.
    workers : int, optional
        Number of processes; hostile bytes are parsed in children with limits only.
    """
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    index = Index(path=private / "index.sqlite", root=root)
    with closing(index.connect()) as database:
        known = {row[0] for row in database.execute("SELECT number FROM files")}
        listed = ((k, n) for k, n in enumerate(regular_files(root)) if k not in known)
        while batch := list(islice(listed, _FILES_A_CHUNK * _CHUNKS_A_BATCH)):
            names = dict(batch)
            rows = _read_files(root, batch, workers)
            database.executemany(
                "INSERT INTO files VALUES(?,?,?,?,?,?,?,?,?,?)",
                [(row[0], names[row[0]], *row[1:]) for row in rows],
            )
            database.commit()
        database.execute(
            "UPDATE files SET code='DUP_EXACT' WHERE code IS NULL AND number NOT IN "
            "(SELECT MIN(number) FROM files WHERE code IS NULL GROUP BY sha)"
        )
        database.commit()
    return index


def _read_files(root: Path, batch: Sequence[tuple[int, str]], workers: int | None) -> list[Row]:
    """Read in chunks; the files of a chunk whose process died are read one by one."""
    chunks = [
        (root, tuple(batch[k : k + _FILES_A_CHUNK])) for k in range(0, len(batch), _FILES_A_CHUNK)
    ]
    what = "read headers"
    read = run_parallel(_read_chunk, chunks, what=what, workers=workers, on_death=lambda _: [])
    again = [
        (root, (f,)) for (_, fs), rows in zip(chunks, read, strict=True) if not rows for f in fs
    ]
    alone = run_parallel(_read_chunk, again, what=what, workers=workers, on_death=lambda _: [])
    crashed = (
        rows or [_row(files[0][0], "PARSER_CRASH")]
        for (_, files), rows in zip(again, alone, strict=True)
    )
    return [row for rows in (*read, *crashed) for row in rows]


Chunk = tuple[Path, tuple[tuple[int, str], ...]]


def _read_chunk(chunk: Chunk) -> list[Row]:
    """Read the headers of some files, in a child process that may not write."""
    limit_this_process(_CHILD_MEMORY_MIB)
    root, files = chunk
    return [_read_one(number, root / name) for number, name in files]


def _read_one(number: int, path: Path) -> Row:
    if path.stat().st_size > _LARGEST_FILE:
        return _row(number, "FILE_SIZE")
    try:
        header = read_header(path.read_bytes())
    except MemoryError:
        return _row(number, "PARSER_CRASH")
    if isinstance(header, str):
        return _row(number, header)
    patient, issuer = normalise(header.patient_id), normalise(header.issuer) or None
    place = (header.study_uid or "", header.series_uid or "")
    return number, None, header.sha256, patient, issuer, header.birth_date, *place, header.to_json()


def _row(number: int, code: str) -> Row:
    return number, code, None, "", None, None, "", "", None
