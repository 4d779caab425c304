"""Rank candidates: who may be nearest to real persons, and whom of these to take.

`Race.selection` gives the selection set: the smallest MMD^2 to validation persons and every
candidate that is not significantly farther (relative similarity, Holm). `Race.pick` chooses inside
it: privacy, second distance, cost, simpler family. Only "the set holds the best" is promised.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from rarescan.cohort.contracts import FeatureSet
from rarescan.evaluation.features import PRIMARY, SECOND
from rarescan.evaluation.intervals import holm
from rarescan.evaluation.metrics import frozen_bandwidth
from rarescan.evaluation.relative import Relative, Side, compare_sides

Array = npt.NDArray[np.float64]

REFERENCE = "validation"
"""The set that candidates are ranked against: persons whom no generator has seen."""
SCALED = "scaled"
"""Second distance where no second extractor is at hand: primary features over their real SD."""
_CHEAPER = 0.7
"""Costs differ where one is at most this share of the other; a clock tells less apart."""
_SIMPLEST_FIRST = ("gaussian", "vae", "gan", "diffusion", "transfer")


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """What is known of a candidate beside its scores."""

    family: str = ""
    """Empty: the family has the candidate's name."""
    seconds_per_scan: float = math.inf
    """Cost of one synthetic scan."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Who is nearest to real persons by one distance, and who may be as near."""

    nearest: str
    names: tuple[str, ...]
    """The selection set, nearest first."""
    tests: Mapping[str, tuple[float, Relative]]
    """Every other candidate -> (Holm's p of "not farther than the nearest", the comparison)."""

    def persons_needed(self, n_persons: int, level: float) -> float | None:
        """Return how many persons would separate the set, None where no number would.

        Notes
        -----
        n (z SE / D)^2 for the closest pair, D being taken for true; z belongs to the level over
        the number of tests, 1.65 for one test at 5 %.
        """
        pairs = [self.tests[name][1] for name in self.names if name != self.nearest]
        if not pairs or min(pair.difference for pair in pairs) <= 0:
            return None
        z = float(norm.isf(level / len(self.tests)))
        return max(n_persons * (z * pair.se / pair.difference) ** 2 for pair in pairs)


@dataclass(frozen=True)
class Race:
    """Candidates, their features and what else decides between them."""

    sigma2: Mapping[str, float]
    """Extractor -> frozen bandwidth."""
    features: Mapping[str, Mapping[str, FeatureSet]]
    entrants: Mapping[str, Entrant]
    private: frozenset[str]
    """Candidates that passed the search for copies."""
    level: float
    """Of every test here."""
    _sides: dict[tuple[str, str], Side] = field(default_factory=dict)

    @property
    def n_persons(self) -> int:
        """Real persons that candidates are ranked against."""
        return len(self.features[PRIMARY][REFERENCE].values)

    def selection(self, names: Sequence[str], extractor: str = PRIMARY) -> Selection:
        """Return the nearest of the named candidates with all not significantly farther."""
        ordered = sorted(names, key=lambda n: (self._side(n, extractor).distance, n))
        nearest, others = ordered[0], ordered[1:]
        tests = [self.relative(n, nearest, extractor) for n in others]
        adjusted = holm(np.array([t.p_worse for t in tests])) if tests else np.zeros(0)
        p = {n: (float(a), t) for n, a, t in zip(others, adjusted, tests, strict=True)}
        members = (nearest, *(n for n in others if p[n][0] >= self.level))
        return Selection(nearest=nearest, names=members, tests=p)

    def relative(self, a: str, b: str, extractor: str = PRIMARY) -> Relative:
        """Return how much farther than `b` the candidate `a` is from the validation persons."""
        return compare_sides(self._side(a, extractor), self._side(b, extractor))

    def pick(self, selected: Sequence[str]) -> tuple[str, str]:
        """Return the one of a selection set to take, and the rule that decided."""
        rules: tuple[tuple[str, Callable[[Sequence[str]], list[str]]], ...] = (
            ("passes the search for copies, unlike others", self._private),
            ("is nearer by the second distance", self._nearer),
            ("costs less", self._cheap),
            ("has the simpler family", self._simple),
            ("comes first in the alphabet", lambda names: [min(names)]),
        )
        kept, why = list(selected), "is nearest to real persons"
        for said, rule in rules:
            fewer = rule(kept)
            why = said if len(fewer) < len(kept) else why
            kept = fewer
        return kept[0], why

    def disagreeing(self, selected: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
        """Return extractor -> whom it selects, where that is nobody of the selection set."""
        others = {e: self.selection(names, e).names for e in self._other_extractors(names)}
        return {e: sorted(found) for e, found in others.items() if not set(found) & set(selected)}

    def _other_extractors(self, names: Sequence[str]) -> list[str]:
        wanted = {REFERENCE, *names}
        return [e for e, s in self.features.items() if e != PRIMARY and wanted <= s.keys()]

    def _private(self, names: Sequence[str]) -> list[str]:
        return [n for n in names if n in self.private] or list(names)

    def _nearer(self, names: Sequence[str]) -> list[str]:
        second = SECOND if SECOND in self._other_extractors(names) else SCALED
        return list(self.selection(names, second).names)

    def _cheap(self, names: Sequence[str]) -> list[str]:
        cost = {n: self.entrants.get(n, Entrant()).seconds_per_scan for n in names}
        least = min(cost.values())
        return [n for n in names if least == cost[n] or least > _CHEAPER * cost[n]]

    def _simple(self, names: Sequence[str]) -> list[str]:
        place = {n: _complexity(self.family(n)) for n in names}
        return [n for n in names if place[n] == min(place.values())]

    def family(self, name: str) -> str:
        """Return a candidate's family."""
        return self.entrants.get(name, Entrant()).family or name

    def _side(self, name: str, extractor: str) -> Side:
        key = (extractor, name)
        if key not in self._sides:
            real, rows = self._rows(REFERENCE, extractor), self._rows(name, extractor)
            sigma2 = frozen_bandwidth(real) if extractor == SCALED else self.sigma2[extractor]
            self._sides[key] = Side.of(real, rows, sigma2)
        return self._sides[key]

    def _rows(self, name: str, extractor: str) -> Array:
        if extractor != SCALED:
            return self.features[extractor][name].values.astype(np.float64)
        sd = self._rows(REFERENCE, PRIMARY).std(axis=0, ddof=1)
        return self._rows(name, PRIMARY) / np.where(sd > 0, sd, 1)


def _complexity(family: str) -> int:
    known = _SIMPLEST_FIRST
    return known.index(family) if family in known else len(known)


def table(race: Race, selection: Selection, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a ranked candidate: distance with interval, tests, privacy, cost.

    Parameters
    ----------
    scores : mapping
        The candidates of `scores.json`.
    """
    rows = []
    for name in (selection.nearest, *selection.tests):
        mmd = scores[name]["scores"][PRIMARY]["mmd"]
        p_holm, test = selection.tests.get(name, (None, None))
        seconds = race.entrants.get(name, Entrant()).seconds_per_scan
        rows.append(
            {
                "id": name,
                "family": race.family(name),
                **{key: mmd.get(key) for key in ("value", "low", "high", "n_real", "n_synthetic")},
                "farther_by": test.difference if test else 0.0,
                "farther_by_se": test.se if test else None,
                "p_vs_best": test.p_worse if test else None,
                "p_holm": p_holm,
                "in_set": name in selection.names,
                "private": name in race.private,
                "seconds_per_scan": seconds if math.isfinite(seconds) else None,
            }
        )
    return rows
