import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset

from rarescan.cohort.store import tables
from rarescan.errors import InputError
from rarescan.imaging import ingest, leaks, sessions
from rarescan.imaging.ingest import ingest_export
from rarescan.imaging.spec import IngestConfig

TOKEN = "Xylander77"


@pytest.fixture
def export(tmp_path: Path, write_series: Any) -> Path:
    def plant(k: int, ds: Dataset) -> None:
        ds.StationName = TOKEN

    write_series(tmp_path / "in/Ordner^Of^Erika", edit=plant)
    return tmp_path / "in"


@pytest.fixture
def config(tmp_path: Path) -> IngestConfig:
    path = tmp_path / "k"
    path.write_text("5a" * 32)
    path.chmod(0o600)
    return IngestConfig(key_file=str(path))


@pytest.mark.parametrize(
    "text", [TOKEN, "Mustermann", "19550320", "born on 1955-03-20", "Ordner", "t1_mprage_sag"]
)
def test_a_text_of_the_export_in_a_sidecar_refuses_the_cohort_and_is_not_repeated(
    export: Path, config: IngestConfig, tmp_path: Path, monkeypatch: Any, text: str
) -> None:
    # The mutation that the check is for: something of the source reaches what is written.
    def leaking(*given: Any) -> dict[str, Any]:
        return {**kept(*given), "SeriesDescription": f"a {text}."}

    kept = sessions.sidecar
    monkeypatch.setattr(sessions, "sidecar", leaking)
    # Workers would not see the patch.
    monkeypatch.setattr(ingest, "run_parallel", lambda f, items, **_: [f(i) for i in items])
    with pytest.raises(InputError, match=r"1 of the files .*\.json") as caught:
        ingest_export(export, tmp_path / "c", config, workers=1)
    assert text not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "k"]


def test_without_a_leak_nothing_is_found(
    export: Path, config: IngestConfig, tmp_path: Path
) -> None:
    assert ingest_export(export, tmp_path / "c", config, workers=1).is_dir()


def heads(*tokens: str) -> leaks.Heads:
    return {token[: leaks.SHORTEST]: [token] for token in tokens}


def test_every_kind_of_file_is_read_to_its_texts(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))  # type: ignore[no-untyped-call]
    image.header["descrip"] = TOKEN.encode()
    paths = {name: tmp_path / name for name in ("a.nii.gz", "a.json", "a.tsv", "a.parquet", "a.md")}
    nib.save(image, paths["a.nii.gz"])
    paths["a.json"].write_text(json.dumps({"x": [{"y": f"of {TOKEN}"}]}))
    paths["a.tsv"].write_text(f"one\ttwo\n1\tof {TOKEN}\n")
    detail = json.dumps({"inner": TOKEN})
    pq.write_table(pa.table({"flags": [["x", "y"]], "detail": [detail]}), paths["a.parquet"])
    paths["a.md"].write_text(f"# {TOKEN}")
    (tmp_path / f"sub-{TOKEN}").touch()
    for path in (*paths.values(), tmp_path / f"sub-{TOKEN}"):
        assert leaks.leaks(path, tmp_path, heads(TOKEN), "own words"), path.name
        assert not leaks.leaks(path, tmp_path, heads(TOKEN), f"our {TOKEN}"), path.name
        assert not leaks.leaks(path, tmp_path, heads("Xylan99"), ""), path.name


def test_hashes_pseudonyms_and_numbers_are_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = {
        "person": "sub-RSMARIAAAAAAAAA",
        "sha": "facade12345678901234",
        "n": 12345,
        "t": 0.00298,
    }
    path.write_text(json.dumps(values))
    tokens = ("MARIA", "facade", "12345", "00298", "234567")
    assert not leaks.leaks(path, tmp_path, heads(*tokens), "")
    path.write_text(json.dumps({**values, "id": "12345"}))
    assert leaks.leaks(path, tmp_path, heads(*tokens), "")


def test_texts_are_gathered_from_sequences_private_elements_and_any_charset(
    make_dataset: Any, make_head: Any, save_dataset: Any, tmp_path: Path
) -> None:
    ds = make_dataset(make_head(0, 8), 0, "1")
    inner = Dataset()
    inner.InstitutionName = "Klinikum Nord"
    ds.RequestAttributesSequence = [inner]
    ds.add_new(0x00091010, "LO", "Private Note")
    ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 192", "Jiménez^María"
    save_dataset(ds, tmp_path / "a.dcm")
    found = leaks.texts_of((tmp_path / "a.dcm").read_bytes())
    as_latin1 = "Jiménez".encode().decode("latin-1")
    expected = {"Klinikum Nord", "Private Note", "Jiménez", as_latin1, "19550320", "1955-03-20"}
    assert expected <= found
    assert not any(text.startswith("1.2.840.10008") for text in found)
    assert leaks.texts_of(b"") == set()


def test_our_own_words_come_from_the_code(tmp_path: Path) -> None:
    for word in ("MAGNETOM Vida", "Philips", "SAME_PIXELS_TWO_PEOPLE", "participants"):
        assert word in leaks.own_words()
    assert TOKEN not in leaks.own_words()
    assert tables(tmp_path).name in leaks.own_words()
