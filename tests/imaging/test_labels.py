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
    found = labels.find("00a1", [])
    assert found is not None
    assert (found.diagnosis, found.age_years, found.sex, found.site) == ("bvFTD", 63.4, "F", "Ulm")
    other = labels.find("unseen", [None, "acc9"])
    assert other is not None
    assert (other.diagnosis, other.age_years, other.sex, other.site) == (
        "control",
        None,
        None,
        None,
    )
    assert labels.find("0a1", ["00A1"]) is None


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
