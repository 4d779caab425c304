"""Which candidate is registered, and for what use: gates first, then the ranking, as a value.

`decide` is pure: numbers in, `Decision` out. A candidate with a failed gate is dropped; among the
rest the smallest primary MMD^2 and all that are not significantly worse form the selection set;
inside the set privacy decides, then the distance, then the cost. `insufficient` never counts as
pass: it keeps a batch inside the controller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import Decision, FeatureSet, Gate, PermittedUse, Score
from rarescan.errors import InputError
from rarescan.evaluation.evaluate import SCORES
from rarescan.evaluation.features import PRIMARY, SECOND, require_one_extractor
from rarescan.evaluation.intervals import holm
from rarescan.evaluation.relative import Relative, compare
from rarescan.evaluation.spec import SelectConfig
from rarescan.files import content_id, read_json

Array = npt.NDArray[np.float64]
Reason = tuple[str, str]

NEVER_REGISTERED = frozenset({"transfer"})
"""Its samples keep a real person's anatomy, whatever the gates say."""
_PRIVACY_GATE = "copies"
_Z = 1.645


def read_scores(folder: Path) -> dict[str, Any]:
    """Return `scores.json` of a finished evaluation.

    Raises
    ------
    InputError
        The folder holds no scores.
    """
    try:
        scores: dict[str, Any] = read_json(folder / SCORES)
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {SCORES}.",
            remedy="Run `rarescan evaluate` first, or name the folder that it wrote.",
        ) from None
    return scores


def decide(
    scores: Mapping[str, Any],
    seconds_per_scan: Mapping[str, float],
    features: Mapping[str, Mapping[str, FeatureSet]],
    champion: str | None = None,
    config: SelectConfig | None = None,
) -> Decision:
    """Return which candidate to register, or why none.

    Parameters
    ----------
    scores : mapping
        From `read_scores`.
    seconds_per_scan : mapping of str to float
        Candidate -> cost of one synthetic scan; the last tie-breaker.
    features : mapping
        Extractor -> set -> features, from `features.read_features`.
    champion : str, optional
        The candidate that is the registered model, where there is one. It stays unless it fails
        a gate or another is significantly nearer to the real persons.
    config : SelectConfig, optional

    Returns
    -------
    Decision
        `register` with the winner, `keep_champion`, or `refuse` with `chosen=None`.
    """
    config = config or SelectConfig()
    candidates = scores["candidates"]
    _require_complete(candidates, features, champion)
    gates = {name: tuple(Gate(**g) for g in c["gates"]) for name, c in candidates.items()}
    reasons: list[Reason] = []
    eligible = [name for name in candidates if not _dropped(name, gates[name], reasons)]
    race = _Race(scores, features, gates, seconds_per_scan, config)
    challengers = [name for name in eligible if name != champion]
    chosen = race.winner(challengers, reasons)
    verdict, chosen = _against(champion, chosen, eligible, race, reasons)
    use = _permitted_use(chosen, gates, reasons)
    numbers = {name: tuple(_rows(candidate)) for name, candidate in candidates.items()}
    inputs = [scores, dict(seconds_per_scan), champion, config.alpha]
    return Decision(
        decision_id=content_id(inputs),
        verdict=verdict,
        chosen=chosen,
        permitted_use=use,
        gates=gates,
        reasons=tuple(reasons),
        scores=numbers,
    )


def _require_complete(
    candidates: Mapping[str, Any],
    features: Mapping[str, Mapping[str, FeatureSet]],
    champion: str | None,
) -> None:
    primary = features.get(PRIMARY, {})
    missing = [name for name in ("validation", *candidates) if name not in primary]
    if champion is not None and champion not in candidates:
        missing.append(champion)
    if missing:
        raise InputError(
            f"There are no {PRIMARY} features or scores of '{missing[0]}'.",
            remedy="Run `rarescan evaluate` again with this candidate among the models.",
        )
    for sets in features.values():
        require_one_extractor(sets)


def _dropped(name: str, gates: tuple[Gate, ...], reasons: list[Reason]) -> bool:
    failed = [gate for gate in gates if gate.outcome == "fail"]
    for gate in failed:
        reasons.append(("gate_failed", f"{name} fails the gate {gate.name}: {gate.reason}"))
    if name in NEVER_REGISTERED:
        reasons.append(
            ("never_registered", f"{name} keeps the anatomy of real persons: never registered.")
        )
    return bool(failed) or name in NEVER_REGISTERED


