"""Where do synthetic persons help? Differences between arms over draws of whole cohorts.

`summarise` is the way in. A draw (its own persons, disease and training) is the unit: the interval
is Student's over paired differences. Which free arm is to be beaten, and which generative arm
stands for generation, is decided on tuning draws, never on those on which they are judged.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from rarescan.errors import InputError
from rarescan.evaluation.gain import MARGIN, Verdict

Array = npt.NDArray[np.float64]
Kind = Literal["free", "generative", "placebo", "oracle"]

HARMLESS = -0.015
"""What is let through may lose no more than this against the best free arm."""
PLACEBO_LOSS = -0.03
"""Controls called patients must cost at least this, or the benchmark does not bite."""
_FEWEST_DRAWS = 3


@dataclass(frozen=True, kw_only=True)
class Result:
    """One fit: what one arm reached in one draw."""

    question: str
    draw: int
    patients: int
    arm: str
    kind: Kind
    """`free` costs nothing; `generative` uses synthetic persons."""
    model: str = "network"
    """Or `linear`, the field's baseline."""
    measures: Mapping[str, float]
    """`auc` on the test persons; others as the question has them."""
    refused: bool = False
    """The batch was refused by its own maker, and the arm is the free one that it stands on."""


def summarise(results: Iterable[Result], *, tuning_draws: int) -> list[dict[str, Any]]:
    """Return one entry for each question, number of patients and model.

    Parameters
    ----------
    results : iterable of Result
        All arms of all draws; only draws in which every arm was fitted are compared.
    tuning_draws : int
        Draws with a smaller number choose the arms; the others judge them.

    Returns
    -------
    list of dict
        `question`, `patients`, `model`, `draws` (judged), `best_free`, `best_generative`, `arms`
        (name -> kind, draws in which its batch was `refused`, mean and sd of each measure,
        `difference` and `share` of the gap to the oracle, both against the best free arm, with
        95 % intervals, and whether it is `harmless`), `bites` (a placebo loses what it must),
        `verdict`, `sentence`.

    Raises
    ------
    InputError
        A question has no free arm, or fewer than three draws to judge on.
    """
    groups: dict[tuple[str, int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.question, result.patients, result.model), []).append(result)
    return [
        {"question": question, "patients": patients, "model": model}
        | _Group(found, tuning_draws).summary()
        for (question, patients, model), found in sorted(groups.items())
    ]


