"""Which candidate is registered, and for what use: gates first, then the ranking, as a value.

`decide` is pure: numbers in, `Decision` out. A candidate with a failed gate is dropped; `ranking`
orders the rest; a registered champion stays unless it fails a gate or a challenger is
significantly nearer to real persons. `insufficient` never counts as pass: it keeps a batch inside
the controller.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rarescan.cohort.contracts import Decision, FeatureSet, Gate, PermittedUse, Score
from rarescan.errors import InputError
from rarescan.evaluation.evaluate import SCORES
from rarescan.evaluation.features import PRIMARY, require_one_extractor
from rarescan.evaluation.ranking import REFERENCE, Entrant, Race, Selection, table
from rarescan.evaluation.spec import SelectConfig
from rarescan.files import content_id, read_json

Reason = tuple[str, str]
Verdict = Literal["register", "keep_champion", "refuse"]

NEVER_REGISTERED = frozenset({"transfer"})
"""Families whose samples keep a real person's anatomy, whatever the gates say."""
RULE = (
    "Gates first. Then the smallest unbiased RBF-MMD^2 to validation persons and all candidates "
    "that are not significantly farther (relative similarity, variance corrected for the pairwise "
    "part, Holm); inside that set privacy, then the second distance, then cost (30 %), then the "
    "simpler family. A champion is replaced when it fails a gate or a challenger is significantly "
    "nearer (Bonferroni over challengers and over earlier uses of the same persons)."
)
_PRIVACY_GATE = "copies"
_FEWEST_ROWS = 4
_MOST_PERSONS = 10_000


@dataclass(frozen=True, kw_only=True)
class RankedDecision(Decision):
    """A decision with the numbers of its ranking."""

    selection: dict[str, Any] = field(default_factory=dict)
    """`rule`, `candidates` (one row each), `champion`, `against_champion`, `could_not_separate`,
    `persons_needed`, `disagreeing`, `n_persons`, `reference_id`, `heldout_uses`, `level`."""


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


def reference_id(features: Mapping[str, Mapping[str, FeatureSet]]) -> str:
    """Return what the validation persons are known by where their use is counted."""
    return content_id(sorted(features[PRIMARY][REFERENCE].person_ids))


def decide(
    scores: Mapping[str, Any],
    entrants: Mapping[str, Entrant],
    features: Mapping[str, Mapping[str, FeatureSet]],
    champion: str | None = None,
    config: SelectConfig | None = None,
    *,
    earlier: Collection[str] = (),
) -> RankedDecision:
    """Return which candidate to register, or why none.

    Parameters
    ----------
    scores : mapping
        From `read_scores`.
    entrants : mapping of str to Entrant
        Candidate -> family and cost of one synthetic scan.
    features : mapping
        Extractor -> set -> features, from `features.read_features`.
    champion : str, optional
        The candidate that is the registered model, where there is one. It stays unless it fails
        a gate or another is significantly nearer to the real persons.
    config : SelectConfig, optional
    earlier : collection of str
        Ids of decisions taken on the same validation persons. Every use costs: all tests are made
        at alpha / (1 + number of other decisions).

    Returns
    -------
    RankedDecision
        `register` with the winner, `keep_champion`, or `refuse` with `chosen=None`.

    Raises
    ------
    InputError
        Features or scores of a candidate are missing, too few, or of another extractor.
    """
    config = config or SelectConfig()
    candidates = scores["candidates"]
    _require_complete(candidates, features, champion)
    # Without the costs: they are measured, and the same run must give the same id.
    families = {name: entrant.family for name, entrant in entrants.items()}
    inputs = content_id([scores, families, champion, config.alpha])
    heldout_uses = 1 + len(set(earlier) - {inputs})
    gates = {name: tuple(Gate(**g) for g in c["gates"]) for name, c in candidates.items()}
    race = Race(
        scores["extractors"]["sigma2"],
        features,
        entrants,
        frozenset(n for n in gates if _outcome(gates[n], _PRIVACY_GATE) == "pass"),
        config.alpha / heldout_uses,
    )
    reasons: list[Reason] = []
    eligible = [n for n in candidates if not _dropped(n, race.family(n), gates[n], reasons)]
    verdict, chosen, ranked = _rank(race, eligible, champion, reasons)
    use = _permitted_use(chosen, gates, reasons)
    return RankedDecision(
        decision_id=inputs,
        verdict=verdict,
        chosen=chosen,
        permitted_use=use,
        gates=gates,
        reasons=tuple(reasons),
        scores={name: tuple(_rows(candidate)) for name, candidate in candidates.items()},
        selection={
            "rule": RULE,
            "champion": champion,
            "n_persons": race.n_persons,
            "reference_id": reference_id(features),
            "heldout_uses": heldout_uses,
            "level": race.level,
            **ranked.numbers(race, candidates),
        },
    )


def _require_complete(
    candidates: Mapping[str, Any],
    features: Mapping[str, Mapping[str, FeatureSet]],
    champion: str | None,
) -> None:
    primary = features.get(PRIMARY, {})
    missing = [name for name in (REFERENCE, *candidates) if name not in primary]
    if champion is not None and champion not in candidates:
        missing.append(champion)
    if missing:
        raise InputError(
            f"There are no {PRIMARY} features or scores of '{missing[0]}'.",
            remedy="Run `rarescan evaluate` again with this candidate among the models.",
        )
    few = [name for name in candidates if len(primary[name].values) < _FEWEST_ROWS]
    if few:
        raise InputError(
            f"'{few[0]}' has {len(primary[few[0]].values)} synthetic scans; candidates are "
            f"compared with {_FEWEST_ROWS} or more.",
            remedy="Raise evaluate.n_synthetic; 1000 or more separate close candidates.",
        )
    for sets in features.values():
        require_one_extractor(sets)


