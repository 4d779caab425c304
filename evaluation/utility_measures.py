"""What one arm reached in one draw: AUC, and what each question asks besides.

`results_of` is the way in. An unseen scanner is one from which no training person comes; the
shortcut is the site from which most training patients come; young and old part as in the draws.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from rarescan.cohort.contracts import Cohort
from rarescan.evaluation.intervals import placements

Array = npt.NDArray[np.float64]

YOUNG_BELOW, OLD_FROM = 62.0, 66.0
"""Ages, as `phantom.questions` draws the groups of the question `age`."""
_SPECIFICITY = 0.8


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Test persons of one arm, one value a person."""

    score: Array
    patient: npt.NDArray[np.bool_]
    site: npt.NDArray[np.str_]
    age_years: Array

    def auc(self, chosen: npt.NDArray[np.bool_] | None = None) -> float:
        """Return the area under the ROC curve of some of the persons; all without."""
        some = np.ones(len(self.score), bool) if chosen is None else chosen
        return _auc(self.score[some & self.patient], self.score[some & ~self.patient])


def _auc(positive: Array, negative: Array) -> float:
    return float(placements(positive[None], negative[None])[0].mean())


def results_of(
    predictions: Iterable[Mapping[str, Any]],
    cohort: Cohort,
    kinds: Mapping[str, str],
    question: str,
) -> list[dict[str, Any]]:
    """Return `arm`, `kind`, `model` and `measures` of every fit.

    Parameters
    ----------
    predictions : iterable of mapping
        person_id, part, truth (0 or 1), arm, model, score; rows of test persons count.
    cohort : Cohort
        Knows everybody's site and age.
    kinds : mapping of str to str
        Arm -> free, generative, placebo or oracle.
    question : str
        few, scanner, confounded, age or none (`phantom.questions`).

    Returns
    -------
    list of dict
        `measures` hold `auc` on the test persons (`scanner`: those of unseen scanners, and
        `auc_same` on the others); `confounded`: `auc_within`, the mean inside a site, and
        `shortcut`, the AUC for the site of most training patients among test controls; `age`:
        `age_correlation`, of the scores' ranks with age among test controls, and
        `specificity_old`, at the threshold where 0.8 of the young controls are told.
    """
    fits: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in predictions:
        if row["part"] == "test":
            fits.setdefault((row["arm"], row["model"]), []).append(row)
    found = []
    for (arm, model), rows in fits.items():
        measures = _measured(_tested(rows, cohort), cohort, question)
        found.append({"arm": arm, "kind": kinds[arm], "model": model, "measures": measures})
    return found


def _tested(rows: Sequence[Mapping[str, Any]], cohort: Cohort) -> Tested:
    known = {scan.person_id: scan.condition for scan in cohort.scans}
    conditions = [known[row["person_id"]] for row in rows]
    return Tested(
        score=np.array([row["score"] for row in rows], float),
        patient=np.array([row["truth"] for row in rows], bool),
        site=np.array([condition.site or "" for condition in conditions]),
        age_years=np.array([condition.age_years or np.nan for condition in conditions]),
    )


def _measured(tested: Tested, cohort: Cohort, question: str) -> dict[str, float]:
    if question == "scanner":
        known = np.isin(tested.site, [cohort.scans[i].site or "" for i in cohort.indices("train")])
        return {"auc": tested.auc(~known), "auc_same": tested.auc(known)}
    plain = {"auc": tested.auc()}
    if question == "confounded":
        return plain | _of_sites(tested, cohort)
    if question == "age":
        return plain | _of_ages(tested)
    return plain


def _of_sites(tested: Tested, cohort: Cohort) -> dict[str, float]:
    training = [cohort.scans[i] for i in cohort.indices("train")]
    rare = min(Counter(scan.condition.diagnosis for scan in training).items(), key=lambda n: n[1])
    sites = Counter(scan.site for scan in training if scan.condition.diagnosis == rare[0])
    there = tested.site == sites.most_common(1)[0][0]
    control = ~tested.patient
    within = [tested.auc(tested.site == site) for site in np.unique(tested.site)]
    return {
        "auc_within": float(np.mean(within)),
        "shortcut": _auc(tested.score[control & there], tested.score[control & ~there]),
    }


def _of_ages(tested: Tested) -> dict[str, float]:
    control = ~tested.patient
    score, age = tested.score[control], tested.age_years[control]
    threshold = np.quantile(score[age < YOUNG_BELOW], _SPECIFICITY)
    return {
        "age_correlation": float(stats.spearmanr(score, age).statistic),
        "specificity_old": float((score[age >= OLD_FROM] <= threshold).mean()),
    }
