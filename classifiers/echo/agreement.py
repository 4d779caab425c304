"""How far measured values are from true ones, with intervals over persons.

`agreement` is the way in. What a reader would get wrong: the persons are drawn again, with all
their clips, never the clips; and R2 is against the mean of these persons, so that a narrow range
of values gives a small one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rarescan.seeds import generator

Array = npt.NDArray[np.float64]
Interval = tuple[float, float, float]
"""Value, and both ends of its 95 % interval."""

_DRAWS = 2000


def agreement(
    truth: Sequence[float], found: Sequence[float], person_ids: Sequence[str], *, seed: int = 0
) -> dict[str, Interval]:
    """Return MAE, RMSE, R2, bias and limits of agreement of measured values.

    Parameters
    ----------
    truth, found : sequences of float
        One a clip or study, in one unit; pairs with a NaN are left out and counted by the caller.
    person_ids : sequence of str
        Whose they are.
    seed : int
        Of the bootstrap (2,000 draws of persons, percentiles).

    Returns
    -------
    dict
        `mae`, `rmse`, `r2`, `bias` (found - true), `low_limit`, `high_limit` (Bland and Altman
        1986: bias -+ 1.96 standard deviations). Empty without pairs; NaN ends with one person.
    """
    pairs = np.array([truth, found], dtype=np.float64)
    kept = np.isfinite(pairs).all(axis=0)
    pairs, people = pairs[:, kept], np.array(person_ids, dtype=object)[kept]
    if not len(people):
        return {}
    names, whose = np.unique(people.astype(str), return_inverse=True)
    draws = generator(seed, "agreement").multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=_DRAWS
    )
    values = _figures(pairs[0], pairs[1], np.ones((1, len(whose))))
    weights = draws[:, whose].astype(np.float64)
    again = _figures(pairs[0], pairs[1], weights) if len(names) > 1 else {}
    intervals: dict[str, Interval] = {}
    for name, value in values.items():
        drawn = again[name][np.isfinite(again[name])] if again else np.empty(0)
        low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
        intervals[name] = (float(value[0]), float(low), float(high))
    return intervals


def _figures(truth: Array, found: Array, weights: Array) -> dict[str, Array]:
    """Return each figure for every row of weights, shape (draws, pairs)."""
    error, total = found - truth, weights.sum(axis=1)
    squares, bias = weights @ error**2, weights @ error / total
    spread = weights @ (truth - truth.mean()) ** 2 - (weights @ (truth - truth.mean())) ** 2 / total
    deviation = np.sqrt(np.maximum(squares - total * bias**2, 0) / np.maximum(total - 1, 1))
    # A draw of one person has no spread, and so no R2.
    known = spread > 1e-9 * max(float(np.ptp(truth)) ** 2, 1e-9)
    return {
        "mae": weights @ np.abs(error) / total,
        "rmse": np.sqrt(squares / total),
        "r2": np.where(known, 1 - squares / np.where(known, spread, 1), np.nan),
        "bias": bias,
        "low_limit": bias - 1.96 * deviation,
        "high_limit": bias + 1.96 * deviation,
    }
