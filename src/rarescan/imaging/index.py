"""What an export holds: every file read once, in limited child processes, into a small database.

`build_index` is the way in: header and hashes come from one buffer each. Archives inside the
export are unpacked and their members read as well. The database lies in the step's working
folder, holds identities, and is removed with it; memory does not grow with the export.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rarescan.imaging.header import Header
from rarescan.imaging.identity import normalise
from rarescan.imaging.parse import limit_this_process, read_header
from rarescan.imaging.stacks import File
from rarescan.imaging.unpack import (
    HEAD_BYTES,
    Packed,
    left_bytes,
    looks_packed,
    read_head,
    regular_files,
    size_limit,
    unpack_all,
)
from rarescan.processes import run_parallel

_FILES_A_CHUNK = 200
_CHUNKS_A_BATCH = 64
_LARGEST_FILE = 256 << 20
_CHILD_MEMORY_MIB = 512
_ARCHIVES_DEEP = 2

_MEDIUM, _META_BYTES = b"1.2.840.10008.1.3.10", 1024
"""SOP class of the index of a medium, and where it stands: the file may have any name."""
_PACKED, _UNPACKED = "ARCHIVE_INSIDE", "UNPACKED"
"""Code of an archive that was not unpacked, and of one whose members stand for it."""

Row = tuple[int, str | None, str | None, str, str | None, str | None, str, str, str | None]
"""number, code, sha256, patient, issuer, birth, study, series, header."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The database of an export."""

    path: Path
    root: Path
    """Folder that the stored paths of depth 0 are relative to; others lie in archives."""

    def connect(self) -> sqlite3.Connection:
        """Open the database."""
        connection = sqlite3.connect(self.path)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS files(number INTEGER PRIMARY KEY, depth INTEGER, "
            "path TEXT, code TEXT, sha TEXT, patient TEXT, issuer TEXT, birth TEXT, study TEXT, "
            "series TEXT, header TEXT)"
        )
        return connection

    def counts(self) -> dict[str, int]:
        """Return how many files each reason code kept from being part of a stack."""
        query = (
            "SELECT code, COUNT(*) FROM files WHERE code IS NOT NULL AND code != ? GROUP BY code"
        )
        with closing(self.connect()) as database:
            return dict(database.execute(query, (_UNPACKED,)).fetchall())

    def n_files(self) -> int:
        """Return how many files the export holds; members count instead of their archive."""
        query = "SELECT COUNT(*) FROM files WHERE code IS NOT ?"
        with closing(self.connect()) as database:
            return int(database.execute(query, (_UNPACKED,)).fetchone()[0])

    def read(self, numbers: Sequence[int]) -> list[tuple[File, Path]]:
        """Return files by number, with their paths."""
        query = "SELECT header, depth, path FROM files WHERE number=?"
        with closing(self.connect()) as database:
            rows = [database.execute(query, (n,)).fetchone() for n in numbers]
        return [
            (File(number=n, header=Header.from_json(header)), self.place(depth) / path)
            for n, (header, depth, path) in zip(numbers, rows, strict=True)
        ]

    def place(self, depth: int) -> Path:
        """Return the folder that paths are relative to, of files so many archives deep."""
        return self.root if depth == 0 else self.path.parent


def build_index(root: Path, private: Path, *, workers: int | None = None) -> Index:
    """Read every file once and return the index; what an earlier run indexed is kept.

    Parameters
    ----------
    root : Path
        Folder with the files; a folder inside `private` holds what an archive was.
    private : Path
        Folder for the database, which holds identities, and for what archives hold.
    workers : int, optional
        Number of processes; hostile bytes are parsed in children with limits only.
    """
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    index = Index(path=private / "index.sqlite", root=root)
    deepest = _ARCHIVES_DEEP - root.is_relative_to(private)
    with closing(index.connect()) as database:
        _add(index, database, 0, regular_files(root), workers)
        for depth in range(1, deepest + 1):
            _add(index, database, depth, _inside(index, database, depth, workers), workers)
        database.execute(
            "UPDATE files SET code='DUP_EXACT' WHERE code IS NULL AND number NOT IN "
            "(SELECT MIN(number) FROM files WHERE code IS NULL GROUP BY sha)"
        )
        database.commit()
    return index


