"""Few patients out of many: who trains, who is tested, what knows no image."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from picture_cohort import write_pictures

from rarescan.classifiers.spec import ClassifyConfig
from rarescan.classifiers.thinned import COVARIATES, THUMBNAILS, baseline_rows, thinned_partition
from rarescan.cohort.contracts import Cohort, Question
from rarescan.cohort.store import open_cohort, write_cohort, write_metadata
from rarescan.errors import SettingError

ASKED = Question(positive="ill", negative="well")
FOLDS = ClassifyConfig(classes=("well", "ill"), folds=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("thinned") / "prepared", edge=16, persons=60)


@pytest.fixture(scope="module")
def cohort(root: Path) -> Cohort:
    return open_cohort(root)


def ill(cohort: Cohort) -> set[str]:
    return {s.person_id for s in cohort.scans if s.condition.diagnosis == "ill"}


def test_so_many_patients_train_and_the_rest_of_the_training_patients_are_tested(
    cohort: Cohort,
) -> None:
    parts = thinned_partition(cohort, FOLDS, ASKED, 6, (0, 0))
    assert set(parts) == {s.person_id for s in cohort.scans}
    counted = Counter((person in ill(cohort), part) for person, part in parts.items())
    # 30 of each: a fold of 10, and a fifth of the other 20 held back.
    assert counted == {
        (True, "train"): 6,
        (False, "train"): 16,
        (True, "validation"): 4,
        (False, "validation"): 4,
        (True, "test"): 10 + 20 - 4 - 6,
        (False, "test"): 10,
    }


def test_every_healthy_person_is_tested_once_a_repeat(cohort: Cohort) -> None:
    tested: Counter[str] = Counter()
    for fold in range(3):
        parts = thinned_partition(cohort, FOLDS, ASKED, 6, (0, fold))
        tested.update(p for p, part in parts.items() if part == "test" and p not in ill(cohort))
    assert set(tested.values()) == {1}
    assert len(tested) == 30


def test_the_patients_of_a_smaller_number_are_among_those_of_a_larger_one(cohort: Cohort) -> None:
    few, many = (thinned_partition(cohort, FOLDS, ASKED, n, (1, 2)) for n in (5, 14))
    train = [{p for p, part in parts.items() if part == "train"} for parts in (few, many)]
    assert train[0] < train[1]
    held = [{p for p, part in parts.items() if part == "validation"} for parts in (few, many)]
    assert held[0] == held[1]


def test_another_repeat_takes_other_patients(cohort: Cohort) -> None:
    one, other = (thinned_partition(cohort, FOLDS, ASKED, 6, (repeat, 0)) for repeat in (0, 1))
    assert one != other


def test_more_patients_than_a_fold_has_are_refused(cohort: Cohort) -> None:
    with pytest.raises(SettingError, match="40 patients are to train"):
        thinned_partition(cohort, FOLDS, ASKED, 40, (0, 0))


def told(root: Path, cohort: Cohort, ages: dict[str, float]) -> Cohort:
    """Return the cohort with a column that tells the diagnosis or not, and one that is constant."""
    partition = thinned_partition(cohort, FOLDS, ASKED, 10, (0, 0))
    write_cohort(root, scans=cohort.scans, grid=cohort.grid, partition=partition)
    write_metadata(
        root, [{"scan_id": s.scan_id, "nwbv": ages[s.person_id], "width": 64} for s in cohort.scans]
    )
    return open_cohort(root)


def test_a_covariate_that_tells_the_diagnosis_finds_every_held_out_person(
    root: Path, cohort: Cohort
) -> None:
    values = {s.person_id: 0.7 + 0.1 * (s.person_id in ill(cohort)) for s in cohort.scans}
    rows = baseline_rows(told(root, cohort, values), ASKED)
    assert {row["arm"] for row in rows} == {COVARIATES, THUMBNAILS}
    found = [row for row in rows if row["arm"] == COVARIATES]
    assert all((row["score"] > 0.5) == row["truth"] for row in found)
    assert {row["part"] for row in found} == {"validation", "test"}


def test_the_diagnosis_of_a_held_out_person_changes_no_score(root: Path, cohort: Cohort) -> None:
    random = np.random.default_rng(0)
    asked = told(root, cohort, {s.person_id: random.normal() for s in cohort.scans})
    before = baseline_rows(asked, ASKED)
    turned = [
        s
        if asked.partition[s.person_id] == "train"
        else replace(s, condition=replace(s.condition, diagnosis="ill"))
        for s in asked.scans
    ]
    after = baseline_rows(replace(asked, scans=tuple(turned)), ASKED)
    assert [row["score"] for row in after] == [row["score"] for row in before]
    assert [row["truth"] for row in after] != [row["truth"] for row in before]
