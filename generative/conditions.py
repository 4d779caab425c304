"""Conditions as numbers for networks, and what to ask a generator for.

`ConditionEncoder.fit` reads what a cohort's training persons have; `draw_conditions` and
`balanced_conditions` give the conditions of a batch. Every optional condition comes with a
"known" column, so that an unknown age is not a young one, and the diagnosis has a "hidden"
column for label dropout and guidance.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rarescan.cohort.contracts import Cohort, Condition, FloatArray, Part
from rarescan.errors import InputError, nearest
from rarescan.generative.spec import ConditionName
from rarescan.seeds import generator

_AGE_MARGIN_YEARS = 5.0
_AGE_JITTER_YEARS = 2.0


@dataclass(frozen=True, kw_only=True)
class ConditionEncoder:
    """How conditions become features; made from the training persons alone."""

    diagnoses: tuple[str, ...]
    n_by_diagnosis: tuple[int, ...]
    """Training persons of each diagnosis."""
    age_years: tuple[float, float, float, float] | None = None
    """Mean, standard deviation, lowest and highest age; None where age is no condition."""
    sex: bool = False
    sites: tuple[str, ...] = ()
    severity: bool = False

    @classmethod
    def fit(
        cls, conditions: Sequence[Condition], names: Sequence[ConditionName]
    ) -> "ConditionEncoder":
        """Keep those of the named conditions that differ between the training persons."""
        counts = Counter(c.diagnosis for c in conditions)
        ages = np.array([c.age_years for c in conditions if c.age_years is not None])
        sites = sorted({c.site for c in conditions if c.site is not None})
        severities = {c.severity for c in conditions if c.severity is not None}
        use_age = "age_years" in names and len(ages) > 1 and ages.std() > 0
        return cls(
            diagnoses=tuple(sorted(counts)),
            n_by_diagnosis=tuple(n for _, n in sorted(counts.items())),
            age_years=_age_summary(ages) if use_age else None,
            sex="sex" in names and {"F", "M"} <= {c.sex for c in conditions},
            sites=tuple(sites) if "site" in names and len(sites) > 1 else (),
            severity="severity" in names and len(severities) > 1,
        )

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "ConditionEncoder":
        """Return the encoder that `as_dict` described."""
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
        }
        return cls(**lists)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @property
    def age_limits(self) -> tuple[float, float] | None:
        """Lowest and highest age that can be asked for; None where age is no condition."""
        if self.age_years is None:
            return None
        return self.age_years[2] - _AGE_MARGIN_YEARS, self.age_years[3] + _AGE_MARGIN_YEARS

    @property
    def n_diagnosis_features(self) -> int:
        """The one-hot diagnosis and its "hidden" column."""
        return len(self.diagnoses) + 1

    @property
    def groups(self) -> list[slice]:
        """The columns of each optional condition."""
        age, sex, severity = self.age_years is not None, self.sex, self.severity
        widths = [2 * age, 2 * sex, (len(self.sites) + 1) * bool(self.sites), 2 * severity]
        edges = np.cumsum([self.n_diagnosis_features, *widths])
        return [slice(int(a), int(b)) for a, b in pairwise(edges) if b > a]

    @property
    def n_features(self) -> int:
        """How many numbers one condition becomes."""
        return self.groups[-1].stop if self.groups else self.n_diagnosis_features

    def encode(self, conditions: Sequence[Condition]) -> Tensor:
        """Return features, float32, shape (n, n_features).

        Raises
        ------
        InputError
            A diagnosis, site or age that the training persons did not have.
        """
        rows = [self._row(self.served(condition)) for condition in conditions]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), self.n_features)

    def served(self, condition: Condition) -> Condition:
        """Return the part of a condition that is obeyed; raise where it cannot be."""
        _require_known("diagnosis", condition.diagnosis, self.diagnoses)
        if self.sites and condition.site is not None:
            _require_known("site", condition.site, self.sites)
        if self.age_limits is not None and condition.age_years is not None:
            _require_age(condition.age_years, self.age_limits)
        return Condition(
            diagnosis=condition.diagnosis,
            age_years=condition.age_years if self.age_years else None,
            sex=condition.sex if self.sex else None,
            site=condition.site if self.sites else None,
            severity=condition.severity if self.severity else None,
        )

    def _row(self, c: Condition) -> list[float]:
        row = [float(c.diagnosis == d) for d in self.diagnoses] + [0.0]
        if self.age_years:
            mean, sd, _, _ = self.age_years
            row += [0.0, 0.0] if c.age_years is None else [(c.age_years - mean) / sd, 1.0]
        if self.sex:
            row += [0.0, 0.0] if c.sex is None else [1.0 if c.sex == "F" else -1.0, 1.0]
        if self.sites:
            row += [float(c.site == site) for site in self.sites] + [float(c.site is not None)]
        if self.severity:
            row += [0.0, 0.0] if c.severity is None else [c.severity, 1.0]
        return row

    def hide_diagnosis(self, encoded: Tensor) -> Tensor:
        """Return the features with the diagnosis hidden and everything else kept."""
        hidden = encoded.clone()
        hidden[:, : self.n_diagnosis_features] = 0
        hidden[:, self.n_diagnosis_features - 1] = 1
        return hidden

    def drop(self, encoded: Tensor, share: float, noise: torch.Generator) -> Tensor:
        """Return the features with a share of each condition hidden, independently."""
        draws = torch.rand(len(encoded), 1 + len(self.groups), generator=noise)
        gone = (draws < share).to(encoded.device)
        dropped = torch.where(gone[:, :1], self.hide_diagnosis(encoded), encoded)
        for column, group in enumerate(self.groups, start=1):
            dropped[:, group] *= ~gone[:, column : column + 1]
        return dropped


def _age_summary(ages: Any) -> tuple[float, float, float, float]:
    return float(ages.mean()), float(ages.std()), float(ages.min()), float(ages.max())


def _require_known(what: str, word: str, valid: tuple[str, ...]) -> None:
    if word not in valid:
        raise InputError(
            f"No training person has the {what} '{word}'.",
            remedy=f"{nearest(word, list(valid))} Ask for one of: {', '.join(valid)}.",
        )


def _require_age(age: float, limits: tuple[float, float]) -> None:
    low, high = limits
    if not low <= age <= high:
        raise InputError(
            f"Age {age:g} is beyond what this generator has seen.",
            remedy=f"Ask for an age from {np.ceil(low):.0f} to {np.floor(high):.0f} years.",
        )


def draw_conditions(
    cohort: Cohort, n: int, seed: int, parts: tuple[Part, ...] = ("train",)
) -> list[Condition]:
    """Return n conditions, drawn again from the cohort's persons, with its mix of diagnoses.

    Parameters
    ----------
    cohort : Cohort
        Whose persons are drawn from.
    n : int
        How many conditions. Each diagnosis gets its share to within one.
    seed : int
        Same seed, same conditions.
    parts : tuple of Part
        Whose persons; the training persons by default, all with ().

    Returns
    -------
    list of Condition
        In random order. Ages are moved by about 2 years, within the range of the diagnosis, and
        rounded to whole years, so that no row repeats a person's particulars.
    """
    by_diagnosis = _by_diagnosis(cohort, parts)
    total = sum(map(len, by_diagnosis.values()))
    shares = {d: n * len(found) / total for d, found in by_diagnosis.items()}
    return _draw(by_diagnosis, _whole(shares, n), seed)


def balanced_conditions(
    cohort: Cohort,
    n: int,
    seed: int,
    *,
    diagnoses: Sequence[str] = (),
    parts: tuple[Part, ...] = ("train",),
) -> list[Condition]:
    """Return n conditions like `draw_conditions`, with equal numbers of each diagnosis.

    `diagnoses` names those that are wanted; all of the cohort's without. Raises `InputError` for
    one that nobody has.
    """
    by_diagnosis = _by_diagnosis(cohort, parts)
    for name in diagnoses:
        _require_known("diagnosis", name, tuple(by_diagnosis))
    by_diagnosis = {name: by_diagnosis[name] for name in sorted(diagnoses or by_diagnosis)}
    shares = {d: n / len(by_diagnosis) for d in by_diagnosis}
    return _draw(by_diagnosis, _whole(shares, n), seed)


def _by_diagnosis(cohort: Cohort, parts: tuple[Part, ...]) -> dict[str, list[Condition]]:
    # One condition a person, so that persons with many sessions do not count more.
    by_person = {
        cohort.scans[i].person_id: cohort.scans[i].condition for i in cohort.indices(*parts)
    }
    if not by_person:
        raise InputError(
            f"No person of the cohort is in the part {' or '.join(parts) or 'asked for'}.",
            remedy="Name a cohort written by `rarescan prepare`; it has a partition.",
        )
    conditions = [by_person[person] for person in sorted(by_person)]
    names = sorted({c.diagnosis for c in conditions})
    return {name: [c for c in conditions if c.diagnosis == name] for name in names}


def _whole(shares: dict[str, float], n: int) -> dict[str, int]:
    """Round shares to whole numbers that add up to n (largest remainders)."""
    counts = {name: int(share) for name, share in shares.items()}
    behind = sorted(shares, key=lambda name: (counts[name] - shares[name], name))
    for name in behind[: n - sum(counts.values())]:
        counts[name] += 1
    return counts


def _draw(
    by_diagnosis: dict[str, list[Condition]], counts: dict[str, int], seed: int
) -> list[Condition]:
    drawn: list[Condition] = []
    for name, found in by_diagnosis.items():
        random = generator(seed, "conditions", name)
        ages = np.array([c.age_years for c in found if c.age_years is not None], np.float32)
        picks = random.integers(len(found), size=counts[name])
        drawn += [_moved_age(found[i], ages, random) for i in picks]
    order = generator(seed, "conditions", "order").permutation(len(drawn))
    return [drawn[i] for i in order]


def _moved_age(condition: Condition, ages: FloatArray, random: np.random.Generator) -> Condition:
    if condition.age_years is None:
        return condition
    age = condition.age_years + random.normal(0, _AGE_JITTER_YEARS)
    return replace(condition, age_years=float(round(np.clip(age, ages.min(), ages.max()))))
