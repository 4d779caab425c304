"""How well a smaller classifier keeps to the one that it was made from, on the same persons.

`Judged` holds one classifier's answers; `compare_all` makes figures of several with one bootstrap
of persons, so that differences are paired. What the reader would get wrong: every person counts
once in each class, however many scans there are; the share of a person's scans that are right is
what is averaged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rarescan.classifiers.golden import require_probabilities
from rarescan.cohort.contracts import FloatArray
from rarescan.seeds import generator

_DRAWS = 2000
_FEWEST_PERSONS = 5


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one classifier says of scans, with who and what they are, row by row.

    Raises
    ------
    ValueError
        The rows do not belong together, or hold labels or logits instead of probabilities.
    """

    person_ids: tuple[str, ...]
    truth: tuple[int, ...]
    """Place of the right class."""
    probabilities: FloatArray
    """Shape (scans, classes)."""

    def __post_init__(self) -> None:
        require_probabilities(self.probabilities)
        if not len(self.person_ids) == len(self.truth) == len(self.probabilities):
            raise ValueError("persons, truths and probabilities have different numbers of rows")
        n_classes = self.probabilities.shape[1]
        if any(not 0 <= label < n_classes for label in self.truth):
            raise ValueError(f"a truth is none of the {n_classes} classes")

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The most probable class of each scan."""
        labels: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return labels

    def shares(self) -> pd.DataFrame:
        """Return the share of scans that are right, persons x classes that occur, else NaN."""
        right = (self.labels == np.array(self.truth)).astype(float)
        columns = {"person": self.person_ids, "class": self.truth, "right": right}
        return pd.DataFrame(columns).groupby(["person", "class"])["right"].mean().unstack()


def balanced_accuracy(judged: Judged) -> float:
    """Return the mean over the classes of the mean over persons of the share that is right."""
    return float(judged.shares().mean().mean())


def agreement(one: Judged, other: Judged) -> float:
    """Return the share of scans to which two classifiers give the same label."""
    return float((one.labels == other.labels).mean())


def compare_all(judged: Mapping[str, Judged], reference: str, seed: int = 0) -> dict[str, Any]:
    """Return each classifier's figures, and their differences to the reference.

    Parameters
    ----------
    judged : mapping
        Name -> answers about the same scans, in the same order.
    reference : str
        The name of the classifier that the others were made from.
    seed : int
        Of the bootstrap: 2,000 draws of persons within their class, the same for all.

    Returns
    -------
    dict
        Name -> `balanced_accuracy` and `loss` (reference minus this one), each with `value`,
        `low`, `high` (95 %); `agreement`, 0 to 1; `sufficient`, False with fewer than 5 persons
        of a class.
    """
    standard = judged[reference]
    for one in judged.values():
        if one.person_ids != standard.person_ids or one.truth != standard.truth:
            raise ValueError("the classifiers judged different scans")
    counts = standard.shares().count()
    weights = _weights(standard.shares(), seed)
    drawn = {name: _drawn(one.shares(), weights) for name, one in judged.items()}
    return {
        name: {
            "balanced_accuracy": _with_interval(drawn[name]),
            "loss": _with_interval(drawn[reference] - drawn[name]),
            "agreement": agreement(one, standard),
            "sufficient": bool(counts.min() >= _FEWEST_PERSONS),
        }
        for name, one in judged.items()
    }


def _weights(shares: pd.DataFrame, seed: int) -> npt.NDArray[np.int64]:
    """Return how often persons count, (1 + draws, persons): all once, then drawn by first class."""
    first = shares.notna().to_numpy().argmax(axis=1)
    random = generator(seed, "persons")
    weights = np.ones((1 + _DRAWS, len(shares)), np.int64)
    for label in np.unique(first):
        own = np.flatnonzero(first == label)
        weights[1:, own] = random.multinomial(len(own), np.full(len(own), 1 / len(own)), _DRAWS)
    return weights


def _drawn(shares: pd.DataFrame, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the balanced accuracy of every draw, the whole set first."""
    counts = weights @ shares.notna().to_numpy().astype(float)
    sums = weights @ shares.fillna(0.0).to_numpy()
    recalls = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    found: npt.NDArray[np.float64] = np.nanmean(recalls, axis=1)
    return found


def _with_interval(draws: npt.NDArray[np.float64]) -> dict[str, float]:
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return {"value": float(draws[0]), "low": float(low), "high": float(high)}