def _add(
    index: Index,
    database: sqlite3.Connection,
    depth: int,
    names: Iterator[str],
    workers: int | None,
) -> None:
    """Read the files that are not in the database yet; names come in the same order each time."""
    done = database.execute("SELECT COUNT(*) FROM files WHERE depth=?", (depth,)).fetchone()[0]
    first = database.execute("SELECT COUNT(*) FROM files WHERE depth<?", (depth,)).fetchone()[0]
    listed = islice(enumerate(names, start=first), done, None)
    root = index.place(depth)
    while batch := list(islice(listed, _FILES_A_CHUNK * _CHUNKS_A_BATCH)):
        paths = dict(batch)
        rows = _read_files(root, batch, workers)
        database.executemany(
            "INSERT INTO files VALUES(?,?,?,?,?,?,?,?,?,?,?)",
            [(row[0], depth, paths[row[0]], *row[1:]) for row in rows],
        )
        database.commit()


def _inside(
    index: Index, database: sqlite3.Connection, depth: int, workers: int | None
) -> Iterator[str]:
    """Unpack the archives found one depth above; yield the names of what they hold."""
    found = database.execute(
        "SELECT number, path FROM files WHERE depth=? AND code IN (?, ?) ORDER BY number",
        (depth - 1, _PACKED, _UNPACKED),
    ).fetchall()
    archives = _with_limits(index, depth - 1, found)
    outcomes = unpack_all(archives, workers=workers)
    for (number, _), done in zip(found, outcomes, strict=True):
        code = done.code or _UNPACKED
        database.execute("UPDATE files SET code=? WHERE number=?", (code, number))
    database.commit()
    for packed, done in zip(archives, outcomes, strict=True):
        below = packed.folder.relative_to(index.path.parent)
        names = regular_files(packed.folder) if done.code is None else ()
        yield from (f"{below}/{name}" for name in names)


def _with_limits(index: Index, depth: int, found: Sequence[tuple[int, str]]) -> list[Packed]:
    """Say where each archive goes; those in one archive share what that may still grow."""
    unpacked = index.path.parent / "unpacked"
    paths = [index.place(depth) / name for _, name in found]
    sizes = [path.stat().st_size for path in paths]
    within = [
        unpacked / path.relative_to(unpacked).parts[0] if path.is_relative_to(unpacked) else None
        for path in paths
    ]
    count = Counter(within)
    total: Counter[Path | None] = Counter()
    for folder, size in zip(within, sizes, strict=True):
        total[folder] += size
    archives = []
    for (number, _), path, size, folder in zip(found, paths, sizes, within, strict=True):
        limit = size_limit(path)
        if folder is not None:
            # Half by size, half by head: a small text may shrink more than images do.
            share = (size / max(total[folder], 1) + 1 / count[folder]) / 2
            limit = int(share * left_bytes(folder))
        archives.append(Packed(archive=path, folder=unpacked / f"{number:08d}", limit=limit))
    return archives


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
        return _row(number, _PACKED if looks_packed(read_head(path)) else "FILE_SIZE")
    try:
        data = path.read_bytes()
        header = read_header(data)
    except MemoryError:
        return _row(number, "PARSER_CRASH")
    if isinstance(header, str):
        if header in ("NOT_DICOM", _PACKED) and looks_packed(data[:HEAD_BYTES]):
            header = _PACKED
        elif header == "TRUNC_HEADER" and _MEDIUM in data[:_META_BYTES]:
            header = "DICOMDIR"
        return _row(number, header)
    patient, issuer = normalise(header.patient_id), normalise(header.issuer) or None
    place = (header.study_uid or "", header.series_uid or "")
    return number, None, header.sha256, patient, issuer, header.birth_date, *place, header.to_json()


def _row(number: int, code: str) -> Row:
    return number, code, None, "", None, None, "", "", None
