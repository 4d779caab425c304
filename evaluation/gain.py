"""Does training with synthetic scans help this classifier? A paired difference, and a verdict.

`summarise` turns the table of predictions into arms, gain and sentence. Persons are the unit;
scores are averaged over seeds; the arm to beat is chosen among those that cost nothing by the
validation persons, never by the test persons on whom the gain is measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import Score
from rarescan.errors import InputError
from rarescan.evaluation.intervals import (
    Z95,
    auc_difference,
    auc_interval,
    clopper_pearson,
    delong,
    stratified_bootstrap,
    unseen,
)

Array = npt.NDArray[np.float64]
Verdict = Literal["use", "do_not_use", "undecided"]

SYNTHETIC = "classical_synthetic"
FREE_ARMS = (
    "real", "oversampled", "weighted", "mixup", "classical", "strong", "tones", "any_tones",
    "landmarks", "site_balanced", "age_balanced", "age_adjusted", "site_centred", "harmonised",
)  # fmt: skip
"""Arms that cost nothing; the gain counts against the best of them."""
MARGIN = 0.02
"""A gain below this is not worth synthetic scans."""
_NETWORK, _LINEAR = "network", "linear"
_POWER_Z = Z95 + 0.8416
_WORTH = 0.05
_SEED = 0


def summarise(predictions: Iterable[Mapping[str, Any]] | Any) -> dict[str, Any]:
    """Return arms, ROC curves, gains and the verdict.

    Parameters
    ----------
    predictions : iterable of rows, or a table with `to_pylist`
        Columns person_id, part ("validation" or "test"), truth (0 or 1), arm, model ("network"
        or "linear"), seed, score (probability of the positive diagnosis, 0 to 1).

    Returns
    -------
    dict
        `arms`: arm -> auc, balanced_accuracy, sensitivity, specificity (scores as values, at a
        threshold of 0.5); `roc`; `gain` (the best arm with synthetic scans minus the best free
        arm, both chosen on validation persons), `gain_to_real`, `placebo` (placebo minus the best
        free arm): value, low, high, against, arm, n, method, or None where an arm is missing;
        `linear`: arms and gain of the linear baseline; `verdict`; `sentence`.

    Raises
    ------
    InputError
        No rows, a score that is no probability, a person with two truths, arms with different
        persons, or test persons of one class only.
    """
    rows = predictions.to_pylist() if hasattr(predictions, "to_pylist") else list(predictions)
    models = _by_model(rows)
    if _NETWORK not in models:
        raise InputError(
            "The predictions hold no rows of the model 'network'.",
            remedy="Run `rarescan retrain` again.",
        )
    found = {model: _Model.of(arms) for model, arms in models.items()}
    network = found[_NETWORK]
    result = network.summary() | {
        "roc": {arm: _roc(persons) for arm, persons in network.test.items()},
        "gain_to_real": network.difference(network.best_generative(), "real"),
        "placebo": network.difference("placebo", network.best_free()),
        "linear": found[_LINEAR].summary() if _LINEAR in found else None,
    }
    verdict, sentence = judge(result["gain"], network.test)
    return result | {"verdict": verdict, "sentence": sentence}


def summarise_scored(predictions: Any) -> dict[str, Any]:
    """Return what can be said of a model that only scores: no gain, because nothing was retrained.

    Parameters
    ----------
    predictions : table with `to_pylist`
        As in `summarise`, with one arm; the batch's persons have the part "synthetic".

    Returns
    -------
    dict
        As `summarise`, and `synthetic`: the area under the curve of synthetic patients against
        real test controls, with interval; None without a batch.
    """
    rows = predictions.to_pylist()
    found = summarise([row for row in rows if row["part"] != "synthetic"])
    positive = np.array([r["score"] for r in rows if r["part"] == "synthetic" and r["truth"]])
    negative = np.array([r["score"] for r in rows if r["part"] == "test" and not r["truth"]])
    synthetic = None
    if len(positive) > 1:
        value, low, high = auc_interval(positive, negative)
        synthetic = {"value": value, "low": low, "high": high, "n": len(positive)}
    auc = next(iter(found["arms"].values()))["auc"]
    sentence = (
        "This model only scores and was not retrained, so whether the batch would help it is not "
        f"known. On {auc['n_real']} held-out persons its AUC is {_with_interval(auc)}"
    )
    if synthetic:
        sentence += (
            f"; it tells {len(positive)} synthetic patients from real controls with "
            f"{_with_interval(synthetic)}"
        )
    return found | {"synthetic": synthetic, "sentence": f"{sentence}."}


def _with_interval(score: Mapping[str, Any]) -> str:
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


@dataclass(frozen=True)
class Persons:
    """Scores of one arm, one value a person, in the order of the pseudonyms."""

    ids: tuple[str, ...]
    positive: npt.NDArray[np.bool_]
    score: Array

    @property
    def split(self) -> tuple[Array, Array]:
        """Scores of positive and of negative persons."""
        return self.score[self.positive], self.score[~self.positive]

    @property
    def auc(self) -> float:
        """Area under the ROC curve; one half where a class is missing."""
        if self.positive.all() or not self.positive.any():
            return 0.5
        wins, _ = delong(*(np.repeat(side[None], 1, axis=0) for side in self.split))
        return float(wins[0])


def _by_model(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, str], Persons]]:
    """Return model -> (part, arm) -> persons, scores averaged over seeds."""
    grouped: dict[tuple[str, str, str], dict[str, list[tuple[bool, float]]]] = {}
    for row in rows:
        key = (row["model"], row["part"], row["arm"])
        value = (bool(row["truth"]), float(row["score"]))
        grouped.setdefault(key, {}).setdefault(row["person_id"], []).append(value)
    models: dict[str, dict[tuple[str, str], Persons]] = {}
    for (model, part, arm), people in sorted(grouped.items()):
        models.setdefault(model, {})[part, arm] = _persons(arm, people)
    return models


def _persons(arm: str, people: Mapping[str, list[tuple[bool, float]]]) -> Persons:
    ids = tuple(sorted(people))
    truths = [{truth for truth, _ in people[p]} for p in ids]
    score = np.array([np.mean([value for _, value in people[p]]) for p in ids])
    if any(len(truth) > 1 for truth in truths):
        raise InputError(
            f"A person has two truths in the arm '{arm}'.",
            remedy="Correct the labels: one diagnosis a person.",
        )
    if not (np.isfinite(score) & (score >= 0) & (score <= 1)).all():
        raise InputError(
            f"The arm '{arm}' holds scores that are no probabilities.",
            remedy="Retrain it; where it happens again, lower the learning rate.",
        )
    return Persons(ids, np.array([truth.pop() for truth in truths]), score)


@dataclass(frozen=True)
class _Model:
    """All arms of one model."""

    test: dict[str, Persons]
    validation: dict[str, Persons]

    @classmethod
    def of(cls, arms: Mapping[tuple[str, str], Persons]) -> "_Model":
        parts = {
            part: {arm: persons for (p, arm), persons in arms.items() if p == part}
            for part in ("test", "validation")
        }
        test = parts["test"]
        if not test:
            raise InputError(
                "The predictions hold no test persons.",
                remedy="Run `rarescan prepare` with a share of test persons, then retrain.",
            )
        for arm, persons in test.items():
            _require_same_persons(arm, persons, next(iter(test.values())))
        return cls(test, parts["validation"])

    def best_free(self) -> str | None:
        """Return the best free arm by the validation persons; the first of equal ones."""
        return self._best([arm for arm in FREE_ARMS if arm in self.test])

    def best_generative(self) -> str | None:
        """Return the best arm with synthetic scans, `RECIPE+BATCH` among them, in the same way."""
        return self._best([arm for arm in self.test if arm == SYNTHETIC or "+" in arm])

    def _best(self, arms: list[str]) -> str | None:
        judged = [arm for arm in arms if arm in self.validation]
        if judged:
            return max(judged, key=lambda arm: self.validation[arm].auc)
        return arms[-1] if arms else None

    def summary(self) -> dict[str, Any]:
        """Return the arms and the gain."""
        return {
            "arms": {arm: _measures(persons) for arm, persons in self.test.items()},
            "gain": self.difference(self.best_generative(), self.best_free()),
        }

    def difference(self, arm: str | None, against: str | None) -> dict[str, Any] | None:
        """Return the paired difference of two arms' AUC, `arm` minus `against`."""
        if arm is None or arm not in self.test or against is None or against not in self.test:
            return None
        pair = [self.test[against].split, self.test[arm].split]
        positive, negative = (np.stack([side[k] for side in pair]) for k in (0, 1))
        value, se = auc_difference(positive, negative)
        half, method = Z95 * se, "paired DeLong over persons"
        if se == 0:
            # Equal ranks have no variance of their own, which is no proof of equality.
            half = unseen(min(positive.shape[1], negative.shape[1]))
            method = "exact bound of the smaller class: both arms rank the persons alike"
        return {
            "value": value,
            "low": max(-1.0, value - half),
            "high": min(1.0, value + half),
            "against": against,
            "arm": arm,
            "n": len(self.test[arm].ids),
            "method": method,
        }


