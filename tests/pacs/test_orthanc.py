"""Pull from a real Orthanc: run by `make pacs`, skipped where there is none."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from synthetic_series import N, config, make_folder

from rarescan.errors import SettingError, UnreachableError
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.spec import IngestConfig
from rarescan.pacs.pull import pull_series
from rarescan.pacs.push import push_batch
from rarescan.pacs.spec import PullConfig

pytestmark = pytest.mark.pacs

WAYS = ["web", "get", "move"]


@pytest.fixture
def settings(orthanc: Any, export: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return the maker of settings for one way to pull, by default of all labelled persons."""
    monkeypatch.setenv("RARESCAN_PULL_CREDENTIALS", orthanc.credentials)
    monkeypatch.setattr("rarescan.pacs.pull._WAITS_SECONDS", ())

    def make(way: str, **values: Any) -> PullConfig:
        web = way == "web"
        address = {
            "address": orthanc.web if web else orthanc.dicom,
            "retrieve": "get" if web else way,
            "receive_port": 11113,
            "pause_seconds": 0.0,
            "persons": str(export.parent / "labels.csv"),
        }
        return PullConfig(**{**address, **values})

    return make


def received(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert re.fullmatch(r"\d{6}/\d{6}\.dcm", str(path.relative_to(folder)))
        uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
        found[str(uid)] = path.read_bytes()
    return found


def dataset_bytes(data: bytes) -> bytes:
    """Return what follows the file meta group, which a DIMSE peer writes anew."""
    return data[144 + int.from_bytes(data[140:144], "little") :]


@pytest.mark.parametrize("way", WAYS)
def test_everything_that_the_archive_holds_arrives_byte_by_byte(
    way: str, settings: Any, held: dict[str, bytes], tmp_path: Path
) -> None:
    pulled = pull_series(tmp_path / "pulled", settings(way))
    found = received(pulled.export)
    assert (pulled.n_files, pulled.n_incomplete) == (len(held), 0)
    assert found.keys() == held.keys()
    same = (lambda data: data) if way == "web" else dataset_bytes
    assert [uid for uid in held if same(found[uid]) != same(held[uid])] == []
    assert (tmp_path / "pulled").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("way", WAYS)
def test_the_cohort_of_what_was_pulled_is_that_of_the_folder(
    way: str, settings: Any, export: Path, tmp_path: Path
) -> None:
    key = export.parent / "pseudonym.key"
    config = IngestConfig(labels=str(export.parent / "labels.csv"), key_file=str(key))
    straight = ingest_export(export, tmp_path / "straight", config, workers=1)
    pulled = pull_series(tmp_path / "pulled", settings(way)).export
    cohort = ingest_export(pulled, tmp_path / "cohort", config, workers=1)
    mine, theirs = contents(cohort), contents(straight)
    for tables in (mine, theirs):
        tables.pop("recipe.json")
        if way != "web":
            # The name of a stack comes from its files' bytes, and DIMSE writes their meta group.
            tables.pop("rarescan/events.parquet")
            tables.update({k: re.sub(rb"ST[A-Z2-7]{13}", b"ST", v) for k, v in tables.items()})
    assert mine == theirs
    assert len([name for name in mine if name.endswith(".nii.gz")]) == 2


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("way", ["web", "get"])
def test_days_and_descriptions_choose_the_series(
    way: str, settings: Any, held: dict[str, bytes], tmp_path: Path
) -> None:
    headers = [pydicom.dcmread(_stream(data), stop_before_pixels=True) for data in held.values()]
    day = str(headers[0].StudyDate)
    wanted = {
        str(h.SOPInstanceUID)
        for h in headers
        if h.StudyDate == day and "localizer" in h.SeriesDescription
    }
    date = f"{day[:4]}-{day[4:6]}-{day[6:]}"
    config = settings(way, persons="", from_date=date, to_date=date, description="LOCAL*")
    assert received(pull_series(tmp_path / "pulled", config).export).keys() == wanted


def _stream(data: bytes) -> Any:
    return pydicom.filebase.DicomBytesIO(data)


@pytest.mark.parametrize("way", WAYS)
def test_a_repeated_pull_fetches_only_what_is_missing(
    way: str, settings: Any, tmp_path: Path
) -> None:
    first = pull_series(tmp_path / "pulled", settings(way))
    lost, *kept = sorted(first.export.iterdir())
    before = {p: p.stat().st_mtime_ns for folder in kept for p in folder.iterdir()}
    whole = {p.read_bytes() for p in lost.iterdir()}
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()
    assert pull_series(tmp_path / "pulled", settings(way)) == first
    assert {p.read_bytes() for p in lost.iterdir()} == whole
    assert {p: p.stat().st_mtime_ns for folder in kept for p in folder.iterdir()} == before


@pytest.mark.parametrize("way", ["web", "dicom"])
def test_a_batch_of_synthetic_persons_arrives_whole(
    way: str, orthanc: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RARESCAN_PUSH_CREDENTIALS", orthanc.credentials)
    batch = make_folder(tmp_path / way, "release")
    before = {*orthanc.call("/instances")}
    assert push_batch(batch, config(getattr(orthanc, way))) == 2
    new = {*orthanc.call("/instances")} - before
    try:
        tags = [orthanc.call(f"/instances/{one}/tags") for one in new]
        persons = sorted(t["0010,0020"]["Value"] for t in tags)
        assert persons == ["SYN-0-000001"] * N + ["SYN-0-000002"] * N
        assert {t["0008,001c"]["Value"] for t in tags} == {"YES"}
        assert push_batch(batch, config(getattr(orthanc, way))) == 0
    finally:
        for one in new:
            orthanc.call(f"/instances/{one}", method="DELETE")


def test_a_stranger_and_a_wrong_password_are_told_what_to_do(
    settings: Any, orthanc: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UnreachableError, match="administrator"):
        pull_series(tmp_path / "a", settings("get", own_ae_title="STRANGER"))
    wrong = orthanc.dicom.replace("CIPACS", "OTHER")
    with pytest.raises(SettingError, match="rejects us"):
        pull_series(tmp_path / "b", settings("get", address=wrong))
    monkeypatch.setenv("RARESCAN_PULL_CREDENTIALS", "ci:wrong")
    with pytest.raises(SettingError, match="RARESCAN_PULL_CREDENTIALS"):
        pull_series(tmp_path / "c", settings("web"))
