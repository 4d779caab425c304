import io
import json
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rarescan.errors import InputError
from rarescan.imaging.unpack import (
    Packed,
    open_source,
    regular_files,
    require_source,
    source_id,
    unpack_all,
)

PLENTY = 64 << 20


def unpack(*archives: Path, limit: int = PLENTY) -> list[str | None]:
    """Unpack `x` into `x.out`, all in one child process."""
    packed = [Packed(archive=a, folder=a.with_suffix(".out"), limit=limit) for a in archives]
    return [done.code for done in unpack_all(packed, workers=1)]


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in regular_files(folder)]


def write_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members:
            out.writestr(name, data)
    return path


def write_tar(path: Path, mode: str, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, mode) as out:  # type: ignore[call-overload]
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


GOOD = (("a/1", b"one"), ("b/2", b"two" * 1000), ("c", b""))


def test_every_kind_of_archive_gives_its_members_in_order_under_our_names(tmp_path: Path) -> None:
    modes = ["w", "w:gz", "w:xz", "w:bz2"]
    archives = [write_zip(tmp_path / "zip", *GOOD)]
    archives += [write_tar(tmp_path / f"t{k}", mode, *GOOD) for k, mode in enumerate(modes)]
    assert unpack(*archives) == [None] * 5
    for archive in archives:
        folder = archive.with_suffix(".out")
        assert [*regular_files(folder)] == ["0000/000", "0000/001", "0000/002"]
        assert contents(folder) == [data for _, data in GOOD]


def test_names_that_lead_outside_or_are_too_long_are_refused(tmp_path: Path) -> None:
    names = ["../x", "a/../../x", "/etc/x", "\\x", "..\\x", "C:\\x", "c:x", "a/" + "n" * 256]
    archives = []
    for k, name in enumerate(names):
        members = (("good", b"1"), (name, b"2"))
        archives.append(write_zip(tmp_path / f"z{k}", *members))
        archives.append(write_tar(tmp_path / f"t{k}", "w:gz", *members))
    before = {*tmp_path.iterdir()}
    assert unpack(*archives) == ["ARCHIVE_NAME"] * 16
    assert {p.suffix for p in {*tmp_path.iterdir()} - before} == {".json"}


def test_a_name_with_nul_or_one_that_differs_in_case_only_is_refused(tmp_path: Path) -> None:
    nul = write_zip(tmp_path / "x", ("ab_x", b"1"))
    nul.write_bytes(nul.read_bytes().replace(b"ab_x", b"ab\0x"))
    case = write_zip(tmp_path / "y", ("d/A", b"1"), ("D/a", b"2"))
    assert unpack(nul, case) == ["ARCHIVE_NAME"] * 2


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    linked = zipfile.ZipInfo("x")
    linked.external_attr = (stat.S_IFLNK | 0o777) << 16
    archives = [write_zip(tmp_path / "z", (linked, b"/etc/passwd"))]
    for kind in (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ):
        member = tarfile.TarInfo("x")
        member.type, member.linkname = kind, "/etc/passwd"
        path = tmp_path / f"t{kind.decode()}"
        archives.append(write_tar(path, "w", ("good", b"1"), (member, b"")))
    assert unpack(*archives) == ["ARCHIVE_NAME"] * 6


def test_a_bomb_ends_at_the_limit(tmp_path: Path) -> None:
    members = (("small", b"1"), ("zeros", bytes(3 << 20)))
    bombs = [write_zip(tmp_path / "x", *members), write_tar(tmp_path / "y", "w:xz", *members)]
    assert unpack(*bombs, limit=1 << 20) == ["ARCHIVE_BOMB"] * 2
    assert not [*tmp_path.glob("*.out")]