def _require_same_persons(arm: str, persons: Persons, first: Persons) -> None:
    if persons.ids != first.ids or (persons.positive != first.positive).any():
        raise InputError(
            f"The arm '{arm}' was tested on other persons than the first arm.",
            remedy="Retrain all arms on one partition: `rarescan retrain --overwrite`.",
        )
    if min(persons.positive.sum(), (~persons.positive).sum()) < 2:
        raise InputError(
            "A diagnosis has fewer than two test persons.",
            remedy="Add persons of it, or raise `prepare.partition.test`.",
        )


def _measures(persons: Persons) -> dict[str, dict[str, Any]]:
    """Return AUC, balanced accuracy, sensitivity and specificity with their intervals."""
    import torch
    from torchmetrics.functional import classification as tm

    score = torch.from_numpy(persons.score)
    truth = torch.from_numpy(persons.positive.astype(np.int64))
    positive, negative = persons.split
    hits, passes = positive > 0.5, negative <= 0.5
    auc = auc_interval(positive, negative)
    both = stratified_bootstrap(
        lambda rows: (hits[rows[0]].mean(axis=1) + passes[rows[1]].mean(axis=1)) / 2,
        (len(hits), len(passes)),
        seed=_SEED,
    )
    shares = (clopper_pearson(int(v.sum()), len(v)) for v in (hits, passes))
    values = (
        ("auc", tm.binary_auroc(score, truth), auc[1:], "DeLong"),
        (
            "balanced_accuracy",
            (tm.binary_recall(score, truth) + tm.binary_specificity(score, truth)) / 2,
            both,
            "person bootstrap, stratified",
        ),
        ("sensitivity", tm.binary_recall(score, truth), next(shares), "Clopper-Pearson"),
        ("specificity", tm.binary_specificity(score, truth), next(shares), "Clopper-Pearson"),
    )
    return {
        name: asdict(
            Score(
                name=name,
                value=float(value),
                low=low,
                high=high,
                better="higher",
                n_real=len(persons.ids),
                method=method,
            )
        )
        for name, value, (low, high), method in values
    }


