"""Does a candidate copy training persons? From matches to a gate and a sentence's numbers.

`judge_copies` is the way in. The scale of a scan's score is set by the run itself: 0 is the
nearest match of any validation person (a real stranger), 1 the planted copies that are hardest
to find, and a scan is flagged above a quarter. The largest score of m strangers alone would be no
threshold: an honest scan exceeds it with chance 1/(m + 1), so 200 honest scans always would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.spatial.distance import cdist

from rarescan.cohort.contracts import Gate, Outcome
from rarescan.evaluation.copies import Matches
from rarescan.evaluation.intervals import clopper_pearson, upper_bound_of_share

Array = npt.NDArray[np.float64]

THRESHOLD = 1 / 4
"""Flagged above: a quarter of the way from the nearest stranger to the planted copies."""
ALLOWED_SHARE = 0.02
"""More flagged scans than this fail, and so does one that scores 1: as near as planted copies."""
POWER_NEEDED = 0.8
_N_NEAREST = 5
_BATCH_LEVEL = 0.05
_FEWEST_FOR_BATCHES = 50


@dataclass(frozen=True)
class Calibration:
    """What the run's strangers and planted copies say about the scale of matches."""

    stranger: float
    """The nearest match of a validation person: 0 on the scale."""
    copy: float
    """The median match of the kind of planted copy that is hardest to find: 1 on the scale."""
    power: dict[str, tuple[int, int]]
    """Kind of planted copy -> (found, planted)."""
    n_strangers: int

    @property
    def tells_apart(self) -> bool:
        """Whether planted copies match better than strangers at all."""
        return self.copy > self.stranger

    def scores(self, matches: Matches) -> Array:
        """Return one score a scan; where copies cannot be told apart, none is positive."""
        if not self.tells_apart:
            return np.zeros(len(matches.score))
        scaled: Array = (matches.score - self.stranger) / (self.copy - self.stranger)
        return scaled

    def flagged(self, matches: Matches) -> npt.NDArray[np.bool_]:
        """Return which scans are copies as far as the search can tell."""
        return self.scores(matches) > THRESHOLD

    def blind_to(self) -> list[str]:
        """Return the kinds of copies that were not found surely enough."""
        return [
            kind
            for kind, (found, planted) in self.power.items()
            if _surely_found(found, planted) < POWER_NEEDED
        ]


def _surely_found(found: int, planted: int) -> float:
    """Return the one-sided 95 % lower bound of the share of copies that is found."""
    return clopper_pearson(found, planted, level=0.9)[0]


def calibrate(strangers: Matches, canaries: Mapping[str, Matches]) -> Calibration:
    """Return the scale of scores from validation persons and planted copies.

    Parameters
    ----------
    strangers : Matches
        Of validation persons: whatever they resemble, they are no copies.
    canaries : mapping of str to Matches
        Planted copies by kind.
    """
    stranger = float(strangers.score.max())
    copy = min(float(np.median(found.score)) for found in canaries.values())
    scale = Calibration(stranger, copy, {}, len(strangers.score))
    power = {
        kind: (int(np.sum(scale.scores(found) > THRESHOLD)), len(found.score))
        for kind, found in canaries.items()
    }
    return Calibration(stranger, copy, power, len(strangers.score))


def judge_copies(
    matches: Matches,
    calibration: Calibration,
    persons: Sequence[str],
    *,
    fewest_persons: int,
) -> tuple[Gate, dict[str, Any]]:
    """Return the gate `copies` of one candidate and the numbers behind it.

    Parameters
    ----------
    matches : Matches
        Of the candidate's synthetic scans.
    persons : sequence of str
        Pseudonyms of the training persons, in the order of `matches.person`.
    fewest_persons : int
        Validation persons below which the gate cannot pass.
    """
    scores = calibration.scores(matches)
    flagged, n = int(np.sum(scores > THRESHOLD)), len(scores)
    outcome, reason = _outcome(scores, calibration, fewest_persons)
    nearest = np.argsort(-matches.score, kind="stable")[:_N_NEAREST]
    details = {
        "flagged": flagged,
        "n": n,
        "outcome": outcome,
        "threshold": THRESHOLD,
        "upper_bound": upper_bound_of_share(flagged, n),
        "above_strangers": int(np.sum(scores > 0)),
        "n_validation": calibration.n_strangers,
        "canary_power": {
            kind: {"found": found, "planted": planted, "low": _surely_found(found, planted)}
            for kind, (found, planted) in calibration.power.items()
        },
        "nearest": [
            {
                "index": int(i),
                "person_id": persons[matches.person[i]],
                "score": float(scores[i]),
                "correlation": float(matches.correlation[i]),
                "flagged": bool(scores[i] > THRESHOLD),
            }
            for i in nearest
        ],
    }
    worst = float(scores.max())
    gate = Gate(name="copies", outcome=outcome, statistic=worst, limit=THRESHOLD, reason=reason)
    return gate, details


