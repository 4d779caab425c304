"""Intervals and paired tests, each valid for few persons.

`jackknife_se` serves distances (`nuclear_loss` helps the FID), `clopper_pearson` shares, `delong`
areas under ROC curves, `stratified_bootstrap` the rest. What a reader would get wrong: plain
resampling of rows is invalid for FID, KID and MMD, because a row drawn twice is at distance zero
from itself.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit, logit

from rarescan.seeds import generator

Array = npt.NDArray[np.float64]

Z95 = float(stats.norm.ppf(0.975))
_STEP = 0.3


def jackknife_se(*leave_one_out: Array) -> float:
    """Return the delete-one jackknife standard error of a statistic of one or more samples.

    Parameters
    ----------
    *leave_one_out : float64 arrays, shape (n,) each
        For each sample, the statistic without each of its persons.

    Notes
    -----
    Variance = sum over samples of (n - 1)/n * sum (value without i - their mean)^2.
    """
    variance = sum(
        (len(v) - 1) / len(v) * float(np.sum((v - v.mean()) ** 2)) for v in leave_one_out
    )
    return float(np.sqrt(variance))


def nuclear_loss(left: Array, singular: Array) -> Array:
    """Return what the nuclear norm of a centred matrix loses without row i, for every i.

    Parameters
    ----------
    left, singular : float arrays, shapes (n, r) and (r,)
        Left vectors and singular values of the matrix, whose columns have mean 0.

    Notes
    -----
    To remove row i and centre again is to project the columns onto the complement of one unit
    vector, which takes z z^T from the Gram matrix. With sqrt(a) = (1/pi) int_0^inf log(1 +
    a/x^2) dx, the loss is -(1/pi) int log(1 - sum_j z_j^2/(s_j^2 + x^2)) dx. All poles lie on
    the imaginary axis, so that the trapezoidal rule in log x has an error of exp(-pi^2/step).
    """
    n = len(left)
    kept = singular > max(left.shape) * np.finfo(float).eps * singular[0]
    if not kept.any():
        return np.zeros(n)
    s = singular[kept] / singular[0]
    weight = left[:, kept] ** 2 / (1 - 1 / n)
    # Written so that nothing cancels: below 1 as what remains, above 1 as what is lost.
    unseen = np.zeros(n) if kept.sum() >= n - 1 else np.clip(1 - weight.sum(axis=1), 0, None)
    below, above = (np.exp(_STEP * np.arange(*ends)) for ends in ((-125, 1), (1, 115)))
    remains = unseen[:, None] + weight @ (1 / (1 + (s[:, None] / below) ** 2))
    lost = weight @ (1 / (1 + (above / s[:, None]) ** 2))
    integral = np.log(remains) @ below + np.log1p(-lost) @ above
    loss: Array = -_STEP / np.pi * singular[0] * integral
    return loss


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a proportion; (0, 1) without trials."""
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = (
        stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    )
    return float(low), float(high)


def upper_bound_of_share(found: int, trials: int) -> float:
    """Return the one-sided 95 % upper bound of a share; 1 - 0.05^(1/trials) where none is found."""
    return clopper_pearson(found, trials, level=0.9)[1]


def stratified_bootstrap(
    statistic: Callable[[Sequence[npt.NDArray[np.int64]]], Array],
    sizes: Sequence[int],
    *,
    seed: int,
    repeats: int = 2000,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic under resampling of persons.

    Parameters
    ----------
    statistic : callable
        Takes one index array of shape (repeats, size) a stratum, returns (repeats,) values.
    sizes : sequence of int
        Persons in each stratum; each stratum is resampled on its own.
    """
    draw = generator(seed, "bootstrap")
    indices = [draw.integers(0, size, (repeats, size)) for size in sizes]
    low, high = np.quantile(statistic(indices), (0.025, 0.975))
    return float(low), float(high)


def delong(positive: Array, negative: Array) -> tuple[Array, Array]:
    """Return areas under the ROC curve of several scores on the same persons, and their covariance.

    Parameters
    ----------
    positive, negative : float64 arrays, shape (scores, persons of the class)
        Higher means "more likely positive". Ties count one half.

    Returns
    -------
    auc : shape (scores,)
    covariance : shape (scores, scores)
        DeLong et al. 1988: cov(V10)/n1 + cov(V01)/n0, divisor n - 1.
    """
    of_positive, of_negative = placements(positive, negative)
    covariance = np.atleast_2d(np.cov(of_positive)) / positive.shape[1]
    covariance = covariance + np.atleast_2d(np.cov(of_negative)) / negative.shape[1]
    return of_positive.mean(axis=1), covariance


def placements(positive: Array, negative: Array) -> tuple[Array, Array]:
    """Return DeLong's V10 and V01: each person's share of right orders with the other class.

    Parameters
    ----------
    positive, negative : float64 arrays, shape (scores, persons of the class)
    """
    wins = (positive[:, :, None] > negative[:, None, :]) + 0.5 * (
        positive[:, :, None] == negative[:, None, :]
    )
    return wins.mean(axis=2), wins.mean(axis=1)


def auc_interval(positive: Array, negative: Array) -> tuple[float, float, float]:
    """Return the area under the ROC curve of one score and its 95 % interval.

    DeLong's variance on the logit scale (Pepe 2003, eq. 5.17): near 1 the plain interval covers
    less than 90 % at n = 50. A perfect separation has no sampling variance of its own; then the
    exact bound of "all right" in the smaller class stands in, so that few persons never look
    certain.
    """
    auc, covariance = delong(positive[None], negative[None])
    value, se = float(auc[0]), float(np.sqrt(covariance[0, 0]))
    if se == 0:
        slack = unseen(min(len(positive), len(negative)))
        return value, max(0.0, value - slack), min(1.0, value + slack)
    width, middle = Z95 * se / (value * (1 - value)), logit(value)
    return value, float(expit(middle - width)), float(expit(middle + width))


def unseen(trials: int) -> float:
    """Return the largest share (97.5 %) that may be wrong where none of the trials was."""
    return 1 - clopper_pearson(trials, trials)[0]


def auc_difference(positive: Array, negative: Array) -> tuple[float, float]:
    """Return the paired difference of two areas, second minus first, and its standard error.

    Parameters
    ----------
    positive, negative : float64 arrays, shape (2, persons of the class)
    """
    auc, covariance = delong(positive, negative)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return float(auc[1] - auc[0]), float(np.sqrt(max(variance, 0.0)))


def holm(p_values: Array) -> Array:
    """Return Holm's adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