def _roc(persons: Persons) -> dict[str, list[float]]:
    """Return the ROC curve from (0, 0) to (1, 1), one point a threshold."""
    thresholds = np.unique(persons.score)[::-1]
    positive, negative = persons.split
    return {
        "fpr": [0.0, *(float((negative >= t).mean()) for t in thresholds)],
        "tpr": [0.0, *(float((positive >= t).mean()) for t in thresholds)],
    }


def judge(gain: Mapping[str, Any] | None, test: Mapping[str, Persons]) -> tuple[Verdict, str]:
    """Return the verdict and its sentence; the interval decides, never the point.

    Parameters
    ----------
    gain : mapping or None
        value, low, high, against, arm, n of the paired difference.
    test : mapping of str to Persons
        The arms' test persons, for the areas that the sentence names.
    """
    if gain is None:
        return "undecided", "No arm was trained with synthetic scans, so nothing was compared."
    value, low, high, n = (gain[key] for key in ("value", "low", "high", "n"))
    interval = f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
    if low > 0:
        before, after = test[gain["against"]].auc, test[gain["arm"]].auc
        return "use", (
            f"On {n} held-out persons AUC rose from {before:.3f} to {after:.3f} "
            f"(difference {value:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})."
        )
    excluded = high < MARGIN
    if excluded or (low < -MARGIN and value < 0):
        why = "a gain of 0.02 or more is excluded" if excluded else "a loss cannot be excluded"
        return "do_not_use", (
            "Do not use this synthetic set for this classifier. "
            f"On {n} persons the difference was {interval}: {why}."
        )
    detectable = _POWER_Z * (high - low) / 2 / Z95
    needed = int(np.ceil(n * (detectable / _WORTH) ** 2))
    return "undecided", (
        f"With {n} persons we can only see differences larger than about {detectable:.2f}; "
        f"nothing here shows that augmentation helps (difference {interval}). Default: do not "
        f"use. About {needed} persons would settle a gain of {_WORTH:g}."
    )
