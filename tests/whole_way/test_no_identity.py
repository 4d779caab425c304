"""Fresh tokens in everything that an export can carry text in; none in any byte that we write."""

import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.dataset import Dataset
from token_search import found

from rarescan.phantom.export import write_export
from rarescan.phantom.spec import PhantomConfig

N_PERSONS = 6
OPTIONS = (
    "--spacing-mm 8 --set prepare.registration_starts=1 --set prepare.bias_correction=coarse "
    "--set prepare.strip=template --set partition.fewest_validation=0"
)
TEXTS = {
    "LO": ["PatientAddress", "OtherPatientIDs", "InstitutionName", "StudyDescription",
           "DeviceSerialNumber", "SoftwareVersions", "AdmittingDiagnosesDescription"],
    "SH": ["AccessionNumber", "StudyID", "StationName", "PatientTelephoneNumbers", "SequenceName"],
    "PN": ["ReferringPhysicianName", "OperatorsName", "OtherPatientNames"],
    "LT": ["PatientComments", "ImageComments", "AdditionalPatientHistory"],
    "ST": ["InstitutionAddress", "DerivationDescription"],
    "UT": ["TextValue"],
    "UC": ["LongCodeValue"],
    "AE": ["StationAETitle", "SourceApplicationEntityTitle"],
    "CS": ["BodyPartExamined"],
}  # fmt: skip


