import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from rarescan.cohort.store import open_cohort, read_about, read_events
from rarescan.errors import InputError, SettingError
from rarescan.imaging.adopt import adopt_bids, adopt_table
from rarescan.imaging.spec import AdoptConfig

AFFINE = np.array([[0, 0, 1.2, -40], [-1.1, 0, 0, 30], [0, -1.0, 0, 20], [0, 0, 0, 1.0]])


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    image: Any = nib.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
    image.header["descrip"] = b"Mustermann"
    image.header["intent_name"] = b"Erika"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two sound volumes, and one of each fault."""
    folder = tmp_path / "source"
    good = np.arange(720, dtype=np.int16).reshape(8, 9, 10)
    save(folder / "p1.nii.gz", good)
    save(folder / "p2.nii", good[..., None].astype(np.float64) / 7)
    save(folder / "flat.nii.gz", np.ones((8, 9, 10), np.float32))
    save(folder / "nan.nii.gz", np.where(good > 5, good, np.nan).astype(np.float32))
    save(folder / "series.nii.gz", np.stack([good, good], axis=-1))
    save(folder / "huge.nii.gz", good, np.diag([50.0, 50, 50, 1]))
    save(folder / "flatworld.nii.gz", good, np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0.01, 0],
                                                      [0, 0, 0, 1.0]]))  # fmt: skip
    data = (folder / "p1.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(data[: len(data) // 2])
    (folder / "text.nii.gz").write_bytes(gzip.compress(b"no image"))
    names = ["p1.nii.gz", "p2.nii", "flat.nii.gz", "nan.nii.gz", "series.nii.gz", "huge.nii.gz",
             "flatworld.nii.gz", "cut.nii.gz", "text.nii.gz", "absent.nii.gz"]  # fmt: skip
    rows = [
        f"{name},sub-P_{k},{'bvFTD' if k else 'control'},{91 - k},m,yes"
        for k, name in enumerate(names)
    ]
    rows.append("p1.nii.gz,P_77,,60,f,yes")
    rows.append("p1.nii.gz,P_99,control,60,f,no")
    (folder / "t.csv").write_text("\n".join(["file,person,group,age,sex,take", *rows]) + "\n")
    return folder


CONFIG = AdoptConfig(
    table="t.csv",
    columns={"diagnosis": "group", "age_years": "age"},
    where={"take": "yes"},
    already=("stripped",),
    licence="CC0",
)


def test_sound_files_are_taken_and_the_others_named(source: Path, tmp_path: Path) -> None:
    cohort = adopt_table(source, tmp_path / "cohort", CONFIG, workers=1)
    first, second = open_cohort(cohort).scans
    assert (first.person_id, first.flags, first.licence) == ("P0", ("stripped",), "CC0")
    assert (first.condition.age_years, first.condition.sex) == (90, "M")
    assert (first.target, second.target) == ("control", "bvFTD")
    codes = {e["person_id"]: e["code"] for e in read_events(cohort)}
    assert codes == {
        "P2": "PIXELS_DEAD",
        "P3": "PIXELS_DEAD",
        "P4": "NOT_3D",
        "P5": "AFFINE_INVALID",
        "P6": "AFFINE_INVALID",
        "P7": "UNREADABLE",
        "P8": "UNREADABLE",
        "P9": "FILE_MISSING",
        "P77": "UNLABELLED",
    }
    about = read_about(cohort)
    assert about["reasons"].keys() == about["codes"].keys() == {*codes.values()}
    files = about["files"]
    assert (files["found"], files["used"], files["quarantined"]) == (11, 2, 9)


def test_voxels_and_affine_stay_and_header_texts_go(source: Path, tmp_path: Path) -> None:
    cohort = adopt_table(source, tmp_path / "cohort", CONFIG, workers=1)
    for scan, name in zip(open_cohort(cohort).scans, ("p1.nii.gz", "p2.nii"), strict=True):
        before: Any = nib.load(source / name)
        after: Any = nib.load(cohort / scan.path)
        assert after.affine == pytest.approx(before.affine, abs=1e-5)
        assert after.get_fdata() == pytest.approx(np.squeeze(before.get_fdata()), rel=1e-6)
        assert b"Mustermann" not in after.header.binaryblock
        assert b"Erika" not in after.header.binaryblock


def test_a_key_makes_pseudonyms_and_no_name_stays(source: Path, tmp_path: Path) -> None:
    key = tmp_path / "k"
    key.write_text("5a" * 32)
    key.chmod(0o600)
    config = replace(CONFIG, key_file=str(key))
    scans = open_cohort(adopt_table(source, tmp_path / "cohort", config, workers=1)).scans
    assert all(scan.person_id.startswith("RS") for scan in scans)
    assert "P_0" not in (tmp_path / "cohort/participants.tsv").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"table": ""}, SettingError, "adopt.table"),
        ({"table": "none.csv"}, SettingError, "missing"),
        ({"columns": {"diagnosis": "grup"}}, SettingError, "Did you mean 'group'"),
        ({"where": {"take": "maybe"}}, InputError, "None of 12 scans"),
        ({"where": {"file": "cut.nii.gz"}}, InputError, "1 x UNREADABLE"),
        (
            {"where": {}, "columns": {**CONFIG.columns, "person": "sex"}},
            InputError,
            "more than once",
        ),
    ],
)
def test_what_cannot_work_says_so_and_leaves_nothing(
    source: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        adopt_table(source, tmp_path / "cohort", replace(CONFIG, **changes), workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_the_real_cohort_is_adopted_as_it_is(real_data: Path, tmp_path: Path) -> None:
    config = AdoptConfig(
        table="labels.csv",
        columns={"diagnosis": "group", "age_years": "age"},
        where={"dataset": "ds002748"},
        already=("stripped", "template_space", "bias_corrected"),
    )
    cohort = open_cohort(adopt_table(real_data / "t1", tmp_path / "cohort", config, workers=2))
    diagnoses = [scan.condition.diagnosis for scan in cohort.scans]
    assert (diagnoses.count("depression"), diagnoses.count("healthy")) == (51, 21)
    assert len({scan.person_id for scan in cohort.scans}) == 72
    scan = cohort.scans[0]
    assert (scan.person_id, scan.condition.age_years, scan.condition.sex) == (
        "ds002748sub01", 39, "M")  # fmt: skip
    before: Any = nib.load(real_data / "t1/vol/ds002748_sub-01.nii.gz")
    after: Any = nib.load(cohort.root / scan.path)
    assert np.array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    assert after.affine == pytest.approx(before.affine)


def test_a_bids_dataset_is_an_equal_way_in(source: Path, tmp_path: Path) -> None:
    first = adopt_table(source, tmp_path / "first", CONFIG, workers=1)
    # What we wrote is BIDS; reading it again must give the same scans.
    again = adopt_bids(first, tmp_path / "again", AdoptConfig(licence="CC0", already=("stripped",)),
                       workers=1)  # fmt: skip
    assert open_cohort(again).scans == open_cohort(first).scans


def test_a_bids_image_of_nobody_in_the_table_is_an_event(source: Path, tmp_path: Path) -> None:
    first = adopt_table(source, tmp_path / "first", CONFIG, workers=1)
    table = (first / "participants.tsv").read_text().splitlines()
    (first / "participants.tsv").write_text("\n".join(table[:2]) + "\n")
    again = adopt_bids(first, tmp_path / "again", AdoptConfig(), workers=1)
    assert [s.person_id for s in open_cohort(again).scans] == ["P0"]
    assert [(e["code"], e["person_id"]) for e in read_events(again)] == [("UNLABELLED", "P1")]


def test_an_interrupted_adoption_keeps_what_is_done(source: Path, tmp_path: Path) -> None:
    whole = adopt_table(source, tmp_path / "whole", CONFIG, workers=1)
    work = tmp_path / ".cohort.unfinished"
    recipe = json.loads((whole / "recipe.json").read_text())
    shutil.copytree(whole, work)
    (work / "recipe.json").unlink()
    (work / "recipe.unfinished.json").write_text(json.dumps(recipe["id"]))
    first, second = open_cohort(whole).scans
    (work / second.path.replace(".nii.gz", ".json")).unlink()
    kept = (work / first.path).stat().st_mtime_ns
    cohort = adopt_table(source, tmp_path / "cohort", CONFIG, workers=1)
    assert (cohort / first.path).stat().st_mtime_ns == kept
    assert open_cohort(cohort).scans == (first, second)


def clinica(folder: Path) -> Path:
    """A data set as Clinica converts ADNI, NIFD and GENFI: diagnoses stand with the sessions."""
    good = np.arange(720, dtype=np.int16).reshape(8, 9, 10)
    sessions = {
        "sub-NIFD1S0001": ["ses-M000\t61.2\tbvFTD", "ses-M012\t62.2\tbvFTD"],
        "sub-NIFD1S0002": ["ses-M000\t70.0\tCN", "ses-M006\tn/a\tn/a", "ses-M012\t71.0\tbvFTD"],
        "sub-NIFD1S0003": ["ses-M000\t92.5\tCN"],
    }
    for k, (subject, rows) in enumerate(sessions.items()):
        table = "\n".join(["session_id\tage\tdiagnosis", *rows]) + "\n"
        (folder / subject).mkdir(parents=True)
        (folder / subject / f"{subject}_sessions.tsv").write_text(table)
        for row in rows:
            session = row.split("\t")[0]
            save(folder / subject / session / "anat" / f"{subject}_{session}_T1w.nii.gz", good + k)
    people = "participant_id\tsource_id\tsex\tdiagnosis\n" + "".join(
        f"{subject}\tLONI{k}\tF\t{'CN' if k == 1 else 'n/a'}\n"
        for k, subject in enumerate(sessions)
    )
    (folder / "participants.tsv").write_text(people)
    return folder


def test_a_data_set_of_clinica_gives_each_session_its_age_and_the_person_one_diagnosis(
    tmp_path: Path,
) -> None:
    source = clinica(tmp_path / "bids")
    cohort = adopt_bids(source, tmp_path / "cohort", AdoptConfig(), workers=1)
    found = {
        s.scan_id: (s.condition.diagnosis, s.condition.age_years, s.condition.sex)
        for s in open_cohort(cohort).scans
    }
    assert found == {
        "NIFD1S0001_ses-M000": ("bvFTD", 61, "F"),
        "NIFD1S0001_ses-M012": ("bvFTD", 62, "F"),
        "NIFD1S0002_ses-M000": ("CN", 70, "F"),
        "NIFD1S0002_ses-M006": ("CN", None, "F"),
        "NIFD1S0003_ses-M000": ("CN", 90, "F"),
    }
    (event,) = read_events(cohort)
    assert (event["code"], event["person_id"]) == ("DIAGNOSIS_CHANGES", "NIFD1S0002")
    assert read_about(cohort)["smallest_group"]["alone"] == 3


def test_an_erased_person_stays_away_from_a_later_adoption(source: Path, tmp_path: Path) -> None:
    from rarescan.imaging.persons import fingerprint, read_erased, write_erased

    folder = adopt_table(source, tmp_path / "cohort", CONFIG, workers=1)
    write_erased(folder, [fingerprint("P0")])
    again = adopt_table(source, folder, replace(CONFIG, licence="MIT"), workers=1, overwrite=True)
    assert [s.person_id for s in open_cohort(again).scans] == ["P1"]
    assert read_erased(again) == (fingerprint("P0"),)
