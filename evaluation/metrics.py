"""Distances between two sets of feature vectors, one row a person, each with its interval.

`fid`, `kid`, `mmd`, `prdc` and `inception_score` compute one number each; `table.score_pair` is
the way in for all of them. All arithmetic is float64. The bandwidth of the MMD comes from real
persons only and is frozen (`frozen_bandwidth`). What a reader would get wrong: FID grows when
persons get fewer, so only FIDs at the same n compare.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist

from rarescan.cohort.contracts import Score
from rarescan.errors import InputError
from rarescan.evaluation.intervals import Z95, jackknife_se, nuclear_loss
from rarescan.evaluation.moments import Moments, frechet
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]

NEIGHBOURS = 5
_WIDE = 256


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its standard error."""

    value: float
    se: float

    def score(
        self, name: str, *, n_real: int, n_synthetic: int, method: str, **more: object
    ) -> Score:
        """Return it with its 95 % interval, value +/- 1.96 SE."""
        low, high = self.value - Z95 * self.se, self.value + Z95 * self.se
        return Score(
            name=name,
            value=self.value,
            low=low,
            high=high,
            n_real=n_real,
            n_synthetic=n_synthetic,
            method=method,
            **more,  # type: ignore[arg-type]
        )


def require_comparable(
    real: npt.NDArray[np.floating],
    other: npt.NDArray[np.floating],
    name: str = "synthetic",
    *,
    reference: str = "real",
) -> tuple[Array, Array]:
    """Return both sets as float64, or say what makes a comparison impossible.

    Raises
    ------
    InputError
        Not tables, different numbers of columns, fewer than two rows, values that are not
        finite, or real features that do not vary.
    """
    for whose, rows in ((reference, real), (name, other)):
        _require_table(rows, whose)
    if real.shape[1] != other.shape[1]:
        raise InputError(
            f"Features of '{reference}' have {real.shape[1]} columns, "
            f"those of '{name}' {other.shape[1]}.",
            remedy="Compute both with the same extractor and the same weights.",
        )
    if not np.ptp(real, axis=0).any():
        raise InputError(
            f"Every person of '{reference}' has the same features.",
            remedy="The extractor tells no persons apart: train it longer, or choose another.",
        )
    return real.astype(np.float64), other.astype(np.float64)


def _require_table(rows: npt.NDArray[np.floating], whose: str) -> None:
    if rows.ndim != 2:
        raise InputError(
            f"The features of '{whose}' have {rows.ndim} axes.",
            remedy="Give one row a person and one column a feature.",
        )
    if len(rows) < 2:
        raise InputError(
            f"The features of '{whose}' hold {len(rows)} person{'' if len(rows) == 1 else 's'}.",
            remedy="A distance between two sets needs at least two persons in each.",
        )
    bad = int((~np.isfinite(rows)).any(axis=1).sum())
    if bad:
        raise InputError(
            f"The features of '{whose}' hold NaN or infinity for {bad} persons.",
            remedy="Look at the scans of these persons and at the extractor's weights.",
        )


def fid(real: Array, synthetic: Array) -> float:
    """Return the Fréchet distance between Gaussians fitted to both sets.

    Parameters
    ----------
    real, synthetic : float arrays, shape (n, d) and (m, d)
        One row a person. n, m and d may be in any order; covariances have divisor n - 1.

    Notes
    -----
    |mx - my|^2 + tr Sx + tr Sy - 2 tr (Sx Sy)^(1/2), where the last trace is the nuclear norm of
    A B^T with A, B the centred sets over sqrt(n - 1): no square root of a d x d matrix, exact for
    singular covariances. Many persons with many features go through `moments.frechet`.
    """
    d = real.shape[1]
    if d >= _WIDE and min(len(real), len(synthetic)) >= 2 * d:
        return frechet(Moments.of(real), Moments.of(synthetic))
    a, b = _centred(real), _centred(synthetic)
    shift = real.mean(axis=0) - synthetic.mean(axis=0)
    cross = np.linalg.svd(_short(a) @ _short(b).T, compute_uv=False).sum()
    return float(shift @ shift + np.sum(a * a) + np.sum(b * b) - 2 * cross)


def _centred(rows: Array) -> Array:
    centred: Array = (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)
    return centred


def _short(rows: Array) -> Array:
    """Return rows with the same Gram matrix of columns, at most d of them."""
    if len(rows) <= rows.shape[1]:
        return rows
    short: Array = np.asarray(np.linalg.qr(rows, mode="r"))
    return short


