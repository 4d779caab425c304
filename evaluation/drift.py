"""Do new persons differ from training persons, and in what? Tests by permutation of persons.

`drift` is the way in. Brains and scan quality are compared as wholes (unbiased MMD), ages, sexes,
diagnoses and sites one by one, all in one Holm family; single measures explain what moved. Few
new persons give `insufficient`, never "no drift".
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from rarescan.cohort.contracts import Condition
from rarescan.evaluation.intervals import Z95, auc_interval, holm
from rarescan.evaluation.measures import MEASURES
from rarescan.evaluation.metrics import mmd_of_kernels
from rarescan.evaluation.spec import MonitorConfig
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]
Row = dict[str, Any]

APPEARANCE = (*MEASURES, "fine_detail")
"""What is measured in each volume."""
QUALITY = ("metric", "determinant", "smallest_stretch", "largest_stretch", "snr", "cjv", "wrap")
"""What `prepare` noted of each scan, where it did."""
_PERMUTATIONS = 999
_MOST_REFERENCE = 1000
_POWER_Z = Z95 + 0.8416


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was measured of some persons, one row a person."""

    conditions: tuple[Condition, ...]
    appearance: Array
    """Shape (persons, len(APPEARANCE))."""
    quality: Array | None
    """Shape (persons, len(QUALITY)), NaN where unknown; None where `prepare` noted nothing."""

    def __len__(self) -> int:
        return len(self.conditions)


def drift(reference: Look, new: Look, config: MonitorConfig) -> dict[str, Any]:
    """Return whether new persons differ from the training persons, and in what.

    Parameters
    ----------
    reference, new : Look
        Training persons of the champion; persons that came since.
    config : MonitorConfig

    Returns
    -------
    dict
        `verdict` (drift, no_drift_seen, insufficient), `n_reference`, `n_new`; `tests`: one row
        each for brains and scan quality (unbiased RBF-MMD^2 with jackknife interval; p from 999
        permutations of persons) and for ages, sexes, diagnoses, sites (p from the same
        permutations), p adjusted by Holm; `features`: single measures (chance that a new person
        has more, DeLong; Mann-Whitney p, Holm); `detectable_sd`: the shift of one measure, in SD
        between persons, that these numbers show in 80 % of the cases; `unknown`: new persons with
        a diagnosis or site that no training person has.
    """
    few = len(new) < config.fewest_persons or len(reference) < config.fewest_persons
    tests = [] if few else _tests(reference, new, config)
    features = [] if few else _features(reference, new)
    drifted = any(row["p_holm"] < config.alpha for row in tests)
    return {
        "verdict": "insufficient" if few else "drift" if drifted else "no_drift_seen",
        "n_reference": len(reference),
        "n_new": len(new),
        "fewest_persons": config.fewest_persons,
        "alpha": config.alpha,
        "tests": tests,
        "features": features,
        "detectable_sd": _POWER_Z * float(np.sqrt(1 / len(reference) + 1 / len(new))),
        "unknown": {name: _unknown(name, reference, new) for name in ("diagnosis", "site")},
    }


def _tests(reference: Look, new: Look, config: MonitorConfig) -> list[Row]:
    rows = [_distance("appearance", reference.appearance, new.appearance, config.seed)]
    if reference.quality is not None and new.quality is not None:
        rows.append(_distance("quality", reference.quality, new.quality, config.seed))
    rows.append(_ages(reference, new))
    rows += [_mix(name, reference, new, config.seed) for name in ("sex", "diagnosis", "site")]
    measured = [row for row in rows if row and row["n_new"] >= config.fewest_persons]
    adjusted = holm(np.array([row["p"] for row in measured]))
    return [
        {**row, "p_holm": float(p), "drift": bool(p < config.alpha)}
        for row, p in zip(measured, adjusted, strict=True)
    ]


def _distance(name: str, reference: Array, new: Array, seed: int) -> Row:
    """Return the distance between two tables of measures in units of everybody's SD."""
    known = np.isfinite(reference).mean(axis=0) > 0.8
    sets = [rows[:, known] for rows in (reference, new)]
    sets = [rows[np.isfinite(rows).all(axis=1)] for rows in sets]
    draw = generator(seed, "drift", name)
    sets[0] = sets[0][np.sort(draw.permutation(len(sets[0]))[:_MOST_REFERENCE])]
    n, m = len(sets[0]), len(sets[1])
    # A scale from one side would tell the sides apart: permutations need one of all persons.
    rows = np.concatenate(sets)
    sd = rows.std(axis=0)
    if min(n, m) < 3 or not (sd > 0).any():
        return {}
    rows = rows[:, sd > 0] / sd[sd > 0]
    sigma2 = float(np.median(pdist(rows, "sqeuclidean"))) / 4
    kernel = np.exp(cdist(rows, rows, "sqeuclidean") / (-2 * max(sigma2, 1e-12)))
    estimate = mmd_of_kernels(kernel[:n, :n], kernel[n:, n:], kernel[:n, n:])
    drawn = _permuted(kernel, m, draw)
    return _row(
        name,
        (n, m),
        (estimate.value, estimate.value - Z95 * estimate.se, estimate.value + Z95 * estimate.se),
        drawn,
        method="unbiased RBF-MMD^2, jackknife over persons; permutation of persons",
    )


