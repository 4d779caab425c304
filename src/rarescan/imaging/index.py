"""What an export holds: every file read once, in limited child processes, into a small database.

`open_source` finds a folder's or an archive's files, `build_index` reads header and hashes from
one buffer each, `Index.persons` yields them grouped. The database lies in the step's working
folder, holds identities, and is removed with it; memory does not grow with the export.
"""

import os
import sqlite3
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO

from rarescan.errors import InputError
from rarescan.files import content_id, sha256_file
from rarescan.imaging.header import Header
from rarescan.imaging.identity import normalise
from rarescan.imaging.parse import limit_this_process, read_header
from rarescan.imaging.stacks import File
from rarescan.processes import run_parallel

_FILES_A_CHUNK = 200
_CHUNKS_A_BATCH = 64
_LARGEST_FILE = 256 << 20
_CHILD_MEMORY_MIB = 512
_MOST_MEMBERS = 2_000_000
_FREE_BYTES, _LARGEST_RATIO = 64 << 20, 20

Row = tuple[int, str | None, str | None, str, str | None, str | None, str, str, str | None]
"""number, code, sha256, patient, issuer, birth, study, series, header."""


def source_id(export: Path) -> str:
    """Return an id of what an export holds: names and sizes of a folder, bytes of an archive."""
    if export.is_dir():
        return content_id(
            sorted((name, (export / name).stat().st_size) for name in _regular_files(export))
        )
    return sha256_file(export)[:16]


def require_source(export: Path) -> None:
    """Raise where there is nothing to read.

    Raises
    ------
    InputError
        The export does not exist, is an empty folder, or is neither folder nor archive.
    """
    if export.is_dir():
        if next(_regular_files(export), None) is None:
            raise InputError(
                f"The folder {export} is empty.", remedy="Name the folder with the PACS export."
            )
    elif not export.is_file():
        raise InputError(
            f"There is nothing at {export}.", remedy="Name the folder or archive of the export."
        )
    elif not (zipfile.is_zipfile(export) or tarfile.is_tarfile(export)):
        raise InputError(
            f"{export} is neither a folder nor a zip or tar archive.",
            remedy="Name the folder with the export; a single file goes into a folder of its own.",
        )


def _regular_files(folder: Path) -> Iterator[str]:
    """Yield the relative names of regular files; links to folders are not followed."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where) / name
            if path.is_file():
                yield str(path.relative_to(folder))


def open_source(export: Path, private: Path) -> Path:
    """Return the folder to read: the export itself, or what its archive holds, unpacked."""
    if export.is_dir():
        return export
    unpacked, complete = private / "unpacked", private / "unpacked.complete"
    if not complete.exists():
        unpacked.mkdir(parents=True, exist_ok=True)
        limit = max(_FREE_BYTES, _LARGEST_RATIO * export.stat().st_size)
        members = _zip_members(export) if zipfile.is_zipfile(export) else _tar_members(export)
        for number, stream in enumerate(members):
            with stream:
                limit -= _copy(stream, unpacked / f"{number:07d}", limit)
            if limit <= 0 or number >= _MOST_MEMBERS:
                raise InputError(
                    f"{export.name} grows beyond {_LARGEST_RATIO} times its size when unpacked.",
                    remedy="If it is sound, unpack it yourself and name the folder.",
                )
        complete.touch()
    return unpacked


def _zip_members(export: Path) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(export) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                raise InputError(
                    f"{export.name} is encrypted.", remedy="Unpack it and name the folder."
                )
            if not member.is_dir():
                yield archive.open(member)


def _tar_members(export: Path) -> Iterator[IO[bytes]]:
    with tarfile.open(export, "r|*") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield stream


def _copy(stream: IO[bytes], path: Path, limit: int) -> int:
    """Copy at most a little more than `limit` bytes; return how many it were."""
    n_bytes = 0
    with path.open("wb") as out:
        while n_bytes <= limit and (block := stream.read(1 << 20)):
            n_bytes += out.write(block)
    return n_bytes


@dataclass(frozen=True, kw_only=True)
class Series:
    """The readable files of one series of one person, exact duplicates removed."""

    files: tuple[File, ...]
    facts: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Index:
    """The database of an export."""

    path: Path
    root: Path
    """Folder that the stored paths are relative to."""

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS files(number INTEGER PRIMARY KEY, path TEXT, code TEXT, "
            "sha TEXT, patient TEXT, issuer TEXT, birth TEXT, study TEXT, series TEXT, header TEXT)"
        )
        return connection

    def counts(self) -> dict[str, int]:
        """Return how many files each reason code kept from being part of a stack."""
        query = "SELECT code, COUNT(*) FROM files WHERE code IS NOT NULL GROUP BY code"
        with closing(self._connect()) as database:
            return dict(database.execute(query).fetchall())

    def n_files(self) -> int:
        """Return how many files the export holds."""
        with closing(self._connect()) as database:
            return int(database.execute("SELECT COUNT(*) FROM files").fetchone()[0])

    def read(self, numbers: Sequence[int]) -> list[tuple[File, Path]]:
        """Return files by number, with their paths."""
        with closing(self._connect()) as database:
            rows = [
                database.execute("SELECT header, path FROM files WHERE number=?", (n,)).fetchone()
                for n in numbers
            ]
        return [
            (File(number=n, header=Header.from_json(header)), self.root / path)
            for n, (header, path) in zip(numbers, rows, strict=True)
        ]

    def persons(self) -> Iterator[list[Series]]:
        """Yield all series of one person after another."""
        with closing(self._connect()) as database:
            database.execute("CREATE INDEX IF NOT EXISTS by_patient ON files(patient)")
            mixed = {kind: _with_several_patients(database, kind) for kind in ("study", "series")}
            two_births = _with_two_birth_dates(database)
            rows = database.execute(
                "SELECT patient, issuer, study, series, number, header FROM files "
                "WHERE code IS NULL ORDER BY patient, issuer, study, series, number"
            )
            for (patient, _), of_person in groupby(rows, key=itemgetter(0, 1)):
                found = []
                for (study, series), group in groupby(of_person, key=itemgetter(2, 3)):
                    files = (File(number=r[4], header=Header.from_json(r[5])) for r in group)
                    facts = {"NO_IDENTITY"} if patient in two_births else set()
                    if study in mixed["study"] or series in mixed["series"]:
                        facts.add("MIXED_PATIENTS")
                    found.append(Series(files=tuple(files), facts=frozenset(facts)))
                yield found


def _with_several_patients(database: sqlite3.Connection, kind: str) -> set[str]:
    # An absent issuer or birth date is NULL, which COUNT(DISTINCT) leaves out.
    rows = database.execute(
        f"SELECT {kind} FROM files WHERE code IS NULL AND {kind} != '' GROUP BY {kind} "
        "HAVING MAX(COUNT(DISTINCT patient), COUNT(DISTINCT issuer), COUNT(DISTINCT birth)) > 1"
    )
    return {row[0] for row in rows}


def _with_two_birth_dates(database: sqlite3.Connection) -> set[str]:
    rows = database.execute(
        "SELECT patient FROM files WHERE code IS NULL GROUP BY patient, issuer "
        "HAVING COUNT(DISTINCT birth) > 1"
    )
    return {row[0] for row in rows}


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
    with closing(index._connect()) as database:
        known = {row[0] for row in database.execute("SELECT number FROM files")}
        listed = ((k, n) for k, n in enumerate(_regular_files(root)) if k not in known)
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