def fid_jackknife(real: Array, synthetic: Array) -> tuple[Estimate, Estimate]:
    """Return the raw FID and the one corrected for its bias, both with the jackknife SE.

    The corrected value F - (n-1)(mean F(-i,.) - F) - (m-1)(mean F(.,-j) - F) estimates the
    distance between the populations and may be negative; it is valid at n = m. All n + m
    delete-one values are computed. Arguments as in `fid`.
    """
    value = fid(real, synthetic)
    without_real = _fid_without_each(real, synthetic)
    without_synthetic = _fid_without_each(synthetic, real)
    se = jackknife_se(without_real, without_synthetic)
    bias = (len(real) - 1) * (without_real.mean() - value)
    bias += (len(synthetic) - 1) * (without_synthetic.mean() - value)
    return Estimate(value=value, se=se), Estimate(value=float(value - bias), se=se)


def _fid_without_each(x: Array, y: Array) -> Array:
    """Return FID(x without row i, y) for every i, from one decomposition."""
    n = len(x)
    b = _centred(y)
    centred = x - x.mean(axis=0)
    squares = np.sum(centred**2, axis=1)
    left, singular, _ = np.linalg.svd(centred @ _short(b).T, full_matrices=False)
    nuclear = singular.sum() - nuclear_loss(left, singular)
    shift = x.mean(axis=0) - y.mean(axis=0)
    moved = shift @ shift - 2 * (centred @ shift) / (n - 1) + squares / (n - 1) ** 2
    # Removing one row lowers the sum of squares by n/(n-1) times its squared distance.
    trace = (squares.sum() - n / (n - 1) * squares) / (n - 2)
    without: Array = moved + trace + np.sum(b * b) - 2 * nuclear / np.sqrt(n - 2)
    return without


