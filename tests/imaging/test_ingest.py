import gzip
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest

from rarescan.cohort.store import open_cohort, read_about, read_events
from rarescan.errors import InputError, RarescanError, SettingError
from rarescan.imaging.index import build_index
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.persons import (
    fingerprint,
    persons,
    read_erased,
    register_persons,
    write_erased,
)
from rarescan.imaging.spec import IngestConfig

LABELS = """patient_id,diagnosis,age_years,sex,site
00471199,bvFTD,,,
GOOD2,control,71.5,M,Ulm
GAP,control,,,
DEAD,control,,,
NOSCAN,control,,,
"""


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("key") / "k"
    path.write_text("5a" * 32)
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, write_series: Any, make_head: Any) -> Path:
    """Two sound persons."""
    folder = tmp_path_factory.mktemp("small") / "export"
    write_series(folder / "a")
    write_series(folder / "b", PatientID="GOOD2", voxels=make_head(2))
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, write_series: Any, make_head: Any) -> Path:
    """What a PACS hands over: two sound persons, and one of each trouble."""
    folder = tmp_path_factory.mktemp("pacs") / "export"
    first = write_series(folder / "a")
    shutil.copy(first[7], folder / "a" / "copy.dcm")
    (folder / "README.TXT").write_text("Open the viewer. Patient: Mustermann")
    (folder / "AUTORUN").write_bytes(b"")
    write_series(folder / "loc", series="9", keep=range(3), ImageType=["ORIGINAL", "LOCALIZER"])
    # The same person again, a week later, with a second, unnormalised T1 on that day.
    later = {"StudyDate": "20190618", "SeriesDate": "20190618"}
    write_series(folder / "a2", voxels=make_head(5), **later)
    plain = ["ORIGINAL", "PRIMARY", "M", "ND"]
    write_series(folder / "a3", voxels=make_head(6), series="4", ImageType=plain, **later)
    missing = {"PatientSex": None, "PatientBirthDate": None, "InstitutionName": None}
    write_series(folder / "b", PatientID="GOOD2", voxels=make_head(2), **missing)
    write_series(folder / "gap", PatientID="GAP", keep=[*range(40), *range(41, 96)])
    write_series(folder / "dead", PatientID="DEAD", voxels=np.full((96, 96, 96), 7, np.int16))
    write_series(folder / "stranger", PatientID="UNKNOWN77", voxels=make_head(3))
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_text(LABELS)
    return str(path)


