"""Are synthetic brains as varied, as crisp and as likely as real ones? Three gates.

`spread_gate` finds lost variance, `high_frequency_gate` blur, `plausibility_gate` brains that no
person has and diagnoses that do not do to a brain what they do in reality. Each says pass, fail
or insufficient. One row or value a person, never a slice.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from rarescan.cohort.contracts import Gate, Outcome
from rarescan.evaluation.effects import Effects
from rarescan.evaluation.intervals import clopper_pearson, jackknife_se
from rarescan.evaluation.measures import MEASURES

Array = npt.NDArray[np.float64]

SPREAD_LEVEL = 0.03
"""One-sided level of each of the two spread statistics."""
SMALLEST_SPREAD = 0.75
"""Share of the real squared spread that a passing generator has kept surely."""
_HIGH_FREQUENCY_LEVEL = 0.05
_EXCESS_LEVEL = 0.01
_IMPLAUSIBLE_ALLOWED = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Synthetic minus real, with what a one-sided t-test needs."""

    value: float
    se: float
    df: float

    @property
    def t(self) -> float:
        """Value over its standard error."""
        return self.value / self.se if self.se > 0 else float(np.sign(self.value) * np.inf)

    def critical(self, level: float) -> float:
        """Return the t below which "synthetic is smaller" is significant."""
        return float(stats.t.ppf(level, self.df))

    def lower(self, level: float) -> float:
        """Return the one-sided lower bound of the value."""
        return self.value + self.critical(level) * self.se


def welch(real: Array, synthetic: Array) -> Difference:
    """Return the difference of two means with Welch's standard error and degrees of freedom."""
    parts = [float(np.var(v, ddof=1)) / len(v) for v in (real, synthetic)]
    return _difference(
        float(synthetic.mean() - real.mean()), parts, (len(real) - 1, len(synthetic) - 1)
    )


def _difference(value: float, variances: list[float], df: tuple[int, int]) -> Difference:
    total = sum(variances)
    spread = sum(v**2 / d for v, d in zip(variances, df, strict=True))
    freedom = total**2 / spread if spread > 0 else float(sum(df))
    return Difference(value=value, se=float(np.sqrt(total)), df=freedom)


def spread_statistics(real: Array, synthetic: Array) -> tuple[Difference, Difference]:
    """Return V and L, the log ratios of squared spread, synthetic over real.

    Parameters
    ----------
    real, synthetic : float arrays, shapes (n, d) and (m, d), n, m >= 3
        One row a person, with the same extractor.

    Returns
    -------
    V : Difference
        log of the ratio of mean squared distances to each set's mean; jackknife errors.
    L : Difference
        Difference of mean log squared distances; robust against a few extreme persons.
    """
    q_real, q_synthetic = _squared_distances(real), _squared_distances(synthetic)
    log_mean = [_log_mean(q) for q in (q_real, q_synthetic)]
    v = _difference(
        log_mean[1][0] - log_mean[0][0],
        [log_mean[0][1], log_mean[1][1]],
        (len(real) - 1, len(synthetic) - 1),
    )
    floor = 1e-12 * float(q_real.mean())
    tiny = max(floor, np.finfo(float).tiny)
    return v, welch(np.log(np.maximum(q_real, tiny)), np.log(np.maximum(q_synthetic, tiny)))


def _squared_distances(rows: Array) -> Array:
    n = len(rows)
    squares: Array = np.sum((rows - rows.mean(axis=0)) ** 2, axis=1) * n / (n - 1)
    return squares


def _log_mean(q: Array) -> tuple[float, float]:
    """Return the log of the mean and its jackknife variance."""
    tiny = np.finfo(float).tiny
    without = np.log(np.maximum((q.sum() - q) / (len(q) - 1), tiny))
    return float(np.log(max(q.mean(), tiny))), jackknife_se(without) ** 2