@dataclass(frozen=True)
class _Race:
    """Ranks candidates by their distance to the validation persons."""

    scores: Mapping[str, Any]
    features: Mapping[str, Mapping[str, FeatureSet]]
    gates: Mapping[str, tuple[Gate, ...]]
    seconds: Mapping[str, float]
    config: SelectConfig

    def winner(self, names: list[str], reasons: list[Reason]) -> str | None:
        """Return the best of the named candidates and say why."""
        if not names:
            return None
        selected, tests = self.selection_set(names, PRIMARY)
        best = min(names, key=self._distance)
        for name, (p, relative) in tests.items():
            inside = name in selected
            reasons.append(
                (
                    "in_set" if inside else "not_in_set",
                    f"{name} is {'not ' if inside else ''}significantly farther from real persons "
                    f"than {best} (MMD^2 difference {relative.difference:.2g}, p = {p:.2g}).",
                )
            )
        if len(selected) > 1:
            reasons.append(("could_not_separate", self._persons_needed(selected, best, tests)))
        self._second_opinion(names, selected, reasons)
        chosen = min(selected, key=self._order)
        reasons.append(("chosen", self._why(chosen, selected)))
        return chosen

    def selection_set(
        self, names: list[str], extractor: str
    ) -> tuple[list[str], dict[str, tuple[float, Relative]]]:
        """Return the nearest candidate with all not significantly worse, and Holm's p-values."""
        distance = {n: self._distance(n, extractor) for n in names}
        best = min(names, key=lambda n: distance[n])
        others = [n for n in names if n != best]
        tests = [self.relative(n, best, extractor) for n in others]
        adjusted = holm(np.array([t.p_worse for t in tests])) if tests else np.zeros(0)
        p = {n: (float(a), t) for n, a, t in zip(others, adjusted, tests, strict=True)}
        return [n for n in names if n == best or p[n][0] >= self.config.alpha], p

    def relative(self, a: str, b: str, extractor: str = PRIMARY) -> Relative:
        """Return how much farther than `b` the candidate `a` is from the validation persons."""
        sets = self.features[extractor]
        rows = [sets[name].values.astype(np.float64) for name in ("validation", a, b)]
        sigma2 = float(self.scores["extractors"]["sigma2"][extractor])
        return compare(rows[0], rows[1], rows[2], sigma2=sigma2)

    def _distance(self, name: str, extractor: str = PRIMARY) -> float:
        return float(self.scores["candidates"][name]["scores"][extractor]["mmd"]["value"])

    def _order(self, name: str) -> tuple[bool, float, float, str]:
        private = _outcome(self.gates[name], _PRIVACY_GATE) == "pass"
        return not private, self._distance(name), self.seconds.get(name, np.inf), name

    def _why(self, chosen: str, selected: list[str]) -> str:
        value = self._distance(chosen)
        if len(selected) == 1:
            return f"{chosen} is nearest to real persons (MMD^2 {value:.2g})."
        nearest = chosen == min(selected, key=self._distance)
        why = (
            "is the nearest of those" if nearest else "passes the search for copies, unlike others"
        )
        return f"{chosen} {why} that could not be separated (MMD^2 {value:.2g})."

    def _persons_needed(
        self, selected: list[str], best: str, tests: Mapping[str, tuple[float, Relative]]
    ) -> str:
        n = len(self.features[PRIMARY]["validation"].values)
        needed = [
            n * (_Z * tests[name][1].se / tests[name][1].difference) ** 2
            for name in selected
            if name != best and tests[name][1].difference > 0
        ]
        text = f"{' and '.join(selected)} could not be separated with {n} validation persons"
        return f"{text}; about {np.ceil(max(needed)):.0f} would." if needed else f"{text}."

    def _second_opinion(self, names: list[str], selected: list[str], reasons: list[Reason]) -> None:
        """Say so where the region vector selects entirely different candidates."""
        if any(name not in self.features.get(SECOND, {}) for name in (*names, "validation")):
            return
        second, _ = self.selection_set(names, SECOND)
        if not set(second) & set(selected):
            reasons.append(
                (
                    "extractor_disagreement",
                    f"By the region vector {' and '.join(second)} would have been selected.",
                )
            )


def _against(
    champion: str | None,
    challenger: str | None,
    eligible: list[str],
    race: _Race,
    reasons: list[Reason],
) -> tuple[Literal["register", "keep_champion", "refuse"], str | None]:
    """Let the challenger meet the registered model."""
    if champion is None or champion not in eligible:
        if challenger is None:
            reasons.append(("refused", "No candidate passed without a failed gate."))
            return "refuse", None
        if champion is not None:
            reasons.append(("champion_replaced", f"The champion {champion} fails a gate."))
        return "register", challenger
    if challenger is None:
        reasons.append(("champion_kept", f"No candidate could challenge {champion}."))
        return "keep_champion", champion
    p = race.relative(challenger, champion).p_better
    if p < race.config.alpha:
        reasons.append(
            (
                "champion_replaced",
                f"{challenger} is significantly nearer than {champion} (p = {p:.2g}).",
            )
        )
        return "register", challenger
    reasons.append(
        (
            "champion_kept",
            f"{challenger} is not significantly nearer than {champion} (p = {p:.2g}).",
        )
    )
    return "keep_champion", champion


def _permitted_use(
    chosen: str | None, gates: Mapping[str, tuple[Gate, ...]], reasons: list[Reason]
) -> PermittedUse:
    if chosen is None:
        return "inside_controller"
    open_gates = [gate.name for gate in gates[chosen] if gate.outcome != "pass"]
    if gates[chosen] and not open_gates:
        reasons.append(("permitted_use", f"Every gate of {chosen} passed: release."))
        return "release"
    reasons.append(
        (
            "permitted_use",
            f"Not every gate of {chosen} passed ({', '.join(open_gates) or 'none was checked'}): "
            "its scans stay inside the controller.",
        )
    )
    return "inside_controller"


def _outcome(gates: tuple[Gate, ...], name: str) -> str:
    return next((gate.outcome for gate in gates if gate.name == name), "insufficient")


def _rows(candidate: Mapping[str, Any]) -> list[Score]:
    return [Score(**row) for rows in candidate["scores"].values() for row in rows.values()]