def _permuted(kernel: Array, m: int, draw: np.random.Generator) -> Array:
    """Return the unbiased MMD^2 of random divisions into m persons and the others."""
    total, n = len(kernel), len(kernel) - m
    marks = np.zeros((total, _PERMUTATIONS))
    marks[:m] = 1.0
    marks = draw.permuted(marks, axis=0)
    seen = kernel @ marks
    within_new = np.sum(marks * seen, axis=0)
    between = seen.sum(axis=0) - within_new
    within = kernel.sum() - within_new - 2 * between
    value: Array = (
        (within - n) / (n * (n - 1)) + (within_new - m) / (m * (m - 1)) - 2 * between / (n * m)
    )
    return value


def _row(
    name: str,
    counts: tuple[int, int],
    value: tuple[float, float | None, float | None],
    drawn: Array,
    *,
    method: str,
) -> Row:
    """Return a test by permutation: how often chance gives as much."""
    exceeded = int(np.sum(drawn >= value[0] - 1e-12))
    return {
        "name": name,
        "n_reference": counts[0],
        "n_new": counts[1],
        **dict(zip(("value", "low", "high"), value, strict=True)),
        "chance": float(np.quantile(drawn, 0.95)),
        "p": (1 + exceeded) / (1 + len(drawn)),
        "method": method,
    }


def _labels(name: str, look: Look) -> list[str]:
    values = (getattr(condition, name) for condition in look.conditions)
    return [str(value) for value in values if value is not None]


def _mix(name: str, reference: Look, new: Look, seed: int) -> Row:
    """Return how far the shares of a label moved: half the sum of absolute differences."""
    labels = [_labels(name, look) for look in (reference, new)]
    kinds = sorted({*labels[0], *labels[1]})
    n, m = (len(found) for found in labels)
    if min(n, m) < 1 or len(kinds) < 2:
        return {}
    counts = [np.array([Counter(found)[kind] for kind in kinds]) for found in labels]
    pooled = counts[0] + counts[1]
    draw = generator(seed, "drift", name)
    # Labels of persons drawn without replacement are what permutations of persons give.
    drawn = draw.multivariate_hypergeometric(pooled, m, size=_PERMUTATIONS)
    moved = np.abs(np.vstack([counts[1], drawn]) / m - (pooled - [counts[1], *drawn]) / n)
    distance = moved.sum(axis=1) / 2
    return _row(
        name,
        (n, m),
        (float(distance[0]), None, None),
        distance[1:],
        method="total variation between the shares; permutation of persons",
    )


def _ages(reference: Look, new: Look) -> Row:
    ages = [
        np.array([c.age_years for c in look.conditions if c.age_years is not None], np.float64)
        for look in (reference, new)
    ]
    return _more("age", *ages) if min(map(len, ages)) >= 2 else {}


def _more(name: str, reference: Array, new: Array) -> Row:
    """Return the chance that a new person has more of a measure than a training person."""
    value, low, high = auc_interval(new, reference)
    tested = stats.mannwhitneyu(new, reference)
    return {
        "name": name,
        "n_reference": len(reference),
        "n_new": len(new),
        "value": value,
        "low": low,
        "high": high,
        "chance": 0.5,
        "p": float(tested.pvalue),
        "method": "chance that a new person has more, DeLong; Mann-Whitney",
    }


def _features(reference: Look, new: Look) -> list[Row]:
    """Return every measure that varies on its own, those that moved most first."""
    sets = [(APPEARANCE, reference.appearance, new.appearance)]
    if reference.quality is not None and new.quality is not None:
        sets.append((QUALITY, reference.quality, new.quality))
    rows = []
    for names, before, after in sets:
        for column, name in enumerate(names):
            values = [table[np.isfinite(table[:, column]), column] for table in (before, after)]
            if min(map(len, values)) >= 2 and np.ptp(np.concatenate(values)) > 0:
                rows.append(_more(name, *values))
    adjusted = holm(np.array([row["p"] for row in rows]))
    found = [{**row, "p_holm": float(p)} for row, p in zip(rows, adjusted, strict=True)]
    return sorted(found, key=lambda row: (row["p"], row["name"]))


def _unknown(name: str, reference: Look, new: Look) -> int:
    known = set(_labels(name, reference))
    return sum(label not in known for label in _labels(name, new)) if known else 0
