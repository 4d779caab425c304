"""The rows of the score table: every distance between two sets as a `Score` with its interval.

`score_pair` is the way in. Each row says whether there are enough persons to read it, how its
interval was made, and whether it decides: only the MMD does.
"""

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from rarescan.cohort.contracts import Score
from rarescan.evaluation.intervals import Z95, unseen
from rarescan.evaluation.metrics import (
    NEIGHBOURS,
    Array,
    fid_at_equal_n,
    inception_score,
    kid,
    mmd,
    prdc_of_distances,
    require_comparable,
)
from rarescan.seeds import generator

FEWEST_FOR_FID = 200
"""Below this many persons a FID is shown and never decides (its bias exceeds its signal)."""
FEWEST_FOR_MMD = 20
FEWEST_FOR_NEIGHBOURS = 50
_HALF_SAMPLES = 50


def score_pair(
    real: npt.NDArray[np.floating],
    synthetic: npt.NDArray[np.floating],
    *,
    sigma2: float,
    seed: int,
) -> dict[str, Score]:
    """Return every distance between two sets, by name, with its 95 % interval.

    Parameters
    ----------
    real, synthetic : float arrays, shape (n, d) and (m, d)
        One row a person. `real` are persons that no generator has seen.
    sigma2 : float
        The frozen bandwidth of the reference set.
    seed : int
        Draws of equal size and half samples.

    Raises
    ------
    InputError
        The sets cannot be compared; the message says why.
    """
    x, y = require_comparable(real, synthetic)
    kid_of_whole, d = kid_row(x, y), x.shape[1]
    x, y = in_their_span(x, y)
    scores = {"mmd": mmd_row(x, y, sigma2=sigma2), "kid": kid_of_whole}
    if min(len(x), len(y)) >= 3:
        scores |= fid_rows(x, y, n_features=d, seed=seed)
    k = min(NEIGHBOURS, len(x) // 2 - 1, len(y) // 2 - 1)
    return scores | (prdc_rows(x, y, neighbours=k, seed=seed) if k >= 1 else {})


def in_their_span(real: Array, synthetic: Array) -> tuple[Array, Array]:
    """Return both sets turned and moved so that n + m columns hold all of them, if d is more.

    Distances between persons, and with them every score but the KID, stay what they were.
    """
    n, m = len(real), len(synthetic)
    if real.shape[1] <= n + m:
        return real, synthetic
    both = np.vstack([real, synthetic]) - real.mean(axis=0)
    turned = np.asarray(np.linalg.qr(both.T, mode="r")).T
    return turned[:n], turned[n:]


def mmd_row(real: Array, synthetic: Array, *, sigma2: float) -> Score:
    """Return the distance that decides."""
    n, m = len(real), len(synthetic)
    return mmd(real, synthetic, sigma2=sigma2).score(
        "mmd",
        n_real=n,
        n_synthetic=m,
        sufficient=n >= FEWEST_FOR_MMD,
        method="unbiased RBF-MMD^2, bandwidth frozen on real persons; jackknife over persons",
    )


def kid_row(real: Array, synthetic: Array) -> Score:
    """Return the KID of the whole sets."""
    n, m = len(real), len(synthetic)
    return kid(real, synthetic).score(
        "kid",
        n_real=n,
        n_synthetic=m,
        sufficient=n >= FEWEST_FOR_FID,
        method="whole sets, cubic kernel; jackknife over persons; does not decide",
    )


def fid_rows(real: Array, synthetic: Array, *, n_features: int, seed: int) -> dict[str, Score]:
    """Return the raw FID and the one corrected for its bias, at n = m, three persons at least."""
    raw, corrected, n = fid_at_equal_n(real, synthetic, seed=seed)
    enough = n >= FEWEST_FOR_FID
    return {
        "fid": raw.score(
            "fid",
            n_real=n,
            n_synthetic=n,
            sufficient=enough,
            method="raw, at n = m; interval for the expectation at this n; does not decide",
        ),
        "fid_jackknife": corrected.score(
            "fid_jackknife",
            n_real=n,
            n_synthetic=n,
            sufficient=enough and 2 * n >= n_features,
            method="bias-corrected, at n = m; interval for the populations; does not decide",
        ),
    }


def prdc_rows(real: Array, synthetic: Array, *, neighbours: int, seed: int) -> dict[str, Score]:
    """Return precision, recall, density and coverage; half of each set has `neighbours` + 1."""
    n, m, k = len(real), len(synthetic), neighbours
    dxx, dyy, dxy = cdist(real, real), cdist(synthetic, synthetic), cdist(real, synthetic)
    values = prdc_of_distances(dxx, dyy, dxy, k)
    halves = []
    for index in range(_HALF_SAMPLES):
        draw = generator(seed, "half", index)
        i, j = draw.choice(n, n // 2, replace=False), draw.choice(m, m // 2, replace=False)
        halves.append(prdc_of_distances(dxx[np.ix_(i, i)], dyy[np.ix_(j, j)], dxy[np.ix_(i, j)], k))
    scores = {}
    for name, value in values.items():
        se = float(np.std([half[name] for half in halves], ddof=1))
        # Half samples that all agree say nothing of persons that were not drawn.
        slack = Z95 * se or unseen(min(n, m))
        scores[name] = Score(
            name=name,
            value=value,
            low=max(0.0, value - slack),
            high=value + slack if name == "density" else min(1.0, value + slack),
            better="higher",
            n_real=n,
            n_synthetic=m,
            sufficient=min(n, m) >= FEWEST_FOR_NEIGHBOURS,
            method=f"k = {k}, interval from {_HALF_SAMPLES} half samples; does not decide",
        )
    return scores


def inception_score_row(probabilities: npt.NDArray[np.floating], what: str) -> Score:
    """Return the inception score as a row that says that it decides nothing."""
    value, _ = inception_score(probabilities.astype(np.float64))
    return Score(
        name="is",
        value=value,
        better="neither",
        n_synthetic=len(probabilities),
        sufficient=False,
        method=f"IS is uninformative for MRI; {what}",
    )
