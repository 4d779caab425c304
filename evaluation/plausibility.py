"""Are synthetic brains as varied, as crisp and as likely as real ones? Three gates.

`spread_gate` finds lost variance, `high_frequency_gate` blur, `plausibility_gate` brains that no
person has and diagnoses that do not do to a brain what they do in reality. Each says pass, fail
or insufficient. One row or value a person, never a slice.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from rarescan.cohort.contracts import Gate, Outcome
from rarescan.evaluation.effects import Effects
from rarescan.evaluation.intervals import clopper_pearson
from rarescan.evaluation.measures import MEASURES
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]

SPREAD_LEVEL = 0.03
"""One-sided level of each of the two spread statistics."""
SMALLEST_SPREAD = 0.75
"""Share of the real squared spread that a passing generator has kept surely."""
_KEPT = 0.63
_RESAMPLES = 200
_POWER_NEEDED = 0.9
_HIGH_FREQUENCY_LEVEL = 0.05
_EXCESS_LEVEL = 0.01
_IMPLAUSIBLE_ALLOWED = 0.05
_N_OUTLIERS = 10


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
    return _spread_of(_squared_distances(real), _squared_distances(synthetic))


def _spread_of(q_real: Array, q_synthetic: Array) -> tuple[Difference, Difference]:
    log_mean = [_log_mean(q) for q in (q_real, q_synthetic)]
    v = _difference(
        float(log_mean[1][0] - log_mean[0][0]),
        [float(log_mean[0][1]), float(log_mean[1][1])],
        (len(q_real) - 1, len(q_synthetic) - 1),
    )
    floor = 1e-12 * float(q_real.mean())
    tiny = max(floor, np.finfo(float).tiny)
    return v, welch(np.log(np.maximum(q_real, tiny)), np.log(np.maximum(q_synthetic, tiny)))


def _squared_distances(rows: Array) -> Array:
    n = len(rows)
    squares: Array = np.sum((rows - rows.mean(axis=0)) ** 2, axis=1) * n / (n - 1)
    return squares


def _log_mean(q: Array) -> tuple[Array, Array]:
    """Return the log of the mean along the last axis, and its jackknife variance."""
    tiny, n = np.finfo(float).tiny, q.shape[-1]
    without = np.log(np.maximum((q.sum(axis=-1, keepdims=True) - q) / (n - 1), tiny))
    variance: Array = (n - 1) * np.var(without, axis=-1)
    return np.log(np.maximum(q.mean(axis=-1), tiny)), variance


def spread_power(real: Array, n_synthetic: int, *, seed: int = 0) -> float:
    """Return how often the gate would fire at 37 % of the variance lost, by these persons.

    Real persons' squared distances are drawn with replacement for both sides, the synthetic ones
    shrunk to 63 %, 200 times: heavy tails and few persons make the gate weak.
    """
    random = generator(seed, "spread power", len(real), n_synthetic)
    q = np.maximum(_squared_distances(real), np.finfo(float).tiny)
    sides = [random.choice(q, (_RESAMPLES, n)) for n in (len(q), n_synthetic)]
    sides[1] = _KEPT * sides[1]
    logs = [np.log(side) for side in sides]
    means = [_log_mean(side) for side in sides]
    by_statistic = (
        [(mean, variance) for mean, variance in means],
        [(log.mean(axis=1), np.var(log, axis=1, ddof=1) / log.shape[1]) for log in logs],
    )
    fires = np.zeros(_RESAMPLES, bool)
    for moments in by_statistic:
        fires |= _smaller(moments, (len(q), n_synthetic), SPREAD_LEVEL)
    return float(fires.mean())


def _smaller(
    moments: Sequence[tuple[Array, Array]], sizes: tuple[int, int], level: float
) -> npt.NDArray[np.bool_]:
    """Return for each draw whether Welch's test finds "synthetic is smaller than real".

    `moments` are the mean and its squared standard error in each draw, real persons first.
    """
    (mean_real, var_real), (mean, var) = moments
    tiny = np.finfo(float).tiny
    total = np.maximum(var_real + var, tiny)
    spread = var_real**2 / (sizes[0] - 1) + var**2 / (sizes[1] - 1)
    df = np.maximum(total**2 / np.maximum(spread, tiny), 1)
    found: npt.NDArray[np.bool_] = mean - mean_real < stats.t.ppf(level, df) * np.sqrt(total)
    return found


def spread_gate(
    real: Array, synthetic: Array, *, fewest_persons: int
) -> tuple[Gate, dict[str, Any]]:
    """Return the gate `spread`, which finds lost variance.

    It fails when V or L is below its one-sided 3 % critical value, and passes only when the lower
    bounds of both also exclude a squared spread of 0.75 of the real one. The statistic is the
    log ratio (0 = as varied as real persons) of whichever of the two is nearer to failing. Where
    the gate would see 37 % of the variance lost in fewer than 90 % of the cases, it cannot pass.
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
    power = spread_power(real, len(synthetic))
    outcome: Outcome
    if margin[which] < 0:
        outcome, reason = (
            "fail",
            f"Synthetic persons vary too little: {ratio:.0%} of the real spread.",
        )
    elif len(real) < fewest_persons or not safe:
        outcome = "insufficient"
        reason = f"{len(real)} real persons cannot exclude a loss of a quarter of the spread."
    elif power < _POWER_NEEDED:
        outcome = "insufficient"
        reason = f"With {len(real)} real persons a loss of 37 % would be seen in {power:.0%} only."
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
        "power_at_37pct_loss": power,
        **numbers,
    }


