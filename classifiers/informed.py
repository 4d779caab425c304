"""The free way to use a published map: a linear model that believes it as far as the patients do.

`fit_informed` is the way in: the model that a generator made from the same map has to beat, alone
and averaged with a network that does not know the map (`averaged`). Nothing is generated.

Formula: scans smoothed as the field's linear model has them, whitened in the controls' principal
components; the map's direction times its amplitude in the patients is the prior mean of the
disease's effect, and what the patients show beyond it counts as much as it exceeds chance
(empirical Bayes; Efron and Morris, JASA 1973). The score is Fisher's discriminant for that effect.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from rarescan.classifiers.baseline import MOST_COMPONENTS, LinearModel, smooth
from rarescan.classifiers.contract import require_shape
from rarescan.classifiers.examples import Examples
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError

Array = npt.NDArray[np.float64]

_RIDGE = 0.1
"""Of the mean variance of the components, added to each."""
_SURE = 1e-6


def fit_informed(examples: Examples, pattern: FloatArray, spacing_mm: float) -> LinearModel:
    """Fit Fisher's discriminant to few patients and a map of the expected effect.

    Parameters
    ----------
    examples : Examples
        Training scans of brains, shape (x, y, z); two patients and two controls at least.
    pattern : float32 array, shape (x, y, z)
        Expected change of brightness, in any unit, negative where the disease takes tissue away
        (tissue is brighter than fluid).
    spacing_mm : float
        Edge of one voxel.

    Returns
    -------
    LinearModel
        The logit of its score is the log-likelihood ratio: 0 half-way between the groups.

    Raises
    ------
    GridMismatchError
        The pattern lies on another grid.
    InputError
        Fewer than two persons of a class.
    """
    require_shape(pattern[None], examples.shape)
    labels = np.array(examples.labels)
    if min((labels == 0).sum(), (labels == 1).sum()) < 2:
        raise InputError(
            "The informed model needs two patients and two controls at least.",
            remedy="Name two diagnoses of this cohort in `question`.",
        )
    flat = np.stack([smooth(image, spacing_mm).ravel() for image in examples.read()])
    flat = flat.astype(np.float64)
    centre = flat[labels == 0].mean(0)
    whitening = _whitening(flat[labels == 0] - centre)
    patients = (flat[labels == 1] - centre) @ whitening
    expected = smooth(pattern, spacing_mm).ravel() @ whitening
    effect = believed(patients, expected)
    weights = whitening @ effect
    return LinearModel(
        weights=weights.reshape(examples.shape).astype(np.float32),
        intercept=float(-weights @ centre - effect @ effect / 2),
        spacing_mm=spacing_mm,
    )


def believed(patients: Array, expected: Array) -> Array:
    """Return the effect that few patients and an expected one give together.

    Parameters
    ----------
    patients : float64 array, shape (n, d)
        In whitened coordinates whose origin is the controls' mean.
    expected : float64 array, shape (d,)
        Direction of the expected effect; its length does not count.

    Returns
    -------
    float64 array, shape (d,)
        a e + w (m - a e): m the patients' mean, a the expected effect's amplitude in it (0 where
        it is negative), w = t / (t + v) with v the variance of a mean and t what the squared
        distance of m from a e has beyond it.
    """
    mean = patients.mean(0)
    chance = float(patients.var(0, ddof=1).mean()) / len(patients)
    size = float(expected @ expected)
    explained = max(float(mean @ expected), 0.0) / size * expected if size else 0 * expected
    beyond = max(float(((mean - explained) ** 2).mean()) - chance, 0.0)
    share = beyond / (beyond + chance) if beyond else 0.0
    found: Array = explained + share * (mean - explained)
    return found


def averaged(scores: Sequence[FloatArray], controls: Sequence[FloatArray]) -> FloatArray:
    """Return the mean of several classifiers' scores, each in units of its training controls.

    Parameters
    ----------
    scores : sequence of float32 arrays, shape (n,)
        Probabilities of the same persons, one array a classifier.
    controls : sequence of float32 arrays, shape (c,)
        Probabilities of the training controls: their logits give each classifier's mean and
        standard deviation, so that nothing of the scored persons is used.

    Returns
    -------
    float32 array, shape (n,)
        Mean z value; a ranking, no probability.
    """
    parts = []
    for own, reference in zip(scores, controls, strict=True):
        healthy = _logits(reference)
        parts.append((_logits(own) - healthy.mean()) / max(float(healthy.std()), _SURE))
    together: FloatArray = np.mean(parts, axis=0).astype(np.float32)
    return together


def _logits(probabilities: FloatArray) -> Array:
    values: Array = logit(np.clip(probabilities.astype(np.float64), _SURE, 1 - _SURE))
    return values


def _whitening(residuals: Array) -> Array:
    """Return the matrix, shape (voxels, components), that gives controls about unit variance."""
    _, lengths, directions = np.linalg.svd(residuals, full_matrices=False)
    n = min(MOST_COMPONENTS, len(residuals) - 1)
    variances = lengths[:n] ** 2 / (len(residuals) - 1)
    scales = np.sqrt(variances + _RIDGE * variances.mean())
    found: Array = directions[:n].T / np.maximum(scales, _SURE)
    return found
