"""Figures of a classifier of any number of classes, for thousands of resamples of persons.

`Scored.of` is the way in: ids, truths and probabilities travel together, so that no order can be
mixed up, and what is no probability is refused. `draw_weights` resamples persons; `measure` gives
every figure for every resample, weight 1 first, by the formulas of torchmetrics (which the tests
hold against it), because torchmetrics cannot weigh a person. Repeats (split seeds) are an axis:
a resample takes the same persons in all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rarescan.errors import InputError
from rarescan.evaluation.confusion import balanced_accuracy, by_class, quadratic_kappa
from rarescan.evaluation.intervals import unseen
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

N_BINS = 15
"""Bins of confidence for the expected calibration error."""
_SUM_SLACK = 1e-3
_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Units with their truths and probabilities, the same units in every repeat."""

    ids: tuple[str, ...]
    truth: Whole
    """Shape (n,), index of the class."""
    probabilities: Array
    """Shape (repeats, n, classes); each row sums to 1."""
    person: Whole
    """Shape (n,), which person; numbers from 0 without gaps."""

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        truth: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        *,
        persons: Sequence[str] | None = None,
    ) -> "Scored":
        """Check (id, truth, probability) triples and keep them together.

        Parameters
        ----------
        ids : sequence of str
            One a unit, unique.
        truth : int array, shape (n,)
            Index of each unit's class.
        probabilities : float array, shape (n, classes) or (repeats, n, classes)
        persons : sequence of str, optional
            Whose each unit is; each unit its own person by default.

        Raises
        ------
        InputError
            Labels or log-probabilities in place of probabilities, another number of rows, an id
            that occurs twice, a truth that is no class.
        """
        values, classes = np.asarray(probabilities), np.asarray(truth)
        values = values[None] if values.ndim == 2 else values
        if values.ndim != 3 or not np.issubdtype(values.dtype, np.floating):
            raise _refused("are labels, not probabilities of each class")
        if not len(ids) == len(classes) == values.shape[1] or len(set(ids)) < len(ids):
            raise _refused("do not belong to one list of units")
        if not np.isfinite(values).all() or (values < -_SUM_SLACK).any():
            raise _refused("are negative or not finite, as logarithms are")
        if (np.abs(values.sum(axis=2) - 1) > _SUM_SLACK).any():
            raise _refused("do not sum to 1")
        if not np.issubdtype(classes.dtype, np.integer) or not _within(classes, values.shape[2]):
            raise _refused("have truths that are none of the classes")
        owners = list(ids) if persons is None else list(persons)
        _, numbers = np.unique(owners, return_inverse=True)
        return cls(
            ids=tuple(ids),
            truth=classes.astype(np.int64),
            probabilities=values.astype(np.float64),
            person=numbers.astype(np.int64),
        )

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return int(self.probabilities.shape[2])

    @property
    def n_persons(self) -> int:
        """How many persons there are."""
        return int(self.person.max()) + 1 if len(self.person) else 0

    @property
    def present(self) -> list[int]:
        """Classes that occur among the truths."""
        return sorted(set(self.truth.tolist()))

    @property
    def has_scores(self) -> bool:
        """Whether there are shades between 0 and 1: labels have no ROC curve."""
        return bool(((self.probabilities > 1e-9) & (self.probabilities < 1 - 1e-9)).any())

    def persons_of(self, label: int) -> int:
        """Return how many persons have a unit of a class."""
        return len(set(self.person[self.truth == label].tolist()))

    def among(self, kept: npt.NDArray[np.bool_], classes: Sequence[int] | None = None) -> "Scored":
        """Return some units; with `classes`, asked only which of these it is.

        A row that gave the classes nothing says nothing, and becomes uniform.
        """
        values = self.probabilities[:, kept]
        truth = self.truth[kept]
        if classes is not None:
            values = values[:, :, list(classes)] + 1e-12
            values = values / values.sum(axis=2, keepdims=True)
            truth = np.searchsorted(np.array(classes), truth)
        _, numbers = np.unique(self.person[kept], return_inverse=True)
        names = tuple(name for name, keep in zip(self.ids, kept, strict=True) if keep)
        return replace(self, ids=names, truth=truth, probabilities=values, person=numbers)


