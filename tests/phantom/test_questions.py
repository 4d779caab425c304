from pathlib import Path

import numpy as np
import pytest

from rarescan.cohort.contracts import Cohort
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.phantom.persons import REGIONS
from rarescan.phantom.questions import DrawConfig, draw_pattern, write_draw

SMALL = {"patients": 12, "controls": 36, "oracle_patients": 24, "test": 24, "spacing_mm": 8}


def _drawn(folder: Path, question: str, number: int = 0) -> tuple[Cohort, Cohort]:
    cohort, oracle = write_draw(folder, DrawConfig(question=question, number=number, **SMALL))
    return open_cohort(cohort), open_cohort(oracle)


def _shares(cohort: Cohort, part: str) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for i in cohort.indices(part):
        scan = cohort.scans[i]
        key = (scan.condition.diagnosis, scan.condition.site)
        found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize("question", ["few", "scanner", "confounded", "age", "none"])
def test_nobody_trains_and_is_tested(question: str, tmp_path: Path) -> None:
    cohort, oracle = _drawn(tmp_path, question)
    train = {cohort.scans[i].person_id for i in cohort.indices("train")}
    test = {cohort.scans[i].person_id for i in cohort.indices("test")}
    assert len(train) == 48
    assert not train & test
    assert not {s.person_id for s in oracle.scans} & test
    assert open_volumes(cohort).shape == (len(cohort.scans), 20, 24, 20)


def test_the_oracle_of_few_patients_has_more_of_them(tmp_path: Path) -> None:
    cohort, oracle = _drawn(tmp_path, "few")
    patients = [s.person_id for s in cohort.scans if s.condition.diagnosis == "bvFTD"]
    more = [s.person_id for s in oracle.scans if s.condition.diagnosis == "bvFTD"]
    assert len(more) == 24
    assert set(patients[:12]) < set(more)


def test_most_patients_come_from_one_site_and_test_persons_do_not(tmp_path: Path) -> None:
    cohort, _ = _drawn(tmp_path, "confounded")
    assert _shares(cohort, "train") == {
        ("bvFTD", "B"): 1, ("bvFTD", "A"): 11, ("control", "A"): 4, ("control", "B"): 32,
    }  # fmt: skip
    assert set(_shares(cohort, "test").values()) == {6}


def test_the_same_person_at_both_sites_differs_by_the_scanner_alone(tmp_path: Path) -> None:
    _, oracle = _drawn(tmp_path, "confounded")
    volumes = open_volumes(oracle)
    at = {(s.person_id, s.site): i for i, s in enumerate(oracle.scans)}
    persons = sorted({s.person_id for s in oracle.scans})
    for person in persons[:6]:
        a, b = volumes[at[person, "A"]], volumes[at[person, "B"]]
        both = (a > 0) & (b > 0)
        assert both.sum() / ((a > 0) | (b > 0)).sum() > 0.97
        # B blurs more and shows fluid brighter, so that its darkest brain voxels are brighter.
        assert np.quantile(b[both], 0.05) > np.quantile(a[both], 0.05)


def test_nobody_trained_on_the_scanners_of_the_test_persons(tmp_path: Path) -> None:
    cohort, oracle = _drawn(tmp_path, "scanner")
    sites = {site for _, site in _shares(cohort, "train")}
    tested = {site for _, site in _shares(cohort, "test")}
    assert sites == {"T1", "T2"}
    assert tested == {"T1", "T2", "U1", "U2", "U3"}
    assert {s.site for s in oracle.scans} == {"U1", "U2", "U3"}


def test_training_patients_are_old_and_controls_young(tmp_path: Path) -> None:
    cohort, _ = _drawn(tmp_path, "age")
    ages = {
        d: [
            cohort.scans[i].condition.age_years
            for i in cohort.indices("train")
            if cohort.scans[i].condition.diagnosis == d
        ]
        for d in ("bvFTD", "control")
    }
    assert sum(age >= 66 for age in ages["bvFTD"]) == 11
    assert sum(age < 62 for age in ages["control"]) == 33


def test_patients_of_none_are_controls_by_another_name(tmp_path: Path) -> None:
    cohort, _ = _drawn(tmp_path, "none")
    assert {s.condition.severity for s in cohort.scans} == {0.0}
    assert set(cohort.diagnoses()) == {"bvFTD", "control"}


def test_every_draw_has_its_own_persons_and_its_own_disease_of_equal_strength() -> None:
    patterns = [draw_pattern(DrawConfig(number=n)) for n in range(200)]
    strengths = np.linalg.norm(patterns, axis=1)
    assert np.allclose(strengths, strengths[0])
    assert np.linalg.norm((1.0, 0.75, 0.9, 0.15, 0.0, 0.25)) == pytest.approx(
        strengths[0], rel=0.01
    )
    mean = np.mean(patterns, axis=0)
    assert len(mean) == len(REGIONS)
    assert mean.max() / mean.min() < 1.25  # no region is favoured
