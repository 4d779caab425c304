"""How well a smaller classifier keeps to the one that it was made from, on the same persons.

`Judged` holds one classifier's answers; `compare_all` makes figures of several with one bootstrap
of persons, so that differences are paired. What the reader would get wrong: every person counts
once in each class, however many scans there are; the share of a person's scans that are right is
what is averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rarescan.classifiers.golden import require_probabilities
from rarescan.cohort.contracts import FloatArray
from rarescan.seeds import generator

Shares = npt.NDArray[np.float64]
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

    def shares(self) -> tuple[list[str], Shares]:
        """Return persons, sorted, and the right share of their scans, (persons, classes).

        NaN where a person has no scan of a class.
        """
        persons = sorted(set(self.person_ids))
        place = {person: i for i, person in enumerate(persons)}
        right = np.zeros((len(persons), self.probabilities.shape[1]))
        scans = np.zeros_like(right)
        rows = [place[person] for person in self.person_ids]
        np.add.at(scans, (rows, list(self.truth)), 1)
        np.add.at(right, (rows, list(self.truth)), self.labels == np.array(self.truth))
        return persons, np.divide(right, scans, out=np.full_like(right, np.nan), where=scans > 0)


def balanced_accuracy(judged: Judged) -> float:
    """Return the mean over the classes of the mean over persons of the share that is right."""
    return float(np.nanmean(np.nanmean(_of_classes_present(judged.shares()[1]), axis=0)))


def agreement(one: Judged, other: Judged) -> float:
    """Return the share of scans to which two classifiers give the same label."""
    return float((one.labels == other.labels).mean())


def persons_of(judged: Judged) -> list[int]:
    """Return how many persons show each class."""
    return [int(n) for n in (~np.isnan(judged.shares()[1])).sum(axis=0)]


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
    weights = _weights(standard, seed)
    drawn = {name: _drawn(one.shares()[1], weights) for name, one in judged.items()}
    figures: dict[str, Any] = {}
    for name, one in judged.items():
        if one.person_ids != standard.person_ids or one.truth != standard.truth:
            raise ValueError("the classifiers judged different scans")
        value = balanced_accuracy(one)
        loss = balanced_accuracy(standard) - value
        figures[name] = {
            "balanced_accuracy": _with_interval(value, drawn[name]),
            "loss": _with_interval(loss, drawn[reference] - drawn[name]),
            "agreement": agreement(one, standard),
            "sufficient": min(n for n in persons_of(one) if n) >= _FEWEST_PERSONS,
        }
    return figures


def _of_classes_present(shares: Shares) -> Shares:
    return shares[:, ~np.isnan(shares).all(axis=0)]


def _weights(judged: Judged, seed: int) -> npt.NDArray[np.int64]:
    """Return how often each person is drawn, shape (draws, persons), within their first class."""
    shares = judged.shares()[1]
    first = (~np.isnan(shares)).argmax(axis=1)
    random = generator(seed, "persons")
    weights = np.zeros((_DRAWS, len(shares)), np.int64)
    for label in np.unique(first):
        own = np.flatnonzero(first == label)
        weights[:, own] = random.multinomial(len(own), np.full(len(own), 1 / len(own)), _DRAWS)
    return weights


def _drawn(shares: Shares, weights: npt.NDArray[np.int64]) -> Shares:
    present = _of_classes_present(shares)
    has = (~np.isnan(present)).astype(float)
    counts = weights @ has
    sums = weights @ np.nan_to_num(present)
    recalls = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    found: Shares = np.nanmean(recalls, axis=1)
    return found


def _with_interval(value: float, draws: Sequence[float] | Shares) -> dict[str, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}