def _within(truth: npt.NDArray[Any], n_classes: int) -> bool:
    return not len(truth) or bool(truth.min() >= 0 and truth.max() < n_classes)


def _refused(why: str) -> InputError:
    return InputError(
        f"The classifier's predictions {why}.", remedy="Run `rarescan classify` again."
    )


def draw_weights(units: Scored, *, seed: int, repeats: int) -> Array:
    """Return how often each person counts: shape (1 + repeats, persons), the first row all 1.

    Persons are drawn with replacement among those with the same classes, so that no resample lacks
    a class.
    """
    random = generator(seed, "persons")
    weights = np.ones((1 + repeats, units.n_persons))
    owned = np.zeros((units.n_persons, units.n_classes), bool)
    owned[units.person, units.truth] = True
    for pattern in np.unique(owned, axis=0):
        alike = np.flatnonzero((owned == pattern).all(axis=1))
        share = np.full(len(alike), 1 / len(alike))
        weights[1:, alike] = random.multinomial(len(alike), share, repeats)
    return weights


def confusions(
    units: Scored, weights: Array, counted: npt.NDArray[np.bool_] | None = None
) -> Array:
    """Return confusion matrices, shape (repeats, weights, truth, predicted).

    `counted`, shape (repeats, n), leaves units out; a tie goes to the first class.
    """
    k, repeats = units.n_classes, len(units.probabilities)
    cell = units.truth * k + units.probabilities.argmax(axis=2)
    tables = np.zeros((repeats, units.n_persons, k * k))
    ones = np.ones(cell.shape) if counted is None else counted.astype(np.float64)
    for table, cells, one in zip(tables, cell, ones, strict=True):
        np.add.at(table, (units.person, cells), one)
    return (weights @ tables).reshape(repeats, len(weights), k, k)


def _pairs(units: Scored, label: int) -> Array:
    """Return wins of positive over negative units, summed by person: (repeats, persons, persons).

    Ties count one half; wins[i, j] are those of person i's positive units over person j's
    negative ones, so that a weighted AUC is a quadratic form.
    """
    positive = np.flatnonzero(units.truth == label)
    negative = np.flatnonzero(units.truth != label)
    negative = negative[np.argsort(units.person[negative], kind="stable")]
    owners, starts = np.unique(units.person[negative], return_index=True)
    wins = np.zeros((len(units.probabilities), units.n_persons, units.n_persons))
    for table, scores in zip(wins, units.probabilities[:, :, label], strict=True):
        below = scores[negative]
        for start in range(0, len(positive), _CHUNK):
            part = positive[start : start + _CHUNK]
            above = scores[part, None]
            won = (above > below) + 0.5 * (above == below)
            summed = np.zeros((len(part), units.n_persons))
            summed[:, owners] = np.add.reduceat(won, starts, axis=1)
            np.add.at(table, units.person[part], summed)
    return wins


def macro_auc(units: Scored, weights: Array) -> tuple[Array, Array]:
    """Return the area under the ROC curve, one class against the rest, mean over the classes.

    Returns
    -------
    each : shape (repeats,)
        Of each repeat, with every person once.
    mean : shape (weights,)
        Mean over the repeats, for each resample.

    Raises
    ------
    InputError
        Labels instead of probabilities, or only one class.
    """
    if not units.has_scores:
        raise _refused("are labels, and a ROC curve needs probabilities")
    if len(units.present) < 2:
        raise _refused("have units of one class only")
    each, mean = [], []
    for label in units.present:
        counts = np.zeros((2, units.n_persons))
        np.add.at(counts, ((units.truth == label).astype(int), units.person), 1)
        wins = _pairs(units, label)
        each.append(wins.sum(axis=(1, 2)) / (counts[0].sum() * counts[1].sum()))
        seen = (weights @ wins.mean(axis=0) * weights).sum(axis=1)
        mean.append(seen / ((weights @ counts[1]) * (weights @ counts[0])))
    return np.mean(each, axis=0), np.mean(mean, axis=0)


