"""Is candidate A farther from real persons than candidate B? The relative-similarity test.

Bounliphone et al. 2016: D = MMD^2(X, A) - MMD^2(X, B). The real-real term cancels, so the
sampling error of the real persons enters only through the difference of cross terms.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from rarescan.evaluation.metrics import rbf

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Relative:
    """How much farther A is than B."""

    difference: float
    """MMD^2(X, A) - MMD^2(X, B)."""
    se: float
    """Corrected for the pairwise part, which the first-order variance counts twice."""
    se_plain: float

    @property
    def p_worse(self) -> float:
        """One-sided p of "A is not worse than B"."""
        return float(norm.sf(self.difference / self.se)) if self.se > 0 else 1.0

    @property
    def p_better(self) -> float:
        """One-sided p of "A is not better than B"."""
        return float(norm.cdf(self.difference / self.se)) if self.se > 0 else 1.0


def compare(real: Array, a: Array, b: Array, *, sigma2: float) -> Relative:
    """Return the difference of two candidates' distances to the same real persons.

    Parameters
    ----------
    real, a, b : float arrays, shapes (n, d), (m_a, d), (m_b, d), one row a person
    sigma2 : float
        The frozen bandwidth of the RBF kernel.

    Notes
    -----
    Var D = 4 var_i(c_a(i) - c_b(i))/n + 4 var_j(r_a(j) - g_a(j))/m_a + the same for b, with c the
    mean kernel of a real person to the set, g of a synthetic one to the real persons, r to the
    others of its set. Subtracted: 4 s2_xc/(n m_c) + 2 s2_cc/m_c^2, the mean squares of the
    double-centred kernels; never below a quarter of the plain variance.
    """
    return compare_sides(*(Side.of(real, rows, sigma2) for rows in (a, b)))


def compare_sides(a: "Side", b: "Side") -> Relative:
    """Return the same from sides, whose kernels are computed once for several comparisons."""
    n = len(a.to_set)
    plain = 4 * np.var(a.to_set - b.to_set, ddof=1) / n
    plain += sum(4 * np.var(s.within - s.to_real, ddof=1) / len(s.within) for s in (a, b))
    pairwise = sum(s.pairwise_variance(n) for s in (a, b))
    return Relative(
        difference=float(a.distance - b.distance),
        se=float(np.sqrt(max(plain - pairwise, plain / 4))),
        se_plain=float(np.sqrt(plain)),
    )


@dataclass(frozen=True)
class Side:
    """What one candidate's kernels contribute; made by `Side.of`."""

    to_set: Array
    to_real: Array
    within: Array
    cross_square: float
    within_square: float

    @classmethod
    def of(cls, real: Array, rows: Array, sigma2: float) -> "Side":
        """Return a candidate's side: `rows` (m, d) with m >= 4 against `real` (n, d), n >= 2."""
        real, rows = real.astype(np.float64), rows.astype(np.float64)
        cross, own = rbf(real, rows, sigma2), rbf(rows, rows, sigma2)
        n, m = cross.shape
        to_set, to_real = cross.mean(axis=1), cross.mean(axis=0)
        centred = cross - to_set[:, None] - to_real[None] + cross.mean()
        within = (own.sum(axis=1) - np.diag(own)) / (m - 1)
        mean = within.mean()
        effect = (within - mean) * (m - 1) / (m - 2)
        rest = own - effect[:, None] - effect[None] - mean
        np.fill_diagonal(rest, 0.0)
        return cls(
            to_set,
            to_real,
            within,
            float(np.sum(centred**2) / ((n - 1) * (m - 1))),
            float(np.sum(rest**2) / (m * (m - 3))),
        )

    @property
    def distance(self) -> float:
        """MMD^2 to the real persons, without the real-real term."""
        return float(self.within.mean() - 2 * self.to_set.mean())

    def pairwise_variance(self, n: int) -> float:
        """Return what the first-order variance counts twice, against n real persons."""
        m = len(self.within)
        return 4 * self.cross_square / (n * m) + 2 * self.within_square / m**2
