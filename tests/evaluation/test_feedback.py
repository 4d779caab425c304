"""Ratings become an AUC with its interval; what cannot be read is told by its line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.store import write_cohort
from rarescan.errors import InputError
from rarescan.evaluation.feedback import summarise
from rarescan.files import Recipe, write_json

HEAD = "scan_id,reader,real_or_synthetic,remark\n"


def cohort(root: Path, prefix: str, n: int) -> Path:
    scans = [
        Scan(
            scan_id=f"{prefix}{i}_ses-01",
            person_id=f"{prefix}{i}",
            path=f"sub-{prefix}{i}/anat/sub-{prefix}{i}_T1w.nii.gz",
            condition=Condition(diagnosis="control"),
        )
        for i in range(n)
    ]
    write_cohort(root, scans=scans, grid=None, partition={})
    recipe = Recipe(step="generate", schema=1, inputs={"of": prefix})
    write_json(root / "recipe.json", {"id": recipe.id, **recipe.as_dict()})
    return root


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("cohorts")
    return cohort(root / "real", "RS", 30), cohort(root / "batch", "SYN", 30)


def told(tmp_path: Path, cohorts: tuple[Path, Path], text: str | bytes):
    table = tmp_path / "readers.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return summarise(table, *cohorts)


def rows(values, reader="A"):
    """Return the rows of one reader: real ratings, then synthetic ones."""
    names = [f"RS{i}_ses-01" for i in range(len(values[0]))]
    names += [f"SYN{i}_ses-01" for i in range(len(values[1]))]
    every = [*values[0], *values[1]]
    return "".join(f"{name},{reader},{v},\n" for name, v in zip(names, every, strict=True))


def test_the_auc_is_that_of_scikit_learn_and_its_interval_holds_it(tmp_path, cohorts) -> None:
    random = np.random.default_rng(0)
    real, synthetic = random.integers(0, 80, 30), random.integers(20, 101, 30)
    (reader,) = told(tmp_path, cohorts, HEAD + rows((real, synthetic)))["readers"]
    expected = roc_auc_score([0] * 30 + [1] * 30, [*real, *synthetic])
    assert reader["auc"]["value"] == pytest.approx(expected, abs=1e-12)
    assert reader["auc"]["low"] < expected < reader["auc"]["high"]
    assert reader["auc"]["sufficient"]
    assert (reader["n_real"], reader["n_synthetic"]) == (30, 30)


def test_words_are_the_ends_of_the_scale(tmp_path, cohorts) -> None:
    by_number = told(tmp_path, cohorts, HEAD + rows(([0, 0, 100], [100, 100, 0])))
    by_word = told(tmp_path, cohorts, HEAD + rows((["no", "Real", "yes"], ["YES", "100%", "no"])))
    assert by_word["readers"] == by_number["readers"]
    assert by_number["readers"][0]["auc"]["value"] == pytest.approx(2 / 3)


def test_readers_with_scales_of_their_own_are_joined_by_rank(tmp_path, cohorts) -> None:
    bold = rows(([0, 10, 20], [80, 90, 100]), "bold")
    shy = rows(([49, 49.2, 49.4], [50, 50.2, 50.4]), "shy")
    found = told(tmp_path, cohorts, HEAD + bold + shy)
    assert [reader["reader"] for reader in found["readers"]] == ["reader 1", "reader 2"]
    assert found["together"]["value"] == 1
    assert found["together"]["n_real"] == 3
    assert not found["together"]["sufficient"], "three persons are few"


def test_a_person_rated_on_two_scans_counts_once(tmp_path, cohorts) -> None:
    twice = "sub-SYN0_T1w.nii.gz,A,100,\n"
    found = told(tmp_path, cohorts, HEAD + rows(([0, 50], [60, 70])) + twice)
    assert found["readers"][0]["n_synthetic"] == 2
    assert found["n_problems"] == 0


def test_files_may_be_named_by_path_and_semicolons_and_commas_are_read(tmp_path, cohorts) -> None:
    text = "﻿Scan_ID;Reader;Real_or_Synthetic\nC:\\x\\sub-SYN1_T1w.nii.gz;A;80,5\nRS1_ses-01;A;1\n"
    found = told(tmp_path, cohorts, text)
    assert (found["n_rows"], found["n_problems"]) == (2, 0)
    assert found["readers"][0]["n_synthetic"] == 1
    assert found["readers"][0]["auc"] is None, "one person of each kind says nothing"


def test_rows_that_cannot_be_used_are_told_with_their_line(tmp_path, cohorts) -> None:
    text = (
        HEAD
        + "RS1_ses-01,A,10,\n"
        + "nobody,A,10,\n"
        + "RS2_ses-01,A,perhaps,\n"
        + "\n"
        + "RS3_ses-01,A,101,\n"
        + "RS1_ses-01,A,20,\n"
        + "RS4_ses-01,,20,\n"
        + "RS5_ses-01,A,nan,\n"
        + "RS6_ses-01\n"
    )
    found = told(tmp_path, cohorts, text)
    assert [p["line"] for p in found["problems"]] == [3, 4, 6, 7, 8, 9, 10]
    assert "no such scan" in found["problems"][0]["problem"]
    assert "rated this scan before" in found["problems"][3]["problem"]
    assert (found["n_rows"], found["readers"][0]["n_real"]) == (8, 1)


def test_names_of_readers_and_of_real_persons_do_not_get_out(tmp_path, cohorts) -> None:
    text = HEAD + "RS1_ses-01,Dr Jones,10,fine\nSYN7_ses-01,Dr Jones,90,odd\nP,Dr Jones,9,\n"
    found = told(tmp_path, cohorts, text)
    assert "Jones" not in str(found)
    assert "RS1" not in str(found)
    assert found["remarks"] == [
        {"reader": "reader 1", "origin": "real", "person": "", "text": "fine"},
        {"reader": "reader 1", "origin": "synthetic", "person": "SYN7", "text": "odd"},
    ]


@settings(max_examples=30, deadline=None)
@given(remark=st.text(max_size=600))
def test_any_remark_becomes_one_short_printable_line(remark, cohorts, tmp_path_factory) -> None:
    import csv
    import io

    stream = io.StringIO()
    csv.writer(stream).writerow(["SYN1_ses-01", "A", "50", remark])
    try:
        data = (HEAD + stream.getvalue()).encode()
    except UnicodeEncodeError:
        return
    found = told(tmp_path_factory.mktemp("one"), cohorts, data)
    for one in found["remarks"]:
        assert len(one["text"]) <= 300
        assert one["text"].isprintable()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scan,reader\nRS1,A\n", "no column 'scan_id'"),
        ("", "no column 'scan_id'"),
        (HEAD, "No rating of readers.csv could be used"),
        (HEAD + "nobody,A,5,\n", "Line 2: the run and the batch have no such scan"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        (HEAD + '"' + "x" * 200_000 + '",A,1,\n', "is no CSV"),
    ],
)
def test_a_file_that_is_no_table_of_ratings_is_refused_with_a_remedy(
    tmp_path, cohorts, text, says
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        told(tmp_path, cohorts, text)
    assert caught.value.remedy


def test_a_file_that_is_not_there_is_told(tmp_path, cohorts) -> None:
    with pytest.raises(InputError, match="There is no"):
        summarise(tmp_path / "none.csv", *cohorts)