@pytest.fixture(scope="module")
def cohort(export: Path, labels: str, key: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = IngestConfig(labels=labels, key_file=key, licence="research", name="Test heads")
    return ingest_export(export, tmp_path_factory.mktemp("out") / "cohort", config, workers=2)


def test_the_sound_persons_are_in_with_their_labels(cohort: Path) -> None:
    scans = open_cohort(cohort).scans
    by_diagnosis: dict[str, list[Any]] = {}
    for scan in scans:
        by_diagnosis.setdefault(scan.condition.diagnosis, []).append(scan)
    assert {k: len(v) for k, v in by_diagnosis.items()} == {"bvFTD": 2, "control": 1}
    patient, later = by_diagnosis["bvFTD"]
    assert patient.person_id == later.person_id
    assert (patient.session, later.session) == ("01", "02")
    assert (patient.condition.age_years, patient.condition.sex) == (64, "F")
    assert str(patient.site).startswith("site")
    (control,) = by_diagnosis["control"]
    assert (control.condition.age_years, control.condition.sex) == (71, "M")
    assert (control.site, control.licence, control.target) == ("Ulm", "research", "control")


def test_every_file_ends_in_exactly_one_of_used_dropped_quarantined(
    cohort: Path, export: Path
) -> None:
    files = read_about(cohort)["files"]
    n_files = sum(p.is_file() for p in export.rglob("*"))
    assert files["found"] == n_files
    assert files["used"] == 3 * 96
    assert files["used"] + files["dropped"] + files["quarantined"] == n_files


def test_everything_left_out_has_a_code(cohort: Path) -> None:
    events = read_events(cohort)
    found = {(e["code"], e["action"], e["n_files"]) for e in events}
    assert found == {
        ("NOT_DICOM", "drop", 1),
        ("TRUNC_HEADER", "quarantine", 1),
        ("DUP_EXACT", "drop", 1),
        ("LOCALIZER", "drop", 3),
        ("MISSING_SLICE", "quarantine", 95),
        ("PIXELS_DEAD", "quarantine", 96),
        ("RUNNER_UP", "drop", 96),
        ("UNLABELLED", "quarantine", 96),
        ("LABEL_WITHOUT_SCAN", "drop", 0),
    }
    assert sum(e["code"] == "LABEL_WITHOUT_SCAN" for e in events) == 3
    assert read_about(cohort)["labels_without_scan"] == 3
    assert read_about(cohort)["smallest_group"] == {"persons": 1, "groups": 2, "alone": 2}


def test_voxels_and_geometry_are_those_of_the_files(cohort: Path, make_head: Any) -> None:
    scan = next(s for s in open_cohort(cohort).scans if s.condition.diagnosis == "control")
    image: Any = nib.load(cohort / scan.path)
    assert np.array_equal(np.asarray(image.dataobj), make_head(2)[::-1].transpose(2, 1, 0))
    # Sagittal: columns run to posterior, rows down, the normal to the right; the last file lies
    # at LPS (70.5, -70, 71) mm.
    assert nib.aff2axcodes(image.affine) == ("P", "I", "R")
    assert image.affine[:3, 3] == pytest.approx([-70.5, 70, 71])
    assert image.header.get_zooms() == pytest.approx((1.5, 1.5, 1.5))
    assert not any(bytes(image.header[name]).strip(b"\0") for name in ("descrip", "aux_file"))


def test_intervals_between_sessions_are_kept_and_dates_are_not(cohort: Path) -> None:
    person = next(s.person_id for s in open_cohort(cohort).scans if s.session == "02")
    table = (cohort / f"sub-{person}" / f"sub-{person}_sessions.tsv").read_text().split()
    first, second = (np.datetime64(cell) for cell in (table[3], table[5]))
    assert second - first == np.timedelta64(7, "D")
    assert int(table[3][:4]) < 1925


def test_no_identity_is_in_any_byte_or_name(cohort: Path, key: str) -> None:
    planted = [b"Mustermann", b"Erika", b"00471199", b"19550320", b"1955-03-20", b"2019",
               b"Kreiskrankenhaus", b"Musterstadt", b"GOOD2", b"UNKNOWN77", b"NOSCAN", b"1.2.826",
               b"/pacs", key.encode(), b"5a5a5a5a", b"t1_mprage"]  # fmt: skip
    for name, data in contents(cohort).items():
        if name.endswith(".nii.gz"):
            image: Any = nib.load(cohort / name)
            data = image.header.binaryblock + data[:64]
        for token in planted:
            assert token not in data, name
            assert token.decode() not in name


def test_the_folder_is_for_its_owner_only_and_says_that_faces_are_there(cohort: Path) -> None:
    assert cohort.stat().st_mode & 0o777 == 0o700
    assert "faces are still there" in (cohort / "README.md").read_text()
    assert not (cohort / ".private").exists()


def test_the_result_is_valid_bids(cohort: Path) -> None:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    found = subprocess.run(
        [validator, cohort, "--format", "json"], capture_output=True, check=False
    )
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []
    assert found.returncode == 0


def test_times_stand_in_seconds_in_the_sidecar(cohort: Path) -> None:
    scan = open_cohort(cohort).scans[0]
    beside = json.loads((cohort / scan.path.replace(".nii.gz", ".json")).read_text())
    assert (beside["RepetitionTime"], beside["EchoTime"], beside["InversionTime"]) == (
        2.3, 0.00298, 0.9)  # fmt: skip
    assert beside["VoxelSHA256"] == scan.sha256
    assert beside["Manufacturer"] == "Siemens"


def test_repeating_finds_the_result_and_other_settings_are_refused(
    cohort: Path, export: Path, labels: str, key: str
) -> None:
    before = {p: p.stat().st_mtime_ns for p in cohort.rglob("*")}
    config = IngestConfig(labels=labels, key_file=key, licence="research", name="Test heads")
    assert ingest_export(export, cohort, config) == cohort
    assert {p: p.stat().st_mtime_ns for p in cohort.rglob("*")} == before
    with pytest.raises(RarescanError, match=r"config\.licence"):
        ingest_export(export, cohort, IngestConfig(labels=labels, key_file=key, name="Test heads"))


@pytest.fixture(scope="module")
def undisturbed(small: Path, key: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "cohort"
    return ingest_export(small, out, IngestConfig(key_file=key), workers=1)


def test_names_order_and_packing_of_the_files_change_nothing(
    small: Path, undisturbed: Path, key: str, tmp_path: Path
) -> None:
    archive = tmp_path / "export.zip"
    paths = [p for p in small.rglob("*") if p.is_file()]
    with zipfile.ZipFile(archive, "w") as out:
        for k, i in enumerate(np.random.default_rng(1).permutation(len(paths))):
            out.write(paths[i], f"{k % 3}/{k}")
    packed = ingest_export(archive, tmp_path / "cohort", IngestConfig(key_file=key), workers=2)
    mine, theirs = contents(packed), contents(undisturbed)
    for tables in (mine, theirs):
        tables.pop("recipe.json")
    assert mine == theirs
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort", "export.zip"]


def test_killed_at_any_moment_it_continues_and_ends_the_same(
    small: Path, undisturbed: Path, key: str, tmp_path: Path
) -> None:
    out = tmp_path / "cohort"
    code = (
        "import sys; from pathlib import Path; from rarescan.imaging.spec import IngestConfig;"
        "from rarescan.imaging.ingest import ingest_export;"
        "ingest_export(Path(sys.argv[1]), Path(sys.argv[2]), IngestConfig(key_file=sys.argv[3]),"
        " workers=1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, small, out, key], start_new_session=True
    )
    private = tmp_path / ".cohort.unfinished" / ".private"
    deadline = time.monotonic() + 60
    while not list(private.glob("*_01.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    (first,) = {p.stat().st_mtime_ns for p in tmp_path.rglob("*_T1w.nii.gz")} or {None}
    ingest_export(small, out, IngestConfig(key_file=key), workers=1)
    assert contents(out) == contents(undisturbed)
    assert first in {p.stat().st_mtime_ns for p in out.rglob("*_T1w.nii.gz")}
    assert not private.exists()


def test_another_key_gives_other_names_and_the_same_voxels(
    small: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARESCAN_KEY", "77" * 32)
    other = open_cohort(ingest_export(small, tmp_path / "c", IngestConfig(), workers=1)).scans
    mine = open_cohort(undisturbed).scans
    assert not {s.person_id for s in mine} & {s.person_id for s in other}
    assert {s.sha256 for s in mine} == {s.sha256 for s in other}


_GEOMETRY = {
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("BitsStored", "BitsAllocated", "HighBit", "PixelRepresentation", "PixelData"),
    *("ScanningSequence", "SequenceVariant", "MRAcquisitionType", "RepetitionTime"),
    *("EchoTime", "InversionTime", "FlipAngle", "ImageType", "SOPClassUID", "InstanceNumber"),
    *("SOPInstanceUID", "StudyInstanceUID", "BurnedInAnnotation"),
}


def bytes_written(root: Path) -> bytes:
    """Return all names and bytes below a folder; what is compressed also unpacked."""
    parts = []
    for name, data in contents(root).items():
        parts += [name.encode(), data]
        if name.endswith(".gz"):
            parts.append(gzip.decompress(data))
        elif name.endswith(".parquet"):
            parts.append(repr(pq.read_table(root / name).to_pylist()).encode())
    return b"\n".join(parts)


def forms(token: bytes, text: str | None) -> set[bytes]:
    """Return how a token may be written: as in the file, and as text in usual encodings."""
    texts = {token.decode("latin-1"), *([text] if text else [])}
    codecs = ("utf-8", "utf-16-le", "utf-16-be", "latin-1", "gb18030", "iso2022_jp")
    return {token, *(t.encode(codec, "ignore") for t in texts for codec in codecs)} - {b""}


def test_planted_identities_do_not_reach_the_output(
    real_data: Path, write_series: Any, key: str, tmp_path: Path, caplog: Any, capfd: Any
) -> None:
    stored = json.loads((real_data / "dicom/planted_tokens.json").read_text())
    tokens = {label: bytes.fromhex(token["hex"]) for label, token in stored.items()}
    export = tmp_path / "export"
    with zipfile.ZipFile(real_data / "dicom/planted_study.zip") as archive:
        archive.extractall(export)
    (planted_mr,) = export.glob("study/ZQ*/*.dcm")
    template = pydicom.dcmread(planted_mr)

    def plant(k: int, ds: pydicom.Dataset) -> None:
        for element in template:
            if element.keyword not in _GEOMETRY:
                ds[element.tag] = element

    # A whole T1 series that carries the planted values; in a study of its own, because the
    # planted study itself holds several patients, which would set it apart.
    write_series(export / "series", edit=plant, series="planted")
    config = IngestConfig(key_file=key, allow_gadolinium=True, accept_review=True)
    cohort = ingest_export(export, tmp_path / "cohort", config, workers=1)
    assert len(open_cohort(cohort).scans) == 1
    assert "SOP_CLASS" in {e["code"] for e in read_events(cohort)}
    with pytest.raises(InputError) as refused:
        ingest_export(export / "study", tmp_path / "none", config, workers=1)
    said = [str(refused.value), caplog.text, *capfd.readouterr()]
    blob = bytes_written(cohort) + "\n".join(said).encode()
    assert len(tokens) == 149
    found = [
        label
        for label, token in tokens.items()
        if any(form in blob for form in forms(token, stored[label].get("text")) if len(form) > 3)
    ]
    assert found == []


def test_fresh_tokens_in_every_text_element_do_not_reach_the_output(
    write_series: Any, key: str, tmp_path: Path, caplog: Any, capfd: Any
) -> None:
    rng = np.random.default_rng()
    names = (
        *("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "StationName"),
        *("InstitutionName", "ReferringPhysicianName", "OperatorsName", "StudyDescription"),
        *("SeriesDescription", "ProtocolName", "ImageComments", "DeviceSerialNumber"),
        *("PatientComments", "PatientAddress", "SoftwareVersions", "ReceiveCoilName"),
        *("RequestedProcedureDescription", "SequenceName", "Manufacturer"),
        "ManufacturerModelName",
    )
    values = {name: f"Zqxwv{rng.integers(10**9):09d}x" for name in names}
    values["PatientName"] = "Zqxwvölker^Zqxwvyri"

    def plant(k: int, ds: pydicom.Dataset) -> None:
        ds.add_new(0x00091010, "LO", "Zqxwvprivate")
        ds.add_new(0x60003000, "OW", b"Zqxwvoverlay!")
        ds.preamble = b"Zqxwvpreamble".ljust(128, b"\0")

    paths = write_series(tmp_path / "in/Zqxwvfolder", edit=plant, **values)
    for path in paths:
        path.rename(path.with_name(f"Zqxwvfile{path.name}"))
    cohort = ingest_export(
        tmp_path / "in", tmp_path / "c", IngestConfig(key_file=key, accept_review=True), workers=1
    )
    blob = bytes_written(cohort) + "".join([caplog.text, *capfd.readouterr()]).encode()
    assert len(open_cohort(cohort).scans) == 1
    for form in (b"Zqxwv", "Zqxwv".encode("utf-16-le"), "Zqxwv".encode("utf-16-be")):
        assert form not in blob


def test_an_erased_person_stays_away_from_a_later_ingest(
    small: Path, undisturbed: Path, key: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(undisturbed, folder)
    first, second = (scan.person_id for scan in open_cohort(folder).scans)
    write_erased(folder, [fingerprint(first)])
    config = IngestConfig(key_file=key, licence="changed")
    again = ingest_export(small, folder, config, workers=1, overwrite=True)
    assert [scan.person_id for scan in open_cohort(again).scans] == [second]
    assert first.encode() not in bytes_written(again)
    assert read_erased(again) == (fingerprint(first),)
    files = read_about(again)["files"]
    assert (files["used"], files["dropped"], files["found"]) == (96, 96, 192)
    # The same settings find the result; the erased person is part of what it is made of.
    assert ingest_export(small, folder, config, workers=1) == again


def test_two_names_under_one_number_wait_for_a_human(
    write_series: Any, make_head: Any, key: str, tmp_path: Path
) -> None:
    write_series(tmp_path / "in/a")
    write_series(tmp_path / "in/b", PatientID="B2", PatientName="Andere^Anna")
    later = {"StudyDate": "20190618", "SeriesDate": "20190618", "PatientName": "Dritte^Doris"}
    write_series(tmp_path / "in/c", PatientID="B2", voxels=make_head(2), **later)
    config = IngestConfig(key_file=key)
    cohort = ingest_export(tmp_path / "in", tmp_path / "c", config, workers=1)
    assert len(open_cohort(cohort).scans) == 1
    assert [e["code"] for e in read_events(cohort)] == ["NAME_DIFFERS"] * 2
    (_, row) = (cohort / "rarescan/persons_to_confirm.tsv").read_text().splitlines()
    person = row.split("\t")[0]
    (tmp_path / "p.csv").write_text(f"person_id,other,same\n{person},{person},yes\n")
    config = IngestConfig(key_file=key, confirmed_persons=str(tmp_path / "p.csv"))
    confirmed = ingest_export(tmp_path / "in", tmp_path / "d", config, workers=1)
    # Equal pixels under two persons are still nobody's.
    assert [s.session for s in open_cohort(confirmed).scans] == ["02"]
    rows = (confirmed / "rarescan/persons_to_confirm.tsv").read_text().splitlines()[1:]
    assert [r.split("\t")[2] for r in rows] == ["equal pixels"]


def test_two_patients_in_one_series_and_equal_pixels_are_both_set_apart(
    write_series: Any, make_head: Any, key: str, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    write_series(export / "good")

    def second_person(k: int, ds: pydicom.Dataset) -> None:
        if k >= 48:
            ds.PatientID, ds.PatientName = "B2", "Andere^Anna"

    write_series(export / "mixed", PatientID="B1", voxels=make_head(1), edit=second_person)
    write_series(export / "p", PatientID="C1", voxels=make_head(4))
    write_series(export / "q", PatientID="C2", voxels=make_head(4))
    cohort = ingest_export(export, tmp_path / "cohort", IngestConfig(key_file=key), workers=2)
    assert len(open_cohort(cohort).scans) == 1
    found = sorted((e["code"], e["n_files"]) for e in read_events(cohort))
    assert found == [("MIXED_PATIENTS", 48)] * 2 + [("SAME_PIXELS_TWO_PEOPLE", 96)] * 2
    assert len(list(cohort.glob("sub-*"))) == 1


def test_a_real_ge_series_equals_dcm2niix(real_data: Path, key: str, tmp_path: Path) -> None:
    converter = Path(sys.executable).with_name("dcm2niix")
    if not converter.exists():
        pytest.skip("dcm2niix is not installed")
    with tarfile.open(real_data / "dicom/ge_irspgr_fruit.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    subprocess.run(
        [converter, "-z", "n", "-b", "n", "-o", tmp_path, "-f", "theirs", tmp_path / "In"],
        capture_output=True,
        check=True,
    )
    cohort = ingest_export(tmp_path / "In", tmp_path / "c", IngestConfig(key_file=key), workers=1)
    (scan,) = open_cohort(cohort).scans
    paths = (tmp_path / "theirs.nii", cohort / scan.path)
    theirs, ours = (nib.as_closest_canonical(nib.load(p)) for p in paths)
    assert ours.affine == pytest.approx(theirs.affine, abs=1e-3)
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


def test_a_rewritten_series_with_half_its_slices_is_not_taken(
    real_data: Path, key: str, tmp_path: Path
) -> None:
    with tarfile.open(real_data / "dicom/t1/studyforrest_t1w_every2nd.tar.xz") as archive:
        archive.extractall(tmp_path / "in", filter="data")
    config = IngestConfig(key_file=key, accept_review=True)
    with pytest.raises(InputError, match="1 x COUNT_MISMATCH"):
        ingest_export(tmp_path / "in", tmp_path / "cohort", config, workers=1)


def test_bad_sources_and_settings_are_one_line_with_a_remedy_and_leave_nothing(
    small: Path, key: str, tmp_path: Path, write_series: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RARESCAN_KEY", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("nothing here")
    write_series(tmp_path / "flair", keep=range(30), ScanningSequence="SE", SequenceVariant="SK")
    good = IngestConfig(key_file=key)
    cases: list[tuple[Path, IngestConfig, type[Exception], str]] = [
        (tmp_path / "empty", good, InputError, "is empty"),
        (tmp_path / "absent", good, InputError, "nothing at"),
        (tmp_path / "text/a.txt", good, InputError, "neither a folder"),
        (tmp_path / "text", good, InputError, "None of the 1 files"),
        (tmp_path / "flair", good, InputError, "1 x NOT_T1"),
        (small, IngestConfig(key_file="/nowhere"), SettingError, "rarescan key new"),
        (small, IngestConfig(key_file=key, labels="/nowhere.csv"), SettingError, "missing"),
    ]
    before = {p.name for p in tmp_path.iterdir()}
    for source, config, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            ingest_export(source, tmp_path / "cohort", config, workers=1)
        assert "\n" not in str(caught.value)
        assert {p.name for p in tmp_path.iterdir()} == before


def test_an_archive_that_grows_too_much_is_refused(key: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("zeros", bytes(80 << 20))
    with pytest.raises(InputError, match="20 times"):
        ingest_export(tmp_path / "bomb.zip", tmp_path / "c", IngestConfig(key_file=key))
    assert [p.name for p in tmp_path.iterdir()] == ["bomb.zip"]


def test_files_too_large_or_inflating_too_far_are_set_apart(
    tmp_path: Path, small: Path, make_dataset: Any, make_head: Any, save_dataset: Any
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(small / "a/IM0000.dcm", source)
    with (source / "large.bin").open("wb") as sparse:
        sparse.truncate(300 << 20)
    save_dataset(
        make_dataset(make_head(0, 24), 0, "1"), source / "bomb.dcm", "1.2.840.10008.1.2.1.99"
    )
    whole = (source / "bomb.dcm").read_bytes()
    meta = whole[: 144 + int.from_bytes(whole[140:144], "little")]
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
    (source / "bomb.dcm").write_bytes(meta + deflater.compress(bytes(300 << 20)) + deflater.flush())
    index = build_index(source, tmp_path / "private", workers=1)
    assert index.counts() == {"FILE_SIZE": 1, "TRUNC_HEADER": 1}
    assert index.n_files() == 3


def test_a_file_on_which_the_reader_dies_costs_only_itself(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(function: Any, items: Any, *, on_death: Any, **_: Any) -> list[Any]:
        deadly = [any(name == "a/IM0007.dcm" for _, name in files) for _, files in items]
        return [
            on_death(item) if dies else function(item)
            for item, dies in zip(items, deadly, strict=True)
        ]

    monkeypatch.setattr("rarescan.imaging.index.run_parallel", dying)
    index = build_index(small, tmp_path / "private")
    assert index.counts() == {"PARSER_CRASH": 1}
    register = register_persons(index, bytes(32), None, {})
    assert sum(len(s.files) for person in persons(index, register) for s in person) == 191


def test_an_index_goes_on_where_it_stopped(tmp_path: Path, small: Path) -> None:
    private = tmp_path / "private"
    index = build_index(small / "a", private, workers=1)
    with sqlite3.connect(index.path) as database:
        database.execute("DELETE FROM files WHERE number >= 50")
        database.execute("UPDATE files SET header='kept' WHERE number = 3")
    database.close()
    again = build_index(small / "a", private, workers=1)
    assert again.n_files() == 96
    with sqlite3.connect(index.path) as database:
        found = database.execute("SELECT header FROM files WHERE number = 3").fetchone()
    database.close()
    assert found == ("kept",)
