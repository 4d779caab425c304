"""Scores without what age or site alone give them, learned from training controls.

`Adjustment.of` is the way in. Where patients are older than controls in training, a network scores
the old higher; where they come from one site, it scores the site. Both show among the controls, who
are all healthy, and can be taken off again: no image and no weight changes. It costs nothing, and
is what generated persons of other ages and sites have to beat.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import expit, logit

from rarescan.cohort.contracts import Condition, FloatArray
from rarescan.errors import InputError
from rarescan.files import write_json

How = Literal["age", "site"]
ADJUSTMENT = "adjustment.json"
_SHARPEST = 1e-6
"""Probabilities nearer to 0 or 1 say no more."""


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """What is taken off the logit of a person's score."""

    per_year: float = 0.0
    """Of age beyond `age_years`."""
    age_years: float = 0.0
    """Mean of the training controls."""
    sites: dict[str, float] = field(default_factory=dict)
    """By site; of a site that no control shows nothing is taken off."""

    @classmethod
    def of(cls, how: How, scores: FloatArray, conditions: Sequence[Condition]) -> "Adjustment":
        """Learn it from training controls.

        Parameters
        ----------
        how : {"age", "site"}
            The slope of a straight line of logits over ages, or each site's mean logit against
            the mean of the sites' means.
        scores : float array, shape (n,)
            Probabilities of disease, 0 to 1.
        conditions : sequence of Condition
            Of the same controls.

        Raises
        ------
        InputError
            Fewer than three controls have an age, or none a site.
        """
        logits = _logits(scores)
        if how == "age":
            ages = np.array([c.age_years or np.nan for c in conditions], float)
            known = ~np.isnan(ages)
            if known.sum() < 3 or np.ptp(ages[known]) == 0:
                raise InputError(
                    "The training controls' ages are unknown or all the same.",
                    remedy="Leave the arm age_adjusted out, or give the labels an age column.",
                )
            slope = np.polyfit(ages[known], logits[known], 1)[0]
            return cls(per_year=float(slope), age_years=float(ages[known].mean()))
        sites = np.array([c.site or "" for c in conditions])
        means = {site: float(logits[sites == site].mean()) for site in np.unique(sites) if site}
        if not means:
            raise InputError(
                "No training control has a site.", remedy="Leave the arm site_centred out."
            )
        centre = float(np.mean(list(means.values())))
        return cls(sites={site: mean - centre for site, mean in means.items()})

    def apply(self, scores: FloatArray, conditions: Sequence[Condition]) -> FloatArray:
        """Return probabilities, shape (n,); a person of unknown age or site keeps the score."""
        ages = np.array([c.age_years or self.age_years for c in conditions], float)
        offsets = np.array([self.sites.get(c.site or "", 0.0) for c in conditions])
        adjusted = _logits(scores) - self.per_year * (ages - self.age_years) - offsets
        return np.asarray(expit(adjusted), np.float32)

    def save(self, folder: Path) -> None:
        """Write `adjustment.json` beside a classifier's weights."""
        write_json(folder / ADJUSTMENT, asdict(self))


def _logits(scores: FloatArray) -> np.ndarray:
    return np.asarray(logit(np.clip(scores.astype(np.float64), _SHARPEST, 1 - _SHARPEST)))
