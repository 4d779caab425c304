from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from rarescan.cohort.contracts import Cohort, Condition, Scan
from rarescan.evaluation.utility_measures import results_of

SITES = ("A", "B", "U1", "U2")


def _cohort(n: int = 240) -> Cohort:
    """Return a third of training persons, patients from A and controls from B, and test persons."""
    random = np.random.default_rng(0)
    scans, parts = [], {}
    for i in range(n):
        training, sick = i % 3 == 0, i % 5 < 2
        site = ("A" if sick else "B") if training else SITES[i // 5 % 4]
        condition = Condition(
            diagnosis="bvFTD" if sick else "control", site=site, age_years=random.uniform(50, 78)
        )
        scans.append(Scan(scan_id=f"P{i}", person_id=f"P{i}", site=site, condition=condition))
        parts[f"P{i}"] = "train" if training else "test"
    return Cohort(
        cohort_id="",
        root=Path(),
        grid=None,
        scans=tuple(scans),
        partition=parts,  # type: ignore[arg-type]
    )


def _predictions(cohort: Cohort) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    return [
        {
            "person_id": scan.person_id,
            "part": cohort.partition[scan.person_id],
            "truth": int(scan.condition.diagnosis == "bvFTD"),
            "arm": arm,
            "model": "network",
            "score": random.uniform()
            + 0.3 * (scan.condition.diagnosis == "bvFTD")
            + 0.02 * (scan.condition.age_years or 0)
            + 0.5 * (scan.site == "A"),
        }
        for arm in ("real", "strong")
        for scan in cohort.scans
    ]


def _found(question: str) -> tuple[dict[str, float], Cohort, list[dict[str, Any]]]:
    cohort = _cohort()
    rows = _predictions(cohort)
    found = results_of(rows, cohort, {"real": "free", "strong": "free"}, question)
    assert [(r["arm"], r["kind"], r["model"]) for r in found] == [
        ("real", "free", "network"),
        ("strong", "free", "network"),
    ]
    tested = [r for r in rows if r["arm"] == "strong" and r["part"] == "test"]
    return found[1]["measures"], cohort, tested


def _auc(rows: list[dict[str, Any]]) -> float:
    return float(roc_auc_score([r["truth"] for r in rows], [r["score"] for r in rows]))


def _of(cohort: Cohort, row: dict[str, Any]) -> Condition:
    return next(s.condition for s in cohort.scans if s.person_id == row["person_id"])


def test_only_test_persons_are_measured() -> None:
    measures, _, tested = _found("few")
    assert measures == {"auc": pytest.approx(_auc(tested))}


def test_an_unseen_scanner_is_one_that_nobody_trained_on() -> None:
    measures, cohort, tested = _found("scanner")
    unseen = [r for r in tested if (_of(cohort, r).site or "").startswith("U")]
    known = [r for r in tested if r not in unseen]
    assert measures["auc"] == pytest.approx(_auc(unseen))
    assert measures["auc_same"] == pytest.approx(_auc(known))


def test_the_shortcut_is_the_site_of_the_training_patients_among_test_controls() -> None:
    measures, cohort, tested = _found("confounded")
    controls = [r for r in tested if not r["truth"]]
    at_a = [_of(cohort, r).site == "A" for r in controls]
    assert measures["shortcut"] == pytest.approx(
        roc_auc_score(at_a, [r["score"] for r in controls])
    )
    within = [_auc([r for r in tested if _of(cohort, r).site == site]) for site in SITES]
    assert measures["auc_within"] == pytest.approx(np.mean(within))


def test_old_controls_are_judged_at_the_threshold_of_the_young() -> None:
    measures, cohort, tested = _found("age")
    controls = [r for r in tested if not r["truth"]]
    age = np.array([_of(cohort, r).age_years for r in controls])
    score = np.array([r["score"] for r in controls])
    assert measures["age_correlation"] == pytest.approx(stats.spearmanr(score, age).statistic)
    threshold = np.quantile(score[age < 62], 0.8)
    assert measures["specificity_old"] == pytest.approx(np.mean(score[age >= 66] <= threshold))
    assert measures["specificity_old"] < 0.8