class _Group:
    """The arms of one question at one number of patients."""

    def __init__(self, results: Sequence[Result], tuning_draws: int) -> None:
        self.kinds = {r.arm: r.kind for r in results}
        self.refused = Counter(r.arm for r in results if r.refused)
        table = {(r.arm, r.draw): dict(r.measures) for r in results}
        draws = sorted({draw for _, draw in table})
        whole = [d for d in draws if all((arm, d) in table for arm in self.kinds)]
        self.tuning = [d for d in whole if d < tuning_draws]
        self.judged = [d for d in whole if d >= tuning_draws]
        self.table = table
        if len(self.judged) < _FEWEST_DRAWS or "free" not in self.kinds.values():
            raise InputError(
                f"{len(self.judged)} whole draws to judge on, and "
                f"{sum(k == 'free' for k in self.kinds.values())} arms that cost nothing.",
                remedy="Add draws or arms to the benchmark and repeat the command.",
            )

    def values(self, arm: str, measure: str, draws: Sequence[int]) -> Array:
        return np.array([self.table[arm, d].get(measure, np.nan) for d in draws])

    def best(self, kind: Kind) -> str | None:
        """Return the best arm of a kind by the tuning draws (by all where there are none)."""
        arms = sorted(arm for arm, k in self.kinds.items() if k == kind)
        draws = self.tuning or self.judged
        return max(arms, key=lambda a: float(self.values(a, "auc", draws).mean()), default=None)

    def summary(self) -> dict[str, Any]:
        free, generative = self.best("free") or "", self.best("generative")
        arms = {arm: self.arm(arm, free) for arm in self.kinds}
        verdict, sentence = judge(arms.get(generative or ""), generative, free)
        return {
            "draws": len(self.judged),
            "chosen_on": len(self.tuning),
            "best_free": free,
            "best_generative": generative,
            "arms": arms,
            "bites": self.bites(arms),
            "verdict": verdict,
            "sentence": sentence,
        }

    def bites(self, arms: Mapping[str, Any]) -> bool | None:
        """Return whether a placebo costs what it must; None without one."""
        losses = [a["difference"]["value"] for a in arms.values() if a["kind"] == "placebo"]
        return min(losses) <= PLACEBO_LOSS if losses else None

    def arm(self, arm: str, free: str) -> dict[str, Any]:
        names = sorted({name for a, d in self.table if a == arm for name in self.table[a, d]})
        measures = {name: self.values(arm, name, self.judged) for name in names}
        auc, reference = (self.values(a, "auc", self.judged) for a in (arm, free))
        oracle = self.best("oracle")
        gap = None if oracle is None else self.values(oracle, "auc", self.judged) - reference
        return {
            "kind": self.kinds[arm],
            "refused": self.refused[arm],
            "harmless": interval(auc - reference)["low"] > HARMLESS,
            "measures": {
                name: {"mean": float(v.mean()), "sd": float(v.std(ddof=1))}
                for name, v in measures.items()
            },
            "difference": interval(auc - reference),
            "differences": {
                name: interval(values - self.values(free, name, self.judged))
                for name, values in measures.items()
                if name != "auc"
            },
            "share": None if gap is None else _share(auc - reference, gap),
        }


def interval(differences: Array) -> dict[str, float]:
    """Return mean and 95 % interval of paired differences over draws (Student's t)."""
    n = len(differences)
    value = float(differences.mean())
    half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def _share(differences: Array, gap: Array) -> dict[str, float] | None:
    """Return which part of the oracle's lead is reached: a ratio of means, by Fieller (1954).

    None where the lead itself is not told from 0, because the interval is then unbounded.
    """
    n = len(gap)
    t = float(stats.t.ppf(0.975, n - 1))
    a, b = float(differences.mean()), float(gap.mean())
    covariance = np.cov(differences, gap, ddof=1) / n
    g = t**2 * covariance[1, 1] / b**2 if b else np.inf
    if b <= 0 or g >= 1:
        return None
    ratio = a / b
    centre = ratio - g * covariance[0, 1] / covariance[1, 1] if covariance[1, 1] else ratio
    inner = (
        covariance[0, 0]
        - 2 * ratio * covariance[0, 1]
        + ratio**2 * covariance[1, 1]
        - g * (covariance[0, 0] - covariance[0, 1] ** 2 / covariance[1, 1])
        if covariance[1, 1]
        else covariance[0, 0]
    )
    half = t / b * float(np.sqrt(max(inner, 0.0)))
    return {"value": ratio, "low": (centre - half) / (1 - g), "high": (centre + half) / (1 - g)}


def judge(
    arm: Mapping[str, Any] | None, generative: str | None, free: str, unit: str = "draws"
) -> tuple[Verdict, str]:
    """Return the verdict on generation in one question; the interval decides, never the point."""
    if arm is None or generative is None:
        return "undecided", "No arm used synthetic persons, so nothing was compared."
    found = arm["difference"]
    words = (
        f"{generative} against {free}: {found['value']:+.3f} AUC "
        f"({found['low']:+.3f} to {found['high']:+.3f}) in {found['n']} {unit}"
    )
    if found["low"] > 0:
        return "use", f"Use it. {words}."
    if found["high"] < MARGIN:
        return "do_not_use", f"Do not use it. {words}: a gain of {MARGIN:g} or more is excluded."
    if found["low"] < -MARGIN and found["value"] < 0:
        return "do_not_use", f"Do not use it. {words}: a loss cannot be excluded."
    return "undecided", f"Not decided; do not use it until it is. {words}."
