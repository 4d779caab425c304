"""Drift is found where there is some, rarely where there is none, and never among too few."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact

from rarescan.cohort.contracts import Condition, Scan, brain_grid
from rarescan.cohort.store import create_volumes, open_cohort, tables, write_cohort
from rarescan.errors import InputError
from rarescan.evaluation import drift, monitor
from rarescan.evaluation.drift import APPEARANCE, QUALITY, Look
from rarescan.evaluation.metrics import frozen_bandwidth, mmd
from rarescan.evaluation.spec import MonitorConfig
from rarescan.files import Recipe, read_json, write_json

CONFIG = MonitorConfig(seed=5)
GRID = brain_grid(8)


def look(n: int, seed: int, *, shift: float = 0.0, column: int | None = None, **of) -> Look:
    """Return invented measures of n persons; those of one column (or all) moved."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(n, len(APPEARANCE)))
    values[:, slice(None) if column is None else column] += shift
    ages = of.pop("ages", 60) + random.normal(0, 8, n)
    share = of.pop("patients", 0.3)
    conditions = tuple(
        Condition(
            diagnosis="bvFTD" if i < share * n else "control",
            age_years=float(age),
            sex="F" if i % 2 else "M",
            site=of.get("site", "A"),
        )
        for i, age in enumerate(ages)
    )
    quality = random.normal(size=(n, len(QUALITY)))
    return Look(conditions=conditions, appearance=values, quality=quality)


def found(new: Look, reference: Look | None = None) -> dict:
    return drift.drift(reference or look(100, 1), new, CONFIG)


def test_the_distance_is_the_unbiased_mmd_in_units_of_all_persons() -> None:
    reference, new = look(60, 1), look(20, 2, shift=0.3)
    (row, *_) = drift.drift(reference, new, CONFIG)["tests"]
    everyone = np.concatenate([reference.appearance, new.appearance])
    scaled = everyone / everyone.std(axis=0)
    expected = mmd(scaled[:60], scaled[60:], sigma2=frozen_bandwidth(scaled))
    assert row["name"] == "appearance"
    assert row["value"] == pytest.approx(expected.value, rel=1e-9)
    assert row["high"] - row["value"] == pytest.approx(1.96 * expected.se, rel=1e-3)


def test_permutations_give_the_values_that_relabelling_the_persons_gives() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(12, 3))
    kernel = np.exp(-((rows[:, None] - rows[None]) ** 2).sum(-1) / 2)
    drawn = drift._permuted(kernel, 4, np.random.default_rng(3))
    marks = np.zeros((12, 999))
    marks[:4] = 1
    marks = np.random.default_rng(3).permuted(marks, axis=0) > 0
    for column in range(20):
        new, old = rows[marks[:, column]], rows[~marks[:, column]]
        assert drawn[column] == pytest.approx(mmd(old, new, sigma2=1.0).value, abs=1e-12)


def test_the_p_of_a_mix_is_that_of_fishers_exact_test() -> None:
    reference, new = look(60, 1, patients=0.3), look(20, 2, patients=0.5)
    row = next(r for r in drift.drift(reference, new, CONFIG)["tests"] if r["name"] == "diagnosis")
    exact = fisher_exact([[18, 42], [10, 10]]).pvalue
    assert row["value"] == pytest.approx(0.5 - 0.3)
    # Both count tables at least as far off; Fisher by likelihood, ours by difference of shares.
    assert row["p"] == pytest.approx(exact, abs=0.05)


def test_every_kind_of_drift_is_found_and_named() -> None:
    cases = {
        "appearance": look(30, 2, shift=0.8),
        "age": look(30, 3, ages=72),
        "diagnosis": look(30, 4, patients=0.9),
        "site": look(30, 5, site="Z"),
    }
    for name, new in cases.items():
        result = found(new)
        assert result["verdict"] == "drift", name
        assert name in [row["name"] for row in result["tests"] if row["drift"]]
    assert found(cases["site"])["unknown"] == {"diagnosis": 0, "site": 30}


def test_a_single_measure_that_moved_stands_first() -> None:
    result = found(look(40, 6, shift=1.5, column=APPEARANCE.index("fine_detail")))
    first = result["features"][0]
    assert first["name"] == "fine_detail"
    assert first["p_holm"] < 0.001
    assert first["low"] > 0.5
    assert result["features"][1]["p_holm"] > 0.05


def test_scans_without_drift_are_rarely_accused() -> None:
    accused = [
        drift.drift(look(60, 2 * i), look(25, 2 * i + 1), CONFIG)["verdict"] for i in range(20)
    ]
    # 5 % of 20 is 1; more than 4 has a chance of 0.3 % at that level.
    assert accused.count("drift") <= 4
    assert set(accused) <= {"drift", "no_drift_seen"}


def test_too_few_new_persons_are_insufficient_whatever_they_look_like() -> None:
    result = found(look(9, 2, shift=50))
    assert result["verdict"] == "insufficient"
    assert result["tests"] == result["features"] == []
    assert found(look(30, 1), look(5, 2))["verdict"] == "insufficient"


def test_what_these_numbers_would_have_shown_is_said() -> None:
    # A two-sample z-test with 80 % power at 5 %: 2.80 standard errors of the difference.
    expected = (1.959964 + 0.841621) * (1 / 100 + 1 / 25) ** 0.5
    assert found(look(25, 3))["detectable_sd"] == pytest.approx(expected, rel=1e-4)


