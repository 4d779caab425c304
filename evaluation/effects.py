"""What the diagnosis does to each brain region, in real and in synthetic persons.

`Effects.of` compares standardised differences (Hedges' g); `Effects.wrong` says whether synthetic
patients show the opposite, a washed-out or an exaggerated disease.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from rarescan.evaluation.intervals import jackknife_se
from rarescan.evaluation.measures import MEASURES, REGIONS

Array = npt.NDArray[np.float64]

EFFECTS = (*REGIONS, "ventricles")
"""Names of the regions, in the order of every array."""
_WASHED_OUT, _CARICATURE = 0.5, 1.5


@dataclass(frozen=True)
class Effects:
    """What the diagnosis does to each region, in real and in synthetic persons."""

    real: Array
    """Hedges' g, positive minus negative, one value a region of `EFFECTS`."""
    real_se: Array
    synthetic: Array
    synthetic_se: Array
    slope: tuple[float, float] | None
    """Synthetic effects over real ones (weighted, through 0) and its jackknife error; None where
    no region differs in real persons."""

    @classmethod
    def of(
        cls,
        real: tuple[Array, Array],
        synthetic: tuple[Array, Array],
    ) -> "Effects | None":
        """Compare (positive, negative) region vectors; None where a group has under 3 persons."""
        if min(len(rows) for rows in (*real, *synthetic)) < 3:
            return None
        columns = [MEASURES.index(name) for name in EFFECTS]
        groups = [rows[:, columns] for rows in (*real, *synthetic)]
        g_real, se_real = hedges_g(groups[0], groups[1])
        g_synthetic, se_synthetic = hedges_g(groups[2], groups[3])
        slope = None
        if _rejected(2 * stats.norm.sf(np.abs(g_real / se_real))).any():
            slope = _slope_with_error(groups)
        return cls(g_real, se_real, g_synthetic, se_synthetic, slope)

    def wrong(self) -> str:
        """Return what is wrong with the synthetic effects, or nothing."""
        z = (self.synthetic - self.real) / np.hypot(self.real_se, self.synthetic_se)
        clear = (np.abs(self.real) > 1.96 * self.real_se) & (
            np.abs(self.synthetic) > 1.96 * self.synthetic_se
        )
        opposite = np.sign(self.real) != np.sign(self.synthetic)
        reversed_ = _rejected(2 * stats.norm.sf(np.abs(z))) & clear & opposite
        if reversed_.any():
            names = ", ".join(EFFECTS[i] for i in np.flatnonzero(reversed_))
            return f"The diagnosis changes {names} in the opposite direction."
        if self.slope is None:
            return ""
        slope, se = self.slope
        if slope + 1.96 * se < _WASHED_OUT:
            return f"The diagnosis is washed out: its effects are {slope:.0%} of the real ones."
        if slope - 1.96 * se > _CARICATURE:
            return f"The diagnosis is a caricature: its effects are {slope:.0%} of the real ones."
        return ""

    def table(self) -> dict[str, dict[str, float]]:
        """Return region -> real and synthetic effect with their standard errors."""
        columns = zip(self.real, self.real_se, self.synthetic, self.synthetic_se, strict=True)
        return {
            name: {
                "real": float(a),
                "real_se": float(b),
                "synthetic": float(c),
                "synthetic_se": float(d),
            }
            for name, (a, b, c, d) in zip(EFFECTS, columns, strict=True)
        }


def hedges_g(positive: Array, negative: Array) -> tuple[Array, Array]:
    """Return Hedges' g of each column, positive minus negative, and its standard error.

    Parameters
    ----------
    positive, negative : float arrays, shapes (n, d) and (m, d)
    """
    n, m = len(positive), len(negative)
    pooled = ((n - 1) * positive.var(axis=0, ddof=1) + (m - 1) * negative.var(axis=0, ddof=1)) / (
        n + m - 2
    )
    correction = 1 - 3 / (4 * (n + m) - 9)
    difference = positive.mean(axis=0) - negative.mean(axis=0)
    g = correction * difference / np.sqrt(np.maximum(pooled, 1e-24))
    return g, np.sqrt((n + m) / (n * m) + g**2 / (2 * (n + m)))


def _slope(groups: list[Array]) -> float:
    real, se = hedges_g(groups[0], groups[1])
    synthetic, _ = hedges_g(groups[2], groups[3])
    return float(np.sum(real * synthetic / se**2) / np.sum(real**2 / se**2))


def _slope_with_error(groups: list[Array]) -> tuple[float, float]:
    # Regions of one person go together, so persons are left out, never regions.
    without = [
        np.array(
            [
                _slope([*groups[:k], np.delete(rows, i, axis=0), *groups[k + 1 :]])
                for i in range(len(rows))
            ]
        )
        for k, rows in enumerate(groups)
    ]
    return _slope(groups), jackknife_se(*without)


def _rejected(p: Array) -> npt.NDArray[np.bool_]:
    """Return which hypotheses Benjamini and Hochberg's procedure rejects at 5 %."""
    order = np.argsort(p)
    passes = p[order] <= 0.05 * np.arange(1, len(p) + 1) / len(p)
    rejected = np.zeros(len(p), bool)
    if passes.any():
        rejected[order[: np.flatnonzero(passes)[-1] + 1]] = True
    return rejected
