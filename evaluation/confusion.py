"""Figures of confusion matrices, any number of them at once, shape (..., truth, predicted).

The formulas are those of torchmetrics; counts may be sums of weights.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PER_CLASS = ("recall", "precision", "f1", "specificity", "mcc")
"""What `by_class` gives."""


def balanced_accuracy(confusion: Array) -> Array:
    """Return the mean recall over the classes that occur."""
    rows = confusion.sum(axis=-1)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    there = rows > 0
    n_there = np.maximum(there.sum(axis=-1), 1)
    mean: Array = np.divide(hits, rows, out=np.zeros_like(rows), where=there).sum(axis=-1) / n_there
    return mean


def by_class(confusion: Array) -> dict[str, Array]:
    """Return each class against the rest, shape (..., classes); 0 where nothing can be divided."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    all_units = confusion.sum(axis=(-1, -2))[..., None]
    quiet = all_units - true - called + hits
    product = np.sqrt(true * called * (all_units - true) * (all_units - called))
    return {
        "recall": _ratio(hits, true),
        "precision": _ratio(hits, called),
        "f1": _ratio(2 * hits, true + called),
        "specificity": _ratio(quiet, all_units - true),
        "mcc": _ratio(hits * quiet - (called - hits) * (true - hits), product),
    }


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def quadratic_kappa(confusion: Array) -> Array:
    """Return Cohen's kappa with quadratic weights; 0 where it is not defined."""
    k = confusion.shape[-1]
    cost = (np.arange(k)[:, None] - np.arange(k)) ** 2.0
    total = np.maximum(confusion.sum(axis=(-1, -2)), 1e-12)
    chance = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    expected = (chance * cost).sum(axis=(-1, -2)) / total
    seen = (confusion * cost).sum(axis=(-1, -2))
    return np.where(expected > 0, 1 - seen / np.where(expected > 0, expected, 1), 0.0)
