import io
import sqlite3
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from rarescan.imaging.index import Index, build_index

Maker = Callable[..., Any]


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, make_dataset: Maker, make_head: Maker,
    save_dataset: Maker,
) -> list[bytes]:  # fmt: skip
    """Twelve small files of one series."""
    path = tmp_path_factory.mktemp("files") / "x"
    stored = []
    for k in range(12):
        save_dataset(make_dataset(make_head(0, 24), k, "1"), path)
        stored.append(path.read_bytes())
    return stored


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the child processes where the test is not about them."""

    def inline(function: Callable[[Any], Any], items: list[Any], **_: Any) -> list[Any]:
        return [function(item) for item in items]

    for module in ("index", "unpack"):
        monkeypatch.setattr(f"rarescan.imaging.{module}.run_parallel", inline)


def zipped(*members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:
        for k, data in enumerate(members):
            out.writestr(f"m{k}", data)
    return stream.getvalue()


def tarred(*members: bytes, mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as out:  # type: ignore[call-overload]
        for k, data in enumerate(members):
            info = tarfile.TarInfo(f"m{k}")
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def write(folder: Path, *contents: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(contents):
        (folder / f"f{k:03d}").write_bytes(data)
    return folder


def hashes(index: Index) -> set[str]:
    with closing(index.connect()) as database:
        return {row[0] for row in database.execute("SELECT sha FROM files WHERE code IS NULL")}


def test_archives_inside_a_folder_stand_for_their_members(
    tmp_path: Path, files: list[bytes]
) -> None:
    plain = build_index(write(tmp_path / "plain", *files), tmp_path / "p", workers=1)
    export = write(
        tmp_path / "packed",
        files[0],
        zipped(*files[1:4], zipped(*files[4:6]), b"a note"),
        tarred(files[6], tarred(files[7], mode="w:xz")),
        tarred(*files[8:], mode="w"),
    )
    packed = build_index(export, tmp_path / "q", workers=2)
    assert hashes(packed) == hashes(plain)
    assert (plain.n_files(), packed.n_files()) == (12, 13)
    assert packed.counts() == {"NOT_DICOM": 1}
    with closing(packed.connect()) as database:
        numbers = [r[0] for r in database.execute("SELECT number FROM files WHERE code IS NULL")]
    for file, path in packed.read(numbers):
        assert pydicom.dcmread(path).InstanceNumber == file.header.instance_number


@pytest.mark.usefixtures("in_this_process")
def test_an_archive_three_deep_stays_packed_and_is_counted(
    tmp_path: Path, files: list[bytes]
) -> None:
    export = write(tmp_path / "e", files[0], zipped(zipped(files[1], zipped(files[2]))))
    index = build_index(export, tmp_path / "p", workers=1)
    assert index.counts() == {"ARCHIVE_INSIDE": 1}
    assert index.n_files() == 3
    # An export that is an archive itself is one level.
    root = write(tmp_path / "p2/unpacked/export", files[0], zipped(zipped(files[1])))
    (tmp_path / "p2/unpacked/export.json").write_text('{"code": null, "left_bytes": 99999}')
    index = build_index(root, tmp_path / "p2", workers=1)
    assert index.counts() == {"ARCHIVE_INSIDE": 1}
    assert index.n_files() == 2


def test_hostile_archives_inside_a_folder_are_set_apart_one_by_one(
    tmp_path: Path, files: list[bytes]
) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        out.writestr("../x", files[1])
    locked = bytearray(zipped(files[1]))
    locked[locked.index(b"PK\1\2") + 8] |= 1
    export = write(
        tmp_path / "e", files[0], stream.getvalue(), bytes(locked), zipped(bytes(80 << 20)),
        zipped(files[2])[:300], b"Rar!\x1a\7" + bytes(99),
    )  # fmt: skip
    index = build_index(export, tmp_path / "p", workers=1)
    assert index.counts() == {
        "ARCHIVE_NAME": 1, "ARCHIVE_ENCRYPTED": 1, "ARCHIVE_BOMB": 1, "ARCHIVE_INSIDE": 2,
    }  # fmt: skip
    assert index.n_files() == 6
    assert len(hashes(index)) == 1


@pytest.mark.usefixtures("in_this_process")
def test_archives_in_an_archive_share_what_it_may_grow(tmp_path: Path, files: list[bytes]) -> None:
    inner = [zipped(bytes([k]) * (30 << 20)) for k in range(4)]
    index = build_index(write(tmp_path / "e", files[0], zipped(*inner)), tmp_path / "p", workers=1)
    # 64 MiB in all for four times 30 MiB: none gets more than its share.
    assert index.counts() == {"ARCHIVE_BOMB": 4}
    unpacked = sum(p.stat().st_size for p in (tmp_path / "p/unpacked").rglob("*"))
    assert unpacked < 64 << 20


@pytest.mark.usefixtures("in_this_process")
def test_an_index_with_archives_goes_on_where_it_stopped(
    tmp_path: Path, files: list[bytes]
) -> None:
    export = write(tmp_path / "e", *files[:5], zipped(*files[5:9], zipped(*files[9:])))
    whole = build_index(export, tmp_path / "whole", workers=1)
    with closing(whole.connect()) as database:
        rows = database.execute("SELECT * FROM files ORDER BY number").fetchall()
    for kept in (0, 3, 6, 8, 11):
        private = tmp_path / f"p{kept}"
        index = build_index(export, private, workers=1)
        with sqlite3.connect(index.path) as database:
            database.execute("DELETE FROM files WHERE number >= ?", (kept,))
            database.execute("UPDATE files SET code='ARCHIVE_INSIDE' WHERE code='UNPACKED'")
        database.close()
        again = build_index(export, private, workers=1)
        with closing(again.connect()) as database:
            assert database.execute("SELECT * FROM files ORDER BY number").fetchall() == rows


@pytest.mark.usefixtures("in_this_process")
def test_a_medium_is_read_by_its_tree_and_its_index_is_never_followed(
    tmp_path: Path, files: list[bytes]
) -> None:
    medium = write(tmp_path / "cd/DICOM", *files[:3])
    (tmp_path / "SECRET.DCM").write_bytes(files[5])
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    with warnings.catch_warnings(action="ignore"):
        record.add_new(0x00041500, "CS", ["..", "..", "SECRET.DCM"])
    directory = Dataset()
    directory.FileSetID, directory.DirectoryRecordSequence = "CD", [record]
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with warnings.catch_warnings(action="ignore"):
        directory.save_as(medium.parent / "renamed.bin", enforce_file_format=True)
    index = build_index(medium.parent, tmp_path / "p", workers=1)
    assert index.counts() == {"DICOMDIR": 1}
    with closing(index.connect()) as database:
        found = {r[0] for r in database.execute("SELECT path FROM files WHERE code IS NULL")}
    assert found == {f"DICOM/f{k:03d}" for k in range(3)}
