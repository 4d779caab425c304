"""Do synthetic scans show what was asked of them? Judged by a network that saw real persons only.

`condition_fidelity` compares the diagnosis asked for with the one that the network sees;
`age_fidelity` the age asked for with the one that the region vector tells. Beside each stands
what the same judge reaches on real validation persons.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import FloatArray, Question, Score
from rarescan.evaluation.intervals import Z95, auc_interval, clopper_pearson

Array = npt.NDArray[np.float64]

_RIDGE = 1.0


def condition_fidelity(
    probabilities: FloatArray, diagnoses: Sequence[str], question: Question, *, synthetic: bool
) -> dict[str, Any]:
    """Return agreement (overall, by diagnosis) and AUC of the network on one set of persons.

    Parameters
    ----------
    probabilities : float32 array, shape (n, 2)
        Negative, positive; one row a person.
    diagnoses : sequence of str
        Of each person: the true one, or the one asked for.
    question : Question
        Persons with another diagnosis than its two are left out.
    synthetic : bool
        Whether the persons are synthetic.

    Returns
    -------
    dict
        `agreement`: Score or None; `by_diagnosis`: diagnosis -> Score; `auc`: Score or None
        where a diagnosis is missing.
    """
    labels = np.array(diagnoses)
    says_positive = probabilities[:, 1] > 0.5
    asked = {question.negative: False, question.positive: True}
    right = {d: says_positive[labels == d] == yes for d, yes in asked.items()}
    everyone = np.concatenate(list(right.values()))
    positive, negative = (
        probabilities[labels == d, 1].astype(np.float64)
        for d in (question.positive, question.negative)
    )
    return {
        "agreement": _share("agreement", everyone, synthetic=synthetic),
        "by_diagnosis": {
            d: _share("agreement", hits, synthetic=synthetic)
            for d, hits in right.items()
            if len(hits)
        },
        "auc": _auc(positive, negative, synthetic=synthetic),
    }


def _share(name: str, hits: npt.NDArray[np.bool_], *, synthetic: bool) -> Score | None:
    if not len(hits):
        return None
    low, high = clopper_pearson(int(hits.sum()), len(hits))
    return Score(
        name=name,
        value=float(hits.mean()),
        low=low,
        high=high,
        better="higher",
        n_real=0 if synthetic else len(hits),
        n_synthetic=len(hits) if synthetic else 0,
        method="Clopper-Pearson over persons",
    )


def _auc(positive: Array, negative: Array, *, synthetic: bool) -> Score | None:
    if min(len(positive), len(negative)) < 2:
        return None
    value, low, high = auc_interval(positive, negative)
    n = len(positive) + len(negative)
    return Score(
        name="auc",
        value=value,
        low=low,
        high=high,
        better="higher",
        n_real=0 if synthetic else n,
        n_synthetic=n if synthetic else 0,
        method="DeLong over persons",
    )


def age_fidelity(
    training: tuple[Array, Array],
    validation: tuple[Array, Array],
    synthetic: tuple[Array, Array],
) -> dict[str, Score] | None:
    """Return the correlation of age with the age that the anatomy tells, real and synthetic.

    Parameters
    ----------
    training, validation, synthetic : (rows (n, d), ages (n,)) each
        Scaled region vectors and ages in years, NaN where unknown or not asked for. A ridge
        regression is fitted to the training persons.

    Returns
    -------
    dict or None
        `real` (validation persons) and `synthetic`; None where fewer than 10 ages are known.
    """
    sets = [_known(*pair) for pair in (training, validation, synthetic)]
    if min(len(ages) for _, ages in sets) < 10 or any(np.ptp(ages) == 0 for _, ages in sets):
        return None
    rows, ages = sets[0]
    centre = rows.mean(axis=0)
    penalty = _RIDGE * len(rows) * np.eye(rows.shape[1])
    slope = np.linalg.solve(
        (rows - centre).T @ (rows - centre) + penalty, (rows - centre).T @ (ages - ages.mean())
    )
    return {
        name: _correlation(pair[0] @ slope, pair[1], synthetic=name == "synthetic")
        for name, pair in (("real", sets[1]), ("synthetic", sets[2]))
    }


def _known(rows: Array, ages: Array) -> tuple[Array, Array]:
    known = np.isfinite(ages)
    return rows[known], ages[known]


def _correlation(told: Array, ages: Array, *, synthetic: bool) -> Score:
    r = float(np.corrcoef(told, ages)[0, 1]) if np.ptp(told) else 0.0
    z, half = np.arctanh(np.clip(r, -0.999999, 0.999999)), Z95 / np.sqrt(len(ages) - 3)
    return Score(
        name="age_correlation",
        value=r,
        low=float(np.tanh(z - half)),
        high=float(np.tanh(z + half)),
        better="higher",
        n_real=0 if synthetic else len(ages),
        n_synthetic=len(ages) if synthetic else 0,
        method="ridge on the region vector of training persons; Fisher z",
    )
