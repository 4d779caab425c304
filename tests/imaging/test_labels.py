from pathlib import Path

import pytest

from rarescan.errors import InputError, SettingError
from rarescan.imaging.labels import read_labels


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_persons_are_found_by_number_or_accession_in_any_common_dialect(
    tmp_path: Path, separator: str
) -> None:
    text = (
        "patient_id,accession,diagnosis,age_years,sex,site\n"
        " 00A1 ,,bvFTD,63.4,w,Ulm\n,ACC9,control,,,\n"
    )
    labels = read_labels(write(tmp_path, text.replace(",", separator), "utf-8-sig"))
    (found,) = labels.find(["00a1"], [])
    assert (found.diagnosis, found.age_years, found.sex, found.site) == ("bvFTD", 63.4, "F", "Ulm")
    (other,) = labels.find(["unseen"], [None, "acc9"])
    assert (other.diagnosis, other.age_years, other.sex, other.site) == (
        "control",
        None,
        None,
        None,
    )
    assert labels.find(["0a1"], ["00A1"]) == []


def test_two_diagnoses_for_one_person_name_the_rows_and_not_the_person(tmp_path: Path) -> None:
    path = write(tmp_path, "patient_id,diagnosis\n77,a\n88,b\n77,b\n")
    with pytest.raises(InputError, match="rows 2 and 4") as caught:
        read_labels(path)
    assert "77" not in str(caught.value)


def test_the_same_diagnosis_twice_is_no_contradiction(tmp_path: Path) -> None:
    assert len(read_labels(write(tmp_path, "patient_id,diagnosis\n77,a\n77,a\n")).by_patient) == 1


@pytest.mark.parametrize(
    "text", ["", "patient_id\n1\n", "diagnosis\nx\n", "patient,diagnose\n1,2\n"]
)
def test_missing_columns_are_a_setting_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingError, match="need the columns"):
        read_labels(write(tmp_path, text))


def test_a_missing_file_or_diagnosis_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="missing"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(InputError, match="Row 3"):
        read_labels(write(tmp_path, "patient_id,diagnosis\n1,a\n2,\n"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("7,,a,60,F,\n7,,a,61,F,\n", "rows 2 and 3 .* age_years"),
        ("7,,a,60,F,\n7,,a,60,M,\n", "rows 2 and 3 .* sex"),
        ("7,A1,a,60,F,\n7,A2,a,62,M,\n", "rows 2 and 3 .* sex"),
        (",A1,a,60,F,Ulm\n,A1,a,60,F,Bonn\n", "rows 2 and 3 .* site"),
        ("7,A1,a,,,\n8,A1,a,,,\n", "Row 3 .* row 2"),
        (",,a,60,,\n", "Row 2 of the labels names nobody"),
        ("7,,a,640,,\n", "Row 2 .* impossible age"),
    ],
)
def test_contradictions_name_their_rows(tmp_path: Path, rows: str, words: str) -> None:
    head = "patient_id,accession,diagnosis,age_years,sex,site\n"
    with pytest.raises(InputError, match=words):
        read_labels(write(tmp_path, head + rows))


def test_two_studies_of_one_person_may_differ_in_age_and_the_study_decides(tmp_path: Path) -> None:
    text = "patient_id,accession,diagnosis,age_years\n7,A1,a,60\n7,A2,a,62\n"
    labels = read_labels(write(tmp_path, text))
    assert [label.age_years for label in labels.find(["7"], ["a2"])] == [62, 60]
    assert labels.patients == {"a1": "7", "a2": "7"}
    assert labels.rows() == {2: ("7", "a1"), 3: ("7", "a2")}


def test_two_diagnoses_by_two_accessions_are_found_when_the_person_is_known(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path, "accession,diagnosis\nA1,a\nA2,b\n"))
    with pytest.raises(InputError, match=r"rows 2 and 3 .* diagnosis"):
        labels.find([], ["A1", "A2"])