def _dropped(name: str, family: str, gates: tuple[Gate, ...], reasons: list[Reason]) -> bool:
    failed = [gate for gate in gates if gate.outcome == "fail"]
    for gate in failed:
        reasons.append(("gate_failed", f"{name} fails the gate {gate.name}: {gate.reason}"))
    if family in NEVER_REGISTERED:
        reasons.append(
            ("never_registered", f"{name} keeps the anatomy of real persons: never registered.")
        )
    return bool(failed) or family in NEVER_REGISTERED


@dataclass(frozen=True)
class _Ranked:
    """What the ranking found, for the decision's numbers."""

    selection: Selection | None = None
    disagreeing: Mapping[str, list[str]] = field(default_factory=dict)
    against_champion: Mapping[str, dict[str, float]] = field(default_factory=dict)

    def numbers(self, race: Race, candidates: Mapping[str, Any]) -> dict[str, Any]:
        """Return them as JSON values."""
        found = self.selection
        needed = found.persons_needed(race.n_persons, race.level) if found else None
        return {
            "candidates": table(race, found, candidates) if found else [],
            "could_not_separate": list(found.names) if found and len(found.names) > 1 else [],
            "persons_needed": needed,
            "disagreeing": dict(self.disagreeing),
            "against_champion": dict(self.against_champion),
        }


def _rank(
    race: Race, eligible: list[str], champion: str | None, reasons: list[Reason]
) -> tuple[Verdict, str | None, _Ranked]:
    """Rank the challengers and let them meet the registered model."""
    challengers = [name for name in eligible if name != champion]
    stands = champion in eligible
    if not challengers:
        if stands:
            reasons.append(("champion_kept", f"No candidate could challenge {champion}."))
            return "keep_champion", champion, _Ranked()
        reasons.append(("refused", "No candidate passed without a failed gate."))
        return "refuse", None, _Ranked()
    selection = race.selection(challengers)
    disagreeing = race.disagreeing(selection.names, challengers)
    _explain(race, selection, disagreeing, reasons)
    against = _against(race, champion, challengers) if champion and stands else {}
    ranked = _Ranked(selection, disagreeing, against)
    if champion is None or not stands:
        if champion is not None:
            reasons.append(("champion_replaced", f"The champion {champion} fails a gate."))
        return "register", _chosen(race, selection.names, reasons), ranked
    nearer = [name for name in selection.names if against[name]["p"] < race.level]
    if nearer:
        chosen = _chosen(race, nearer, reasons)
        text = f"{chosen} is significantly nearer than {champion} ({_tested(against[chosen])})."
        reasons.append(("champion_replaced", text))
        return "register", chosen, ranked
    best = selection.nearest
    text = f"{best} is not significantly nearer than {champion} ({_tested(against[best])})."
    reasons.append(("champion_kept", text))
    return "keep_champion", champion, ranked


def _against(race: Race, champion: str, challengers: list[str]) -> dict[str, dict[str, float]]:
    """Return challenger -> difference to the champion, its SE, p corrected for their number."""
    tests = {name: race.relative(name, champion) for name in challengers}
    return {
        name: {
            "difference": test.difference,
            "se": test.se,
            "p": min(1.0, test.p_better * len(challengers)),
        }
        for name, test in tests.items()
    }


def _tested(test: Mapping[str, float]) -> str:
    return f"MMD^2 difference {test['difference']:.2g}, p = {test['p']:.2g}"


def _chosen(race: Race, selected: Collection[str], reasons: list[Reason]) -> str:
    chosen, why = race.pick(list(selected))
    among = " of those that could not be separated" if len(selected) > 1 else ""
    reasons.append(("chosen", f"{chosen} {why}{among} (n = {race.n_persons} persons)."))
    return chosen


def _explain(
    race: Race,
    selection: Selection,
    disagreeing: Mapping[str, list[str]],
    reasons: list[Reason],
) -> None:
    """Say who is in the selection set, what would divide it, and which extractor sees otherwise."""
    for name, (p, test) in selection.tests.items():
        inside = name in selection.names
        reasons.append(
            (
                "in_set" if inside else "not_in_set",
                f"{name} is {'not ' if inside else ''}significantly farther from real persons "
                f"than {selection.nearest} (MMD^2 difference {test.difference:.2g}, p = {p:.2g}).",
            )
        )
    if len(selection.names) > 1:
        reasons.append(("could_not_separate", _persons_needed(race, selection)))
    for extractor, names in disagreeing.items():
        reasons.append(
            (
                "extractor_disagreement",
                f"By the features '{extractor}' {' and '.join(names)} would have been selected.",
            )
        )


def _persons_needed(race: Race, selection: Selection) -> str:
    n = race.n_persons
    names = " and ".join(sorted(selection.names))
    text = f"{names} could not be separated with {n} validation persons"
    needed = selection.persons_needed(n, race.level)
    if needed is None:
        return f"{text}."
    if needed > _MOST_PERSONS:
        return f"{text}; more than {_MOST_PERSONS} would be needed."
    return f"{text}; about {math.ceil(needed)} would."


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