def _outcome(scores: Array, calibration: Calibration, fewest_persons: int) -> tuple[Outcome, str]:
    flagged, n = int(np.sum(scores > THRESHOLD)), len(scores)
    if np.any(scores >= 1) or flagged > ALLOWED_SHARE * n:
        return "fail", f"{flagged} of {n} synthetic scans repeat the anatomy of a training person."
    if calibration.n_strangers < fewest_persons:
        return "insufficient", (
            f"{calibration.n_strangers} validation persons cannot calibrate the search for copies; "
            f"{fewest_persons} are needed."
        )
    blind = calibration.blind_to()
    if blind:
        return "insufficient", f"The search is blind to planted copies: {', '.join(blind)}."
    if flagged:
        return (
            "insufficient",
            f"{flagged} of {n} are suspiciously near: a person must look at them.",
        )
    bound = upper_bound_of_share(0, n)
    return "pass", f"0 of {n} flagged; at most {bound:.1%} are copies that the search can find."


def nearest_ratio(rows: Array, training: Array) -> Array:
    """Return distance to the nearest over distance to the second nearest training person.

    Parameters
    ----------
    rows, training : float arrays, shapes (n, d) and (m, d), m >= 2
        One row a person. The ratio does not accuse a generator that is merely narrow, which
        absolute distances do.
    """
    two = np.partition(cdist(rows, training), 1, axis=1)[:, :2]
    ratio: Array = two[:, 0] / np.maximum(two[:, 1], 1e-12)
    return ratio


def conformal_p(ratios: Array, held_out: Array) -> Array:
    """Return p(s) = (1 + number of held-out values <= s) / (m + 1) of each ratio."""
    below = np.searchsorted(np.sort(held_out), ratios, side="right")
    p: Array = (1 + below) / (len(held_out) + 1)
    return p


def batch_p(count: int, *, n: int, k: int, m: int) -> float:
    """Return the chance that `count` or more of n honest values lie at or below the k-th of m.

    Beta-binomial(n, k, m + 1 - k), exact under exchangeability.
    """
    return float(stats.betabinom.sf(count - 1, n, k, m + 1 - k))


def feature_nearness(synthetic: Array, validation: Array, training: Array) -> dict[str, Any]:
    """Return whether a batch leans towards training persons in feature space."""
    ratios = nearest_ratio(synthetic, training)
    held_out = nearest_ratio(validation, training)
    m = len(held_out)
    k = max(1, int(0.05 * (m + 1)))
    count = int(np.sum(ratios <= np.sort(held_out)[k - 1]))
    p = conformal_p(ratios, held_out)
    smallest = 1 / (m + 1)
    return {
        "smallest_p_reachable": smallest,
        "n_at_smallest_p": int(np.sum(p <= smallest + 1e-12)),
        "suspicious": np.flatnonzero(p <= smallest + 1e-12).tolist(),
        "n_nearer_than_strangers": count,
        "n_validation": m,
        "batch_p": batch_p(count, n=len(ratios), k=k, m=m),
    }


def batch_gate(nearness: Mapping[str, Any]) -> Gate:
    """Return whether a batch of `feature_nearness` leans towards training persons; never fails.

    Leaning is no proof of copies, which are searched one by one; fewer than 50 validation persons
    do not see that a tenth of a batch is copied.
    """
    p, m = float(nearness["batch_p"]), int(nearness["n_validation"])
    outcome: Outcome = "insufficient"
    if p < _BATCH_LEVEL:
        words = "The batch lies nearer to training persons than strangers do"
    elif m < _FEWEST_FOR_BATCHES:
        words = f"{m} validation persons are too few ({_FEWEST_FOR_BATCHES}) to see a batch lean"
    else:
        outcome, words = "pass", "The batch lies no nearer to training persons than strangers do"
    return Gate(
        name="batch",
        outcome=outcome,
        statistic=p,
        limit=_BATCH_LEVEL,
        reason=f"{words} (p = {p:.2g}).",
    )


def data_gate(training: Sequence[str], validation: Sequence[str], scale: Calibration) -> Gate:
    """Return whether training and validation are different persons who look like strangers."""
    shared = len(set(training) & set(validation))
    if shared:
        return Gate(
            name="data", outcome="fail", reason=f"{shared} persons are in training and validation."
        )
    if not scale.tells_apart:
        return Gate(
            name="data",
            outcome="insufficient",
            reason="A validation person resembles a training person as much as planted copies do: "
            "the same person twice, or too few persons to tell.",
        )
    return Gate(name="data", outcome="pass", reason="No person is in training and validation.")