def spread_gate(
    real: Array, synthetic: Array, *, fewest_persons: int
) -> tuple[Gate, dict[str, Any]]:
    """Return the gate `spread`, which finds lost variance.

    It fails when V or L is below its one-sided 3 % critical value, and passes only when the lower
    bounds of both also exclude a squared spread of 0.75 of the real one. The statistic is the
    log ratio (0 = as varied as real persons) of whichever of the two is nearer to failing.
    """
    v, log_mean = spread_statistics(real, synthetic)
    margin = {
        "V": v.t - v.critical(SPREAD_LEVEL),
        "L": log_mean.t - log_mean.critical(SPREAD_LEVEL),
    }
    which = min(margin, key=lambda name: margin[name])
    worst = v if which == "V" else log_mean
    safe = all(d.lower(SPREAD_LEVEL) > np.log(SMALLEST_SPREAD) for d in (v, log_mean))
    ratio = float(np.exp(worst.value))
    outcome: Outcome
    if margin[which] < 0:
        outcome, reason = (
            "fail",
            f"Synthetic persons vary too little: {ratio:.0%} of the real spread.",
        )
    elif len(real) < fewest_persons or not safe:
        outcome = "insufficient"
        reason = f"{len(real)} real persons cannot exclude a loss of a quarter of the spread."
    else:
        outcome, reason = "pass", f"Spread {ratio:.0%} of the real one; a loss of 25 % is excluded."
    limit = worst.critical(SPREAD_LEVEL) * worst.se
    method = f"{which} of evaluation: V or L, each one-sided {SPREAD_LEVEL:.0%}"
    gate = Gate(name="spread", outcome=outcome, statistic=worst.value, limit=limit, reason=reason)
    numbers = {name: {"value": d.value, "se": d.se} for name, d in (("V", v), ("L", log_mean))}
    return gate, {
        "outcome": outcome,
        "statistic": worst.value,
        "limit": limit,
        "method": method,
        **numbers,
    }


def high_frequency_gate(real: Array, synthetic: Array, *, fewest_persons: int) -> Gate:
    """Return the gate `high_frequency`, which finds blur.

    Parameters
    ----------
    real, synthetic : float arrays, shapes (n,) and (m,)
        `measures.high_frequency`, one value a person.
    """
    difference = welch(real, synthetic)
    limit = difference.critical(_HIGH_FREQUENCY_LEVEL) * difference.se
    excess = difference.t > -difference.critical(_EXCESS_LEVEL)
    outcome: Outcome
    if difference.value < limit:
        outcome, reason = "fail", "Synthetic scans hold less fine detail than real ones: blurred."
    elif len(real) < fewest_persons:
        outcome, reason = "insufficient", f"Only {len(real)} real persons to compare with."
    else:
        outcome, reason = "pass", "Fine detail as in real scans."
        if excess:
            reason = "No blur, but more fine detail than real scans have: noise or a pattern."
    return Gate(
        name="high_frequency",
        outcome=outcome,
        statistic=difference.value,
        limit=limit,
        reason=reason,
    )


def plausibility_gate(
    real: Array,
    synthetic: Array,
    effects: Effects | None,
    *,
    fewest_persons: int,
) -> tuple[Gate, dict[str, Any]]:
    """Return the gate `plausibility`: brains outside the real range, and wrong effects.

    Parameters
    ----------
    real, synthetic : float arrays, shapes (n, measures) and (m, measures)
        One row a person, columns `MEASURES` and whatever both add behind them. A measure is
        implausible outside the real range widened by three robust SD.
    effects : Effects, optional
        Diagnosis effects of both; None where a diagnosis is missing on one side.
    """
    outside = _outside(real, synthetic)
    n = len(synthetic)
    count = int(outside.any(axis=1).sum())
    low, high = clopper_pearson(count, n)
    wrong = effects.wrong() if effects else ""
    outcome: Outcome
    if low > _IMPLAUSIBLE_ALLOWED:
        outcome, reason = "fail", f"{count} of {n} synthetic brains lie outside the real range."
    elif wrong:
        outcome, reason = "fail", wrong
    elif len(real) < fewest_persons or count / n > _IMPLAUSIBLE_ALLOWED:
        outcome = "insufficient"
        reason = f"{count} of {n} outside the real range, judged by {len(real)} real persons."
    else:
        outcome, reason = "pass", f"{count} of {n} synthetic brains lie outside the real range."
    names = (*MEASURES, "outline", *(f"measure {i}" for i in range(outside.shape[1])))
    details = {
        "implausible": count,
        "n": n,
        "share_low": low,
        "share_high": high,
        "measures": {names[j]: int(c) for j, c in enumerate(outside.sum(axis=0)) if c},
    }
    gate = Gate(
        name="plausibility",
        outcome=outcome,
        statistic=count / n,
        limit=_IMPLAUSIBLE_ALLOWED,
        reason=reason,
    )
    return gate, details


def _outside(real: Array, synthetic: Array) -> npt.NDArray[np.bool_]:
    median = np.median(real, axis=0)
    slack = 3 * 1.4826 * np.median(np.abs(real - median), axis=0)
    outside: npt.NDArray[np.bool_] = (synthetic < real.min(axis=0) - slack) | (
        synthetic > real.max(axis=0) + slack
    )
    return outside
