"""The rows of the score table: every distance between two sets as a `Score` with its interval.

`score_pair` is the way in. Each row says whether there are enough persons to read it, how its
interval was made, and whether it decides: only the MMD does.
"""

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from rarescan.cohort.contracts import Score
from rarescan.evaluation.intervals import Z95
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
    n, m = len(x), len(y)
    scores = {
        "mmd": mmd(x, y, sigma2=sigma2).score(
            "mmd",
            n_real=n,
            n_synthetic=m,
            sufficient=n >= FEWEST_FOR_MMD,
            method="unbiased RBF-MMD^2, bandwidth frozen on real persons; jackknife over persons",
        ),
        "kid": kid(x, y).score(
            "kid",
            n_real=n,
            n_synthetic=m,
            sufficient=n >= FEWEST_FOR_FID,
            method="whole sets, cubic kernel; jackknife over persons; does not decide",
        ),
    }
    if min(n, m) >= 3:
        raw, corrected, equal_n = fid_at_equal_n(x, y, seed=seed)
        enough = equal_n >= FEWEST_FOR_FID
        scores["fid"] = raw.score(
            "fid",
            n_real=equal_n,
            n_synthetic=equal_n,
            sufficient=enough,
            method="raw, at n = m; interval for the expectation at this n; does not decide",
        )
        scores["fid_jackknife"] = corrected.score(
            "fid_jackknife",
            n_real=equal_n,
            n_synthetic=equal_n,
            sufficient=enough and 2 * equal_n >= x.shape[1],
            method="bias-corrected, at n = m; interval for the populations; does not decide",
        )
    return scores | _prdc_scores(x, y, seed)


def _prdc_scores(real: Array, synthetic: Array, seed: int) -> dict[str, Score]:
    n, m = len(real), len(synthetic)
    k = min(NEIGHBOURS, n // 2 - 1, m // 2 - 1)
    if k < 1:
        return {}
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
        high = value + Z95 * se
        scores[name] = Score(
            name=name,
            value=value,
            low=max(0.0, value - Z95 * se),
            high=high if name == "density" else min(1.0, high),
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
