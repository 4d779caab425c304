"""Where the files of an export are: a folder, or an archive that is unpacked first.

`require_source` refuses what cannot be an export, `open_source` returns the folder to read, and
`unpack_all` serves archives that lie inside it. Archives are read in child processes with limits.
Names inside an archive are judged and never used: its members get generated names.
"""

import hashlib
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from os import scandir
from pathlib import Path
from typing import IO

from rarescan.errors import InputError, disk_full
from rarescan.files import read_json, sha256_file, write_json
from rarescan.imaging.parse import limit_this_process
from rarescan.processes import run_parallel

STATE = "pull.sqlite"
"""Lies in a folder that `rarescan pull` fills."""
HEAD_BYTES = 0x8006
"""How much of a file `looks_packed` needs to see."""

_ZIP, _ISO = (b"PK\3\4", b"PK\5\6"), b"CD001"
_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh")
_OTHER = (b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\7")
_MOST_MEMBERS = 2_000_000
_FREE_BYTES, _LARGEST_RATIO = 64 << 20, 20
_MEMBERS_A_FOLDER = 1000
_CHILD_MEMORY_MIB, _CHILD_CPU_SECONDS = 2048, 4 * 3600
_ENCRYPTED_FLAGS = 0x2041
_LONGEST_PART_BYTES = 255

_UNPACK_IT = "If it is sound, unpack it yourself and name the folder."
_WHY_REFUSED = {
    "ARCHIVE_NAME": "The archive holds links, devices or file names that lead outside it, are too "
    "long, or differ in case only.",
    "ARCHIVE_BOMB": f"The archive grows beyond {_LARGEST_RATIO} times its size when unpacked.",
    "ARCHIVE_ENCRYPTED": "The archive is encrypted, or the image of a medium.",
    "ARCHIVE_INSIDE": "The archive is damaged, or packed in a way that is not known here.",
    "PARSER_CRASH": "The archive made the reader crash or run out of its limits.",
}


class _RefusedError(Exception):
    """An archive must not be unpacked; the only argument is the reason code."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An archive, where its members go, and how many bytes they may take."""

    archive: Path
    folder: Path
    limit: int


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """What became of an archive: a reason code where it was refused."""

    code: str | None = None
    left_bytes: int = 0
    """How much more the archives inside it may take."""


def source_id(export: Path) -> str:
    """Return an id of what an export holds: names and sizes of a folder, bytes of an archive."""
    if not export.is_dir():
        return sha256_file(export)[:16]
    listing = hashlib.sha256()
    for name in regular_files(export):
        listing.update(f"{name}\0{(export / name).stat().st_size}\n".encode(errors="replace"))
    return listing.hexdigest()[:16]


def require_source(export: Path) -> None:
    """Raise where there is nothing to read.

    Raises
    ------
    InputError
        The export does not exist, is an empty folder, is neither folder nor archive, or is a
        folder of `rarescan pull` instead of the export inside it.
    """
    if export.is_dir():
        if (export / STATE).exists():
            raise InputError(
                f"{export} was filled by `rarescan pull`; series that came incomplete lie in it.",
                remedy=f"Name {export / 'export'}, which holds the complete ones.",
            )
        if next(regular_files(export), None) is None:
            raise InputError(
                f"The folder {export} is empty.", remedy="Name the folder with the PACS export."
            )
    elif not export.is_file():
        raise InputError(
            f"There is nothing at {export}.", remedy="Name the folder or archive of the export."
        )
    elif not looks_packed(read_head(export)):
        raise InputError(
            f"{export} is neither a folder nor a zip or tar archive.",
            remedy="Name the folder with the export; a single file goes into a folder of its own.",
        )


def regular_files(folder: Path, below: str = "") -> Iterator[str]:
    """Yield the relative names of regular files, sorted; links to folders are not followed."""
    with scandir(folder / below) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for entry in entries:
        if entry.is_file():
            yield f"{below}{entry.name}"
    del entries
    for name in folders:
        yield from regular_files(folder, f"{below}{name}/")


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, enough for `looks_packed`."""
    with path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def looks_packed(head: bytes) -> bool:
    """Return whether a file begins like an archive, compressed file or image of a medium."""
    packed = head.startswith((*_ZIP, *_COMPRESSED, *_OTHER))
    return packed or head[257:262] == b"ustar" or head[0x8001:0x8006] == _ISO


def open_source(export: Path, private: Path) -> Path:
    """Return the folder to read: the export itself, or what its archive holds, unpacked.

    Raises
    ------
    InputError
        The archive is hostile, encrypted, damaged or of a kind that is not known.
    """
    if export.is_dir():
        return export
    packed = Packed(
        archive=export, folder=private / "unpacked" / "export", limit=size_limit(export)
    )
    (done,) = unpack_all([packed], workers=1)
    if done.code is not None:
        raise InputError(_WHY_REFUSED[done.code], remedy=_UNPACK_IT)
    return packed.folder


def size_limit(archive: Path) -> int:
    """Return how many bytes may come out of an archive that nothing else contains."""
    return max(_FREE_BYTES, _LARGEST_RATIO * archive.stat().st_size)


def left_bytes(folder: Path) -> int:
    """Return how many bytes may come out of the archives in a folder of unpacked members."""
    return Unpacked(**read_json(_marker(folder))).left_bytes


def _marker(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def unpack_all(archives: Sequence[Packed], *, workers: int | None = None) -> list[Unpacked]:
    """Unpack archives in child processes; what an earlier run unpacked is kept.

    Parameters
    ----------
    archives : sequence of Packed
        Their folders get members named `0000/000`, `0000/001`, ... in the archive's order.
    workers : int, optional
        Number of processes.

    Returns
    -------
    list of Unpacked
        One an archive. Codes: `ARCHIVE_NAME`, `ARCHIVE_BOMB`, `ARCHIVE_ENCRYPTED`,
        `ARCHIVE_INSIDE` (damaged, or of a kind that is not known), `PARSER_CRASH`.
    """
    return run_parallel(
        _unpack, archives, what="unpack archives", workers=workers, on_death=_crashed
    )


def _crashed(packed: Packed) -> Unpacked:
    shutil.rmtree(packed.folder, ignore_errors=True)
    return Unpacked(code="PARSER_CRASH")


def _unpack(packed: Packed) -> Unpacked:
    """Unpack one archive, in a child process."""
    if _marker(packed.folder).exists():
        return Unpacked(**read_json(_marker(packed.folder)))
    limit_this_process(_CHILD_MEMORY_MIB, cpu_seconds=_CHILD_CPU_SECONDS, writes=True)
    try:
        done = Unpacked(left_bytes=packed.limit - _write_members(packed))
    except _RefusedError as refused:
        done = Unpacked(code=str(refused))
    except MemoryError:
        done = Unpacked(code="ARCHIVE_BOMB")
    except Exception as error:
        # Broken archives make the readers raise almost anything.
        if isinstance(error, OSError) and disk_full(error) is not None:
            raise
        done = Unpacked(code="ARCHIVE_INSIDE")
    if done.code is not None:
        shutil.rmtree(packed.folder, ignore_errors=True)
    write_json(_marker(packed.folder), asdict(done))
    return done


def _write_members(packed: Packed) -> int:
    """Write all members; return how many bytes they have."""
    packed.folder.mkdir(parents=True, exist_ok=True)
    n_bytes = 0
    for number, (stream, size) in enumerate(_members(packed.archive)):
        path = packed.folder / f"{number // _MEMBERS_A_FOLDER:04d}/{number % _MEMBERS_A_FOLDER:03d}"
        if path.exists() and path.stat().st_size == size:
            n_bytes += size
        else:
            path.parent.mkdir(exist_ok=True)
            n_bytes += _copy(stream, path, packed.limit - n_bytes)
        if n_bytes > packed.limit:
            raise _RefusedError("ARCHIVE_BOMB")
    return n_bytes


def _copy(stream: IO[bytes], path: Path, limit: int) -> int:
    """Copy at most a little more than `limit` bytes; return how many it were."""
    n_bytes = 0
    with path.open("wb") as out:
        while n_bytes <= limit and (block := stream.read(1 << 20)):
            n_bytes += out.write(block)
    return n_bytes


def _members(archive: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Yield each regular member with the size that the archive claims."""
    head = read_head(archive)
    if head.startswith(_ZIP):
        return _zip_members(archive)
    if head.startswith(_COMPRESSED) or head[257:262] == b"ustar":
        return _tar_members(archive)
    raise _RefusedError("ARCHIVE_ENCRYPTED" if head[0x8001:0x8006] == _ISO else "ARCHIVE_INSIDE")


def _zip_members(archive: Path) -> Iterator[tuple[IO[bytes], int]]:
    with zipfile.ZipFile(archive) as opened:
        found = opened.infolist()
        if any(member.flag_bits & _ENCRYPTED_FLAGS for member in found):
            raise _RefusedError("ARCHIVE_ENCRYPTED")
        names = _Names()
        for member in found:
            kind = stat.S_IFMT(member.external_attr >> 16)
            # The other name ends at the first NUL.
            name = member.orig_filename
            names.check(name, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR), file=name[-1:] != "/")
        _refuse_overlaps(found)
        for member in found:
            if not member.is_dir():
                with opened.open(member) as stream:
                    yield stream, member.file_size


