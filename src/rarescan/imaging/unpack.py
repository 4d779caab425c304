"""Where the files of an export are: a folder, or an archive that is unpacked first.

`require_source` refuses what cannot be an export, `open_source` returns the folder to read. Names
inside an archive are never used: its members get generated names.
"""

import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rarescan.errors import InputError
from rarescan.files import content_id, sha256_file

_MOST_MEMBERS = 2_000_000
_FREE_BYTES, _LARGEST_RATIO = 64 << 20, 20


def source_id(export: Path) -> str:
    """Return an id of what an export holds: names and sizes of a folder, bytes of an archive."""
    if export.is_dir():
        return content_id(
            sorted((name, (export / name).stat().st_size) for name in regular_files(export))
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
        if next(regular_files(export), None) is None:
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


def regular_files(folder: Path) -> Iterator[str]:
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