def test_members_that_share_bytes_are_a_bomb(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x", ("a", bytes(5000)), ("b", bytes(5000)))
    data = bytearray(archive.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 42, 0)
    archive.write_bytes(data)
    assert unpack(archive) == ["ARCHIVE_BOMB"]


def test_more_members_than_any_export_has_are_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarescan.imaging.unpack._MOST_MEMBERS", 2)
    monkeypatch.setattr("rarescan.imaging.unpack.run_parallel", inline)
    assert unpack(write_zip(tmp_path / "x", *GOOD)) == ["ARCHIVE_BOMB"]
    assert unpack(write_zip(tmp_path / "y", *GOOD[:2])) == [None]


def inline(function: Callable[[Packed], Any], items: list[Packed], **_: Any) -> list[Any]:
    return [function(item) for item in items]


def test_encrypted_archives_and_images_of_media_are_named_as_such(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x", ("a", b"secret"))
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    image = tmp_path / "y"
    image.write_bytes(bytes(0x8001) + b"CD001" + bytes(100))
    assert unpack(archive, image) == ["ARCHIVE_ENCRYPTED"] * 2


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    noise = bytes(range(256)) * 40 + json.dumps([*range(3000)]).encode()
    members = [(f"m{k}", noise[k:]) for k in range(20)]
    archives = [write_zip(tmp_path / "zip", *members)]
    modes = ["w", "w:gz", "w:xz", "w:bz2"]
    archives += [write_tar(tmp_path / f"t{k}", mode, *members) for k, mode in enumerate(modes)]
    cut = []
    for archive in archives:
        whole = archive.read_bytes()
        for keep in (0.3, 0.7):
            cut.append(tmp_path / f"{archive.name}{keep * 10:.0f}")
            cut[-1].write_bytes(whole[: int(len(whole) * keep)])
    assert unpack(*cut) == ["ARCHIVE_INSIDE"] * 10
    assert not [*tmp_path.glob("*.out")]


def test_whole_members_of_an_interrupted_run_are_kept(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x", *GOOD)
    (tmp_path / "x.out/0000").mkdir(parents=True)
    (tmp_path / "x.out/0000/000").write_bytes(b"ONE")
    (tmp_path / "x.out/0000/001").write_bytes(b"tw")
    assert unpack(archive) == [None]
    assert contents(tmp_path / "x.out") == [b"ONE", b"two" * 1000, b""]
    before = (tmp_path / "x.out/0000/001").stat().st_mtime_ns
    archive.write_bytes(b"is not read again")
    assert unpack(archive) == [None]
    assert (tmp_path / "x.out/0000/001").stat().st_mtime_ns == before


def test_a_reader_that_dies_costs_only_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(_function: object, items: list[Packed], **how: Callable[[Packed], object]) -> object:
        return [how["on_death"](item) for item in items]

    monkeypatch.setattr("rarescan.imaging.unpack.run_parallel", dying)
    assert unpack(write_zip(tmp_path / "x", *GOOD)) == ["PARSER_CRASH"]


def test_an_export_that_is_a_hostile_archive_is_refused_with_a_remedy(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", ("../x", b"1"))
    require_source(archive)
    with pytest.raises(InputError, match="lead outside") as caught:
        open_source(archive, tmp_path / "private")
    assert "unpack it yourself" in caught.value.remedy
    assert [*regular_files(tmp_path / "private/unpacked")] == ["export.json"]


def test_a_folder_that_pull_fills_is_no_export_and_the_remedy_names_the_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "pulled/export").mkdir(parents=True)
    (tmp_path / "pulled/pull.sqlite").touch()
    with pytest.raises(InputError) as caught:
        require_source(tmp_path / "pulled")
    assert f"Name {tmp_path / 'pulled/export'}," in caught.value.remedy


def test_the_id_of_a_folder_changes_with_names_and_sizes_only(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    (folder / "s").mkdir(parents=True)
    (folder / "s/b").write_bytes(b"12")
    (folder / "a").write_bytes(b"1")
    first = source_id(folder)
    (folder / "a").write_bytes(b"2")
    assert source_id(folder) == first
    (folder / "a").write_bytes(b"22")
    assert source_id(folder) != first
    (folder / "a").write_bytes(b"2")
    (folder / "s/b").rename(folder / "s/c")
    assert source_id(folder) != first


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e/a").touch()
    (tmp_path / "e/loop").symlink_to(tmp_path / "e")
    assert [*regular_files(tmp_path / "e")] == ["a"]