def _refuse_overlaps(members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes: a few kilobytes could stand for any amount."""
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        if member.header_offset < end:
            raise _RefusedError("ARCHIVE_BOMB")
        end = member.header_offset + 30 + member.compress_size


def _tar_members(archive: Path) -> Iterator[tuple[IO[bytes], int]]:
    names = _Names()
    with tarfile.open(archive, "r|*") as opened:
        while (member := opened.next()) is not None:
            names.check(member.name, plain=member.isreg() or member.isdir(), file=member.isreg())
            stream = opened.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield stream, member.size
            # The reader remembers every member; a large archive would fill the memory.
            opened.members = []  # type: ignore[attr-defined]


class _Names:
    """The names of an archive's members, as far as they must be safe."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._count = 0

    def check(self, name: str, *, plain: bool, file: bool) -> None:
        """Refuse what is no plain file or folder, leads outside, or clashes with another."""
        self._count += 1
        if self._count > _MOST_MEMBERS:
            raise _RefusedError("ARCHIVE_BOMB")
        parts = name.replace("\\", "/").split("/")
        longest = max(len(part.encode(errors="surrogateescape")) for part in parts)
        outside = not parts[0] or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name
        if not plain or outside or longest > _LONGEST_PART_BYTES:
            raise _RefusedError("ARCHIVE_NAME")
        if file:
            folded = "/".join(parts).casefold().encode(errors="surrogateescape")
            digest = hashlib.blake2b(folded, digest_size=16).digest()
            if digest in self._seen:
                raise _RefusedError("ARCHIVE_NAME")
            self._seen.add(digest)