class Tokens:
    """Words that occur nowhere else; each is made once and remembered."""

    def __init__(self) -> None:
        self.planted: list[str] = []

    def new(self, what: str) -> str:
        """Return a token of 12 characters, some of them with an umlaut."""
        n = len(self.planted)
        letters = "BCDFGHJKLMNPQRSTVWXZ"
        word = f"ZQ{what}" + "".join(letters[n // 20**k % 20] for k in range(3)) * 3
        self.planted.append(word[:12])
        return self.planted[-1]


def plant(folder: Path, tokens: Tokens) -> str:
    """Fill a person's files, their names and private groups with tokens; return the new ID."""
    person = {word: tokens.new(vr) for vr, words in TEXTS.items() for word in words}
    patient, name = tokens.new("ID"), f"{tokens.new('PN')}^Änn{tokens.new('PN')}"
    private = {vr: tokens.new("P") for vr in ("LO", "LT", "PN", "UN", "OB", "SH")}
    preamble, nested, word = (tokens.new(kind) for kind in ("PR", "SQ", "SE"))
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        ds = pydicom.dcmread(path)
        if not tokens.planted[-1].startswith("2.25"):
            tokens.planted += [ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.PatientBirthDate]
        ds.preamble = preamble.encode().ljust(128, b"\0")
        for keyword, value in person.items():
            if keyword == "SourceApplicationEntityTitle":
                ds.file_meta.SourceApplicationEntityTitle = value
            else:
                setattr(ds, keyword, value)
        ds.PatientID, ds.PatientName = patient, name
        ds.SeriesDescription = f"{ds.SeriesDescription} {word}"
        block = ds.private_block(0x0041, nested[:8], create=True)
        for k, (vr, value) in enumerate(private.items()):
            block.add_new(k, vr, value.encode() if vr in ("UN", "OB") else value)
        inner = Dataset()
        inner.PatientName, inner.TextValue = nested, nested
        ds.RequestAttributesSequence = [inner]
        ds.save_as(path)
        path.rename(path.with_name(f"{name.split('^')[0]}_{path.name}"))
    folder.rename(folder.with_name(f"{patient}_{name.split('^')[0]}"))
    return patient


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a folder with an export, labels and a key, and the tokens in them and their names."""
    root, tokens = tmp_path_factory.mktemp("hospital"), Tokens()
    config = PhantomConfig(patients=0, controls=N_PERSONS, voxel_mm=1.6, faults=False, seed=5)
    write_export(root / "made", config, workers=1)
    rows = ["patient_id,diagnosis,site"]
    for study in sorted((root / "made" / "export" / "DICOM").iterdir()):
        shutil.rmtree(min((s for s in study.iterdir()), key=lambda s: len(list(s.iterdir()))))
        rows.append(f"{plant(study, tokens)},control,North")
    rows.append(f"{tokens.new('ID')},control,North")
    (root / "made" / "export").rename(root / f"export_{tokens.new('EX')}")
    (root / "made" / "pseudonym.key").rename(root / f"key_{tokens.new('KY')}")
    (root / f"labels_{tokens.new('LA')}").write_text("\n".join(rows))
    shutil.rmtree(root / "made")
    return root, tokens.planted


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_token_is_in_any_byte_that_ingest_and_prepare_write_or_say(
    hospital: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory, command: Any
) -> None:
    root, tokens = hospital
    work = tmp_path_factory.mktemp("work")
    export, key, labels = (path.name for path in sorted(root.iterdir()))
    for name in (export, key, labels):
        (work / name).symlink_to(root / name)
    tables = f"--labels {labels} --key-file {key}"
    # Without an address the command starts Prefect itself, as on a user's machine.
    source = f"rarescan ingest {export} runs/cohort {tables}"
    done = command(source, work, PREFECT_API_URL="")
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    done = command(f"rarescan prepare runs/cohort runs/prepared {OPTIONS}", work)
    assert done.returncode == 0, done.stderr
    told += done.stdout + done.stderr
    patient = (root / labels).read_text().splitlines()[1].split(",")[0]
    twice = f"patient_id,diagnosis\n{patient},control\n{patient},bvFTD\n"
    (work / "twice.csv").write_text(twice)
    again = f"rarescan ingest {export} runs/no --labels twice.csv --key-file {key}"
    done = command(again, work)
    assert done.returncode == 4
    told += done.stdout + done.stderr
    (work / "told").mkdir()
    (work / "told" / "log").write_text(told)
    assert len(tokens) > N_PERSONS * 30
    assert len(list((work / "runs/cohort").glob("sub-*"))) == N_PERSONS
    assert list((work / "runs/.prefect").glob("*.db"))
    server = list(tmp_path_factory.getbasetemp().glob("prefect*"))
    assert server
    assert found(tokens, [work / "runs", work / "told", *server]) == {}


def into_sqlite(path: Path, token: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE log(text)")
        database.execute("INSERT INTO log VALUES(?)", (token,))
        database.commit()


LEAKS: dict[str, Callable[[Path, str], Any]] = {
    "text.json": lambda p, t: p.write_text(json.dumps({"a": t}, ensure_ascii=False)),
    "lower.log": lambda p, t: p.write_text(t.lower()),
    "wide.bin": lambda p, t: p.write_bytes(b"\1" + t.encode("utf-16-le")),
    "image.nii.gz": lambda p, t: p.write_bytes(gzip.compress(b"\0" * 99 + t.encode())),
    "scans.parquet": lambda p, t: pq.write_table(pa.table({"a": [t] * 9}), p, compression="zstd"),
    "store.db": into_sqlite,
}


@pytest.mark.parametrize("name", LEAKS)
def test_the_search_finds_a_token_wherever_it_is_put(tmp_path: Path, name: str) -> None:
    token = "ZQÄPLANTEDXX"
    LEAKS[name](tmp_path / name, token)
    assert found([token, "ZQABSENTXXXX"], [tmp_path]) == {name: [token]}


def test_the_search_finds_a_token_in_a_name_and_a_date_as_we_write_dates(tmp_path: Path) -> None:
    (tmp_path / "ZQNAMEXXXXXX").touch()
    (tmp_path / "table.tsv").write_text("1955-03-20")
    hits = found(["ZQNAMEXXXXXX", "19550320"], [tmp_path])
    assert hits == {"ZQNAMEXXXXXX": ["ZQNAMEXXXXXX"], "table.tsv": ["19550320"]}