def test_unknown_ages_sites_and_quality_are_left_out_not_counted_as_alike() -> None:
    new = look(30, 2)
    bare = tuple(replace(c, age_years=None, site=None, sex=None) for c in new.conditions)
    result = found(replace(new, conditions=bare, quality=None))
    assert [row["name"] for row in result["tests"]] == ["appearance", "diagnosis"]
    gaps = new.quality.copy()
    gaps[:5, 0] = np.nan
    result = found(replace(new, quality=gaps))
    row = next(r for r in result["tests"] if r["name"] == "quality")
    assert row["n_new"] == 25


def test_the_same_looks_give_the_same_numbers() -> None:
    assert found(look(25, 3)) == found(look(25, 3))


def test_constant_measures_are_no_drift_and_no_error() -> None:
    reference, new = look(30, 1), look(30, 2)
    same = [replace(one, appearance=np.ones_like(one.appearance)) for one in (reference, new)]
    names = [row["name"] for row in drift.drift(*same, CONFIG)["tests"]]
    assert "appearance" not in names
    assert "quality" in names


@pytest.fixture
def prepared(tmp_path: Path, brains):
    """Return a prepared cohort of four persons, the first with two scans, one without quality."""
    names = ["P0", "P0", "P1", "P2", "P3"]
    scans = [
        Scan(
            scan_id=f"s{i}",
            person_id=p,
            condition=Condition(diagnosis="control", age_years=50.0 + i),
        )
        for i, p in enumerate(names)
    ]
    root = tmp_path / "prepared"
    write_cohort(root, scans=scans, grid=GRID, partition={})
    create_volumes(root, 5, GRID)[:] = brains(5, 3)
    recipe = Recipe(step="prepare", schema=1)
    write_json(root / "recipe.json", {"id": recipe.id, **recipe.as_dict()})
    rows = [{"scan_id": f"s{i}", **dict.fromkeys(QUALITY, float(i))} for i in range(4)]
    pd.DataFrame(rows).to_parquet(tables(root) / "qc.parquet")
    return open_cohort(root)


def test_a_look_has_one_row_a_person_the_mean_of_its_scans(prepared) -> None:
    seen = monitor.look_at(prepared, {"P0", "P3"})
    assert len(seen) == 2
    alone = [
        monitor._measure(monitor._Chunk(cohort=prepared, grid=GRID, rows=(i,))) for i in (0, 1)
    ]
    assert seen.appearance[0] == pytest.approx(np.mean(alone, axis=0)[0], rel=1e-6)
    assert seen.appearance.shape == (2, len(APPEARANCE))
    assert seen.quality[0].tolist() == [0.5] * len(QUALITY)
    assert np.isnan(seen.quality[1]).all()
    assert seen.conditions[0].age_years == 50


def test_a_look_at_nobody_is_an_error_with_a_remedy(prepared) -> None:
    with pytest.raises(InputError, match="no person to look at"):
        monitor.look_at(prepared, {"Q"})


def scored(outcome: str, value: float) -> dict:
    score = {"name": "mmd", "value": value, "low": 0.0, "high": 2 * value, "n_real": 20}
    return {
        "floor": {"mmd": {**score, "value": 0.001}},
        "candidates": {
            "vae": {
                "scores": {"domain-train": {"mmd": score}},
                "gates": [{"name": "spread", "outcome": outcome, "reason": "so it is"}],
            }
        },
    }


@pytest.mark.parametrize(("outcome", "said"), [("pass", "holds"), ("fail", "fails")])
def test_a_champion_fails_where_a_gate_fails_now(outcome: str, said: str) -> None:
    judged = monitor.champion_now(
        scored("pass", 0.01), scored(outcome, 0.02), "vae", "domain-train"
    )
    assert judged["outcome"] == said
    assert judged["failed"] == (["spread"] if said == "fails" else [])
    assert [judged["mmd"][when]["value"] for when in ("then", "now")] == [0.01, 0.02]


@pytest.mark.parametrize("new", [look(30, 2, shift=1.0), look(30, 3), look(6, 4)])
def test_the_page_says_the_verdict_and_needs_nothing_from_outside(tmp_path: Path, new) -> None:
    champion = monitor.champion_now(
        scored("pass", 0.01), scored("fail", 0.02), "vae", "domain-train"
    )
    extra = {"champion": champion, "phantom": True, "ids": {"cohort": "abc"}}
    content = found(new) | extra
    monitor.write_page(tmp_path, content)
    text = (tmp_path / monitor.PAGE).read_text()
    said = {
        "drift": "New scans differ from those that the generator learned from.",
        "no_drift_seen": "No difference between new scans and training scans was found.",
        "insufficient": "Too few new persons to say whether scans have changed.",
    }
    assert said[content["verdict"]] in text
    assert "do not generate from it" in text
    assert "<script" not in text
    assert not any(word in text for word in ("Undefined", ">None<", "nan"))
    assert read_json(tmp_path / monitor.RESULT)["verdict"] == content["verdict"]


def test_why_a_champion_was_not_judged_stands_on_the_page(tmp_path: Path) -> None:
    extra = {"champion": {"reason": "The run has no champion."}, "phantom": False, "ids": {}}
    monitor.write_page(tmp_path, found(look(30, 2)) | extra)
    assert (
        "It was not judged again. The run has no champion." in (tmp_path / monitor.PAGE).read_text()
    )