def calibration_bins(units: Scored) -> Array:
    """Return units, confidence and hits, summed: shape (repeats, persons, bins, 3).

    Confidence is the largest probability, in equal bins from 0 to 1.
    """
    confidence = units.probabilities.max(axis=2)
    hit = units.probabilities.argmax(axis=2) == units.truth
    place = np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
    bins = np.zeros((len(confidence), units.n_persons, N_BINS, 3))
    for repeat, table in enumerate(bins):
        rows = np.stack([np.ones(len(hit[repeat])), confidence[repeat], hit[repeat]], axis=1)
        np.add.at(table, (units.person, place[repeat]), rows)
    return bins


def _calibration_error(units: Scored, weights: Array) -> Array:
    """Return the expected calibration error (Naeini 2015), shape (repeats, weights)."""
    bins = calibration_bins(units)
    gap = bins[..., 2] - bins[..., 1]
    total = weights @ bins[..., 0].sum(axis=2).T
    error: Array = np.abs(weights @ gap).sum(axis=2) / total.T
    # Resampling adds noise to every bin, and absolute values add it up: that much is taken off.
    error[:, 1:] -= (
        error[:, 1:].mean(axis=1, keepdims=True) - error[:, :1] if len(weights) > 1 else 0
    )
    return np.maximum(error, 0)


def _brier(units: Scored, weights: Array) -> Array:
    """Return the Brier score, shape (repeats, weights): halved for two classes, as usual."""
    error = (units.probabilities - np.eye(units.n_classes)[units.truth]) ** 2
    loss = error.sum(axis=2) / (2 if units.n_classes == 2 else 1)
    by_person = np.zeros((units.n_persons, len(loss)))
    np.add.at(by_person, units.person, loss.T)
    count = np.bincount(units.person, minlength=units.n_persons)
    return ((weights @ by_person) / (weights @ count)[:, None]).T


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: of each repeat, and the mean over repeats for each resample of persons."""

    each: Array
    """Shape (repeats,), or (repeats, classes)."""
    mean: Array
    """Shape (1 + resamples,), or (1 + resamples, classes); the first counts every person once."""

    def __sub__(self, other: "Figure") -> "Figure":
        return Figure(each=self.each - other.each, mean=self.mean - other.mean)

    def of_class(self, label: int) -> "Figure":
        """Return the figure of one class."""
        return Figure(each=self.each[:, label], mean=self.mean[:, label])

    def score(self, fewest: int, *, difference: bool = False) -> dict[str, float | None]:
        """Return value, 95 % percentile interval and standard deviation over repeats.

        Parameters
        ----------
        fewest : int
            Persons of the rarest class. With fewer than two there is no interval; where a perfect
            figure or a difference does not vary at all, what `fewest` persons cannot show is added.
        """
        low, high = (float(v) for v in np.quantile(self.mean[1:], (0.025, 0.975)))
        value = float(self.mean[0])
        if high == low and (difference or value == 1):
            low, high = value - unseen(fewest), value + (unseen(fewest) if difference else 0)
        spread = float(self.each.std(ddof=1)) if len(self.each) > 1 else None
        ends: Mapping[str, float | None] = {"low": low, "high": high}
        if fewest < 2:
            ends = {"low": None, "high": None}
        return {"value": value, **ends, "sd": spread}


def measure(units: Scored, weights: Array, *, ordinal: bool = False) -> dict[str, Figure]:
    """Return every figure of one model.

    Returns
    -------
    dict of str to Figure
        accuracy, balanced_accuracy, macro_auc (not for labels or one class), kappa (ordinal
        classes), ece, brier, and with a value a class: recall, precision, f1, specificity, mcc.
    """
    confusion = confusions(units, weights)
    total = confusion.sum(axis=(-1, -2))
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    found = {"accuracy": hits / total, "balanced_accuracy": balanced_accuracy(confusion)}
    found |= {"ece": _calibration_error(units, weights), "brier": _brier(units, weights)}
    if ordinal:
        found["kappa"] = quadratic_kappa(confusion)
    found |= by_class(confusion)
    figures = {n: Figure(each=v[:, 0], mean=v.mean(axis=0)) for n, v in found.items()}
    if units.has_scores and len(units.present) > 1:
        each, mean = macro_auc(units, weights)
        figures["macro_auc"] = Figure(each=each, mean=mean)
    return figures