def fid_at_equal_n(real: Array, synthetic: Array, *, seed: int) -> tuple[Estimate, Estimate, int]:
    """Return raw and corrected FID at n = m, averaged over draws from the larger set, and n.

    The jackknife over-corrects at n != m, so min(n, m) persons are drawn without replacement,
    10 times (fewer above 50 persons, where one draw says more).
    """
    n = min(len(real), len(synthetic))
    draws = 1 if len(real) == len(synthetic) else max(1, min(10, 500 // n))
    pairs = []
    for index in range(draws):
        rows = generator(seed, "equal n", index)
        sets = (s[np.sort(rows.choice(len(s), n, replace=False))] for s in (real, synthetic))
        pairs.append(fid_jackknife(*sets))
    raw, corrected = (
        Estimate(
            value=float(np.mean([pair[k].value for pair in pairs])),
            se=float(np.mean([pair[k].se for pair in pairs])),
        )
        for k in (0, 1)
    )
    return raw, corrected, n


def frozen_bandwidth(real: Array) -> float:
    """Return sigma^2 of the RBF kernel: the median squared distance of real pairs over 4."""
    sigma2 = float(np.median(pdist(real.astype(np.float64), "sqeuclidean"))) / 4
    if sigma2 <= 0:
        raise InputError(
            "More than half of the real persons have the same features.",
            remedy="Look for duplicated persons, or train the extractor longer.",
        )
    return sigma2


def rbf(x: Array, y: Array, sigma2: float) -> Array:
    """Return exp(-|x - y|^2 / (2 sigma2)) for every pair of rows."""
    kernel: Array = np.exp(cdist(x, y, "sqeuclidean") / (-2 * sigma2))
    return kernel


def mmd(real: Array, synthetic: Array, *, sigma2: float | None = None) -> Estimate:
    """Return the unbiased squared MMD with an RBF kernel, and its jackknife SE.

    Parameters
    ----------
    real, synthetic : float arrays, shape (n, d) and (m, d)
        One row a person.
    sigma2 : float, optional
        The frozen bandwidth; `frozen_bandwidth(real)` by default.

    Notes
    -----
    Near 0 for equal distributions and may be negative; at most 2.
    """
    sigma2 = frozen_bandwidth(real) if sigma2 is None else sigma2
    return mmd_of_kernels(
        rbf(real, real, sigma2), rbf(synthetic, synthetic, sigma2), rbf(real, synthetic, sigma2)
    )


def kid(real: Array, synthetic: Array) -> Estimate:
    """Return the kernel inception distance of the whole sets and its jackknife SE.

    Unbiased squared MMD with the kernel (x.y/d + 1)^3; no subsets, n != m allowed. It equals
    torchmetrics with `subsets=1, subset_size=n=m`.
    """
    return mmd_of_kernels(cubic(real, real), cubic(synthetic, synthetic), cubic(real, synthetic))


def cubic(x: Array, y: Array) -> Array:
    """Return (x.y/d + 1)^3 for every pair of rows."""
    kernel: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def mmd_of_kernels(kxx: Array, kyy: Array, kxy: Array) -> Estimate:
    """Return the unbiased squared MMD of kernel matrices (n, n), (m, m), (n, m), and its SE."""
    n, m = kxy.shape
    rows_x, rows_y = kxx.sum(axis=1) - np.diag(kxx), kyy.sum(axis=1) - np.diag(kyy)
    sum_x, sum_y, sum_xy = rows_x.sum(), rows_y.sum(), kxy.sum()
    within_x, within_y, between = sum_x / (n * (n - 1)), sum_y / (m * (m - 1)), sum_xy / (n * m)
    value = float(within_x + within_y - 2 * between)
    if min(n, m) < 3:
        return Estimate(value=value, se=float("inf"))
    without_x = (
        (sum_x - 2 * rows_x) / ((n - 1) * (n - 2))
        + within_y
        - 2 * (sum_xy - kxy.sum(axis=1)) / ((n - 1) * m)
    )
    without_y = (
        within_x
        + (sum_y - 2 * rows_y) / ((m - 1) * (m - 2))
        - 2 * (sum_xy - kxy.sum(axis=0)) / (n * (m - 1))
    )
    return Estimate(value=value, se=jackknife_se(without_x, without_y))


def prdc(real: Array, synthetic: Array, *, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Return precision, recall, density and coverage (Naeem et al. 2020), k-neighbour balls.

    Precision, density and coverage reward a generator that stays in the middle of the data;
    only recall punishes it. None of them gates.

    Raises
    ------
    InputError
        A set has no k-th neighbour (needs k + 1 persons).
    """
    if min(len(real), len(synthetic)) <= neighbours:
        raise InputError(
            f"Neighbours need more than {neighbours} persons in each set.",
            remedy="Add persons, or draw more synthetic scans.",
        )
    return prdc_of_distances(
        cdist(real, real), cdist(synthetic, synthetic), cdist(real, synthetic), neighbours
    )


def prdc_of_distances(dxx: Array, dyy: Array, dxy: Array, k: int) -> dict[str, float]:
    """Return the same from distances real-real, synthetic-synthetic and real-synthetic.

    A ball holds what is nearer than its radius, as in the package prdc.
    """
    # Column k of the sorted rows is the k-th neighbour, because column 0 is the point itself.
    real_radius = np.partition(dxx, k, axis=1)[:, k]
    synthetic_radius = np.partition(dyy, k, axis=1)[:, k]
    in_real_ball = dxy < real_radius[:, None]
    return {
        "precision": float(in_real_ball.any(axis=0).mean()),
        "recall": float((dxy < synthetic_radius[None]).any(axis=1).mean()),
        "density": float(in_real_ball.sum(axis=0).mean() / k),
        "coverage": float((dxy.min(axis=1) < real_radius).mean()),
    }


def inception_score(probabilities: Array, *, splits: int = 1) -> tuple[float, float]:
    """Return mean and SD (divisor `splits`) over splits of exp(mean KL(p(y|x) || p(y))).

    Parameters
    ----------
    probabilities : float array, shape (n, classes)
        Rows sum to one. Split i is rows [i n // splits, (i + 1) n // splits); nothing is shuffled.
    """
    n = len(probabilities)
    parts = [probabilities[i * n // splits : (i + 1) * n // splits] for i in range(splits)]
    values = [inception_score_of_part(part) for part in parts]
    return float(np.mean(values)), float(np.std(values))


def inception_score_of_part(probabilities: Array) -> float:
    """Return the score of one split."""
    p = np.clip(probabilities.astype(np.float64), 1e-300, None)
    divergence = np.sum(p * (np.log(p) - np.log(p.mean(axis=0))), axis=1)
    return float(np.exp(divergence.mean()))


def vendi(kernel: Array) -> float:
    """Return how many different rows a set is worth, 1 to n (Friedman and Dieng 2023).

    Parameters
    ----------
    kernel : float array, shape (n, n)
        Similarities with ones on the diagonal; for example `rbf(x, x, sigma2)`.

    Notes
    -----
    exp(-sum w ln w), w the eigenvalues of kernel / n.
    """
    w = np.linalg.eigvalsh(kernel / len(kernel))
    w = w[w > 0]
    return float(np.exp(-np.sum(w * np.log(w))))
