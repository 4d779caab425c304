"""What age or site alone gives a score can be taken off again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

from rarescan.classifiers.adjusted import ADJUSTMENT, Adjustment
from rarescan.cohort.contracts import Condition
from rarescan.errors import InputError

PERSON = Condition(diagnosis="control")


def _persons(n: int = 60) -> list[Condition]:
    rng = np.random.default_rng(0)
    ages, sites = rng.uniform(45, 82, n), rng.choice(["A", "B"], n)
    return [
        replace(PERSON, age_years=float(a), site=str(s)) for a, s in zip(ages, sites, strict=True)
    ]


def test_a_slope_on_age_that_was_planted_is_taken_off() -> None:
    persons = _persons()
    ages = np.array([p.age_years for p in persons])
    own = np.random.default_rng(1).normal(size=len(ages))
    own -= np.polyval(np.polyfit(ages, own, 1), ages)  # what age does not explain
    scores = expit(own + 0.1 * (ages - 60)).astype(np.float32)
    found = Adjustment.of("age", scores, persons)
    assert found.per_year == pytest.approx(0.1, rel=1e-4)
    left = logit(found.apply(scores, persons).astype(float))
    assert np.polyfit(ages, left, 1)[0] == pytest.approx(0, abs=1e-4)
    assert left - left.mean() == pytest.approx(own, abs=1e-3)


def test_sites_have_one_mean_afterwards_and_ranks_within_a_site_stay() -> None:
    persons = _persons()
    sites = np.array([p.site for p in persons])
    own = np.random.default_rng(2).normal(size=len(sites))
    scores = expit(own + 2.0 * (sites == "A")).astype(np.float32)
    left = logit(Adjustment.of("site", scores, persons).apply(scores, persons).astype(float))
    assert left[sites == "A"].mean() == pytest.approx(left[sites == "B"].mean(), abs=1e-4)
    for site in "AB":
        there = sites == site
        assert (np.argsort(left[there]) == np.argsort(own[there])).all()


def test_unknown_age_and_unseen_site_keep_their_score() -> None:
    scores = np.linspace(0.1, 0.9, 60, dtype=np.float32)
    stranger = [replace(PERSON, site="C")]
    for how in ("age", "site"):
        adjusted = Adjustment.of(how, scores, _persons()).apply(np.float32([0.3]), stranger)
        assert adjusted == pytest.approx([0.3], abs=1e-6)


def test_certain_scores_stay_finite(tmp_path: Path) -> None:
    scores = np.tile(np.float32([0, 1]), 30)
    found = Adjustment.of("age", scores, _persons())
    assert np.isfinite(found.apply(scores, _persons())).all()
    found.save(tmp_path)
    assert json.loads((tmp_path / ADJUSTMENT).read_text())["per_year"] == found.per_year


@pytest.mark.parametrize("how", ["age", "site"])
def test_controls_without_ages_or_sites_are_an_error_with_a_remedy(how: str) -> None:
    with pytest.raises(InputError, match="Leave the arm"):
        Adjustment.of(how, np.full(9, 0.5, np.float32), [PERSON] * 9)  # type: ignore[arg-type]
