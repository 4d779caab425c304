from pathlib import Path

import numpy as np
import pytest

from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.phantom.persons import REGIONS
from rarescan.phantom.questions import DrawConfig, Seen, draw_pattern, draw_persons, write_draw

SMALL = {"patients": 12, "controls": 36, "oracle_patients": 24, "test": 24, "spacing_mm": 8}
QUESTIONS = ("few", "scanner", "confounded", "age", "none")


def _drawn(question: str) -> tuple[list[Seen], list[Seen]]:
    return draw_persons(DrawConfig(question=question, **SMALL))


def _ids(seen: list[Seen], part: str = "train", diagnosis: str = "") -> list[str]:
    return [
        s.person.person_id for s in seen if s.part == part and diagnosis in ("", s.person.diagnosis)
    ]


def _shares(seen: list[Seen], part: str) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for s in seen:
        if s.part == part:
            key = (s.person.diagnosis, s.site)
            found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize("question", QUESTIONS)
def test_nobody_trains_and_is_tested(question: str) -> None:
    cohort, oracle = _drawn(question)
    assert len(set(_ids(cohort))) == 48
    assert not set(_ids(cohort)) & set(_ids(cohort, "test"))
    assert not set(_ids(oracle)) & set(_ids(cohort, "test"))


def test_the_oracle_of_few_patients_has_more_of_them() -> None:
    cohort, oracle = _drawn("few")
    assert len(_ids(oracle, diagnosis="bvFTD")) == 24
    assert set(_ids(cohort, diagnosis="bvFTD")) < set(_ids(oracle, diagnosis="bvFTD"))


def test_most_patients_come_from_one_site_and_test_persons_do_not() -> None:
    cohort, _ = _drawn("confounded")
    assert _shares(cohort, "train") == {
        ("bvFTD", "B"): 1, ("bvFTD", "A"): 11, ("control", "A"): 4, ("control", "B"): 32,
    }  # fmt: skip
    assert set(_shares(cohort, "test").values()) == {6}


def test_the_same_person_at_both_sites_differs_by_the_scanner_alone(tmp_path: Path) -> None:
    few = DrawConfig(question="confounded", patients=4, controls=20, test=20, spacing_mm=8)
    written, folder = write_draw(tmp_path, few)
    assert len(open_cohort(written).indices("test")) == 20
    oracle, volumes = open_cohort(folder), open_volumes(open_cohort(folder))
    at = {(s.person_id, s.site): i for i, s in enumerate(oracle.scans)}
    for person in sorted({s.person_id for s in oracle.scans})[:6]:
        a, b = volumes[at[person, "A"]], volumes[at[person, "B"]]
        both = (a > 0) & (b > 0)
        assert both.sum() / ((a > 0) | (b > 0)).sum() > 0.97
        # B shows fluid brighter, so that its darkest brain voxels are brighter.
        assert np.quantile(b[both], 0.05) > np.quantile(a[both], 0.05)


def test_nobody_trained_on_the_scanners_of_the_test_persons() -> None:
    cohort, oracle = _drawn("scanner")
    assert {site for _, site in _shares(cohort, "train")} == {"T1", "T2"}
    assert {site for _, site in _shares(cohort, "test")} == {"T1", "T2", "U1", "U2", "U3"}
    assert {s.site for s in oracle} == {"U1", "U2", "U3"}


def test_training_patients_are_old_and_controls_young() -> None:
    cohort, _ = _drawn("age")
    ages = {
        d: [s.person.age_years for s in cohort if s.part == "train" and s.person.diagnosis == d]
        for d in ("bvFTD", "control")
    }
    assert sum(age >= 66 for age in ages["bvFTD"]) == 11
    assert sum(age < 62 for age in ages["control"]) == 33


def test_patients_of_none_are_controls_by_another_name() -> None:
    cohort, _ = _drawn("none")
    assert {s.person.severity for s in cohort} == {0.0}
    assert {s.person.diagnosis for s in cohort} == {"bvFTD", "control"}


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