def high_frequency_gate(
    real: Array, synthetic: Array, *, fewest_persons: int
) -> tuple[Gate, dict[str, Any]]:
    """Return the gate `high_frequency`, which finds blur, and its numbers.

    More detail than real scans have (`hf_excess`, one-sided 1 %) is told and never fails.

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
    gate = Gate(
        name="high_frequency",
        outcome=outcome,
        statistic=difference.value,
        limit=limit,
        reason=reason,
    )
    numbers = {"se": difference.se, "df": difference.df, "hf_excess": bool(excess)}
    return gate, {**asdict(gate), **numbers}


def blur_power(real: Array, blurred: Array, n_synthetic: int, *, seed: int = 0) -> float:
    """Return how often the high-frequency gate would fire at a blur, by these persons.

    Real persons are drawn with replacement for both sides 200 times, once as they are and once
    as so many synthetic ones that are blurred: scanners of unequal sharpness and few persons make
    the gate weak.

    Parameters
    ----------
    real, blurred : float arrays, shape (n,)
        `measures.high_frequency` of the same persons, as they are and blurred.
    n_synthetic : int
        Synthetic persons that the gate sees.
    seed : int
        Of the draws.
    """
    random = generator(seed, "blur power", len(real), n_synthetic)
    sides = [
        random.choice(v, (_RESAMPLES, n)) for v, n in ((real, len(real)), (blurred, n_synthetic))
    ]
    moments = [(side.mean(axis=1), np.var(side, axis=1, ddof=1) / side.shape[1]) for side in sides]
    return float(_smaller(moments, (len(real), n_synthetic), _HIGH_FREQUENCY_LEVEL).mean())


def plausibility_gate(
    real: Array,
    synthetic: Array,
    effects: Effects | None,
    *,
    fewest_persons: int,
    names: Sequence[str] = (),
    columns: Sequence[str] = MEASURES,
) -> tuple[Gate, dict[str, Any]]:
    """Return the gate `plausibility`: brains outside the real range, and wrong effects.

    Parameters
    ----------
    real, synthetic : float arrays, shapes (n, measures) and (m, measures)
        One row a person, `columns` and whatever both add behind them. A measure is
        implausible outside the real range widened by three robust SD.
    effects : Effects, optional
        Diagnosis effects of both; None where a diagnosis is missing on one side.
    names : sequence of str
        Of the synthetic persons, whose ten least plausible are named in the details with what is
        wrong with them.
    columns : sequence of str
        What was measured.
    """
    outside = _outside(real, synthetic)
    n = len(synthetic)
    count = int(outside.any(axis=1).sum())
    low, high = clopper_pearson(count, n)
    wrong = effects.wrong() if effects else ""
    outcome: Outcome
    if low > _IMPLAUSIBLE_ALLOWED:
        outcome, reason = "fail", f"{count} of {n} synthetic persons lie outside the real range."
    elif wrong:
        outcome, reason = "fail", wrong
    elif len(real) < fewest_persons or count / n > _IMPLAUSIBLE_ALLOWED:
        outcome = "insufficient"
        reason = f"{count} of {n} outside the real range, judged by {len(real)} real persons."
    else:
        outcome, reason = "pass", f"{count} of {n} synthetic persons lie outside the real range."
    measures = (
        *columns,
        "outline",
        "histogram",
        *(f"measure {i}" for i in range(outside.shape[1])),
    )
    details = {
        "implausible": count,
        "n": n,
        "share_low": low,
        "share_high": high,
        "measures": {measures[j]: int(c) for j, c in enumerate(outside.sum(axis=0)) if c},
        "outliers": _outliers(outside, names, measures),
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


def _outliers(
    outside: npt.NDArray[np.bool_], names: Sequence[str], measures: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the synthetic persons with most measures outside, at most ten, and which these are."""
    counts = outside.sum(axis=1)
    worst = [int(i) for i in np.argsort(-counts, kind="stable")[:_N_OUTLIERS] if counts[i]]
    return [
        {"scan": names[i], "measures": [measures[int(j)] for j in np.flatnonzero(outside[i])]}
        for i in (worst if len(names) else ())
    ]
