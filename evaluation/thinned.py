"""Does generation help when patients are few? Folds by person, each with generators of its own.

`summarise` is the way in; its entries read like those of `utility`, so that one page shows both.
What the reader would get wrong: scores of networks that were trained apart cannot be ranked
together (averaged, they would be those of a network that saw more patients), so a person is
ranked inside each fold and the ranks are averaged; and a difference has two sources of error, the
persons who are tested and the lottery of who trains.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from rarescan.errors import InputError
from rarescan.evaluation.intervals import Z95, placements, unseen
from rarescan.evaluation.utility import PLACEBO_LOSS, judge

Array = npt.NDArray[np.float64]
QUESTION = "thinned"
CHOSEN = "chosen in each fold"
BASELINE = "baseline"


def summarise(rows: Iterable[Mapping[str, Any]], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one entry for each number of patients and model.

    Parameters
    ----------
    rows : iterable of mapping
        patients, repeat, fold, person_id, part ("validation" or "test"), truth (0 or 1), arm,
        model ("network", "linear" or "baseline"), seed, score. Scores of several seeds are
        averaged.
    kinds : mapping of str to str
        Arm -> free, generative or placebo.

    Returns
    -------
    list of dict
        Keys as in `utility.summarise`. The arm to beat, and the generative arm that is judged
        (`chosen in each fold`), are those with the largest AUC among a fold's validation persons;
        `chosen` counts them. Entries of the network also hold the baselines.

    Raises
    ------
    InputError
        Fewer than two folds, arms with different persons, or a fold without a free arm.
    """
    cells: dict[tuple[int, str], dict[tuple[int, int], dict[Any, Any]]] = {}
    for row in rows:
        fold = (int(row["repeat"]), int(row["fold"]))
        cell = cells.setdefault((int(row["patients"]), str(row["model"])), {}).setdefault(fold, {})
        person = cell.setdefault((row["part"], row["arm"]), {}).setdefault(row["person_id"], [])
        person.append((bool(row["truth"]), float(row["score"])))
    entries = []
    for (patients, model), folds in sorted(cells.items()):
        if model == BASELINE:
            continue
        beside = cells.get((patients, BASELINE), {}) if model == "network" else {}
        trained = [
            _Fold.of(key, {**arms, **beside.get(key, {})}, kinds)
            for key, arms in sorted(folds.items())
        ]
        entries.append(
            {"question": QUESTION, "patients": patients, "model": model} | _entry(trained)
        )
    return entries


@dataclass(frozen=True)
class _Fold:
    """One training: the test persons' scores, and which arms its validation persons chose."""

    key: tuple[int, int]
    ids: tuple[str, ...]
    positive: npt.NDArray[np.bool_]
    scores: Mapping[str, Array]
    kinds: Mapping[str, str]
    best: Mapping[str, str]
    """Kind -> the arm with the largest AUC among validation persons."""

    @classmethod
    def of(cls, key: tuple[int, int], arms: Mapping[Any, Any], kinds: Mapping[str, str]) -> "_Fold":
        test = {arm: people for (part, arm), people in arms.items() if part == "test"}
        ids = tuple(sorted(next(iter(test.values()), {})))
        if any(tuple(sorted(people)) != ids for people in test.values()):
            raise InputError(
                "The arms of a fold were tested on different persons.",
                remedy="Remove the result and repeat the command.",
            )
        judged = {arm: _auc(arms.get(("validation", arm), {})) for arm in sorted(test)}
        own = {arm: kinds.get(arm, BASELINE) for arm in test}
        best = {
            kind: max((a for a in judged if own[a] == kind), key=lambda a: judged[a])
            for kind in set(own.values())
        }
        if "free" not in best:
            raise InputError(
                "A fold has no arm that costs nothing.", remedy="Add `classical` to retrain.arms."
            )
        scores = {arm: _means(people, ids) for arm, people in test.items()}
        first = next(iter(test.values()))
        return cls(key, ids, np.array([first[p][0][0] for p in ids]), scores, own, best)

    def score(self, arm: str, kind: str) -> Array:
        """Return the scores of an arm, or of the one that was chosen among its kind."""
        return self.scores[self.best[kind] if arm == CHOSEN else arm]

    def placed(self, *scores: Array) -> tuple[Array, Array]:
        """Return the placements of patients and of controls, a row a score."""
        both = np.stack(scores)
        return placements(both[:, self.positive], both[:, ~self.positive])


def _means(people: Mapping[str, Sequence[tuple[bool, float]]], ids: Sequence[str]) -> Array:
    return np.array([np.mean([score for _, score in people[person]]) for person in ids])


def _auc(people: Mapping[str, Sequence[tuple[bool, float]]]) -> float:
    """Return the AUC of persons; one half where a class is missing."""
    truth = np.array([told[0][0] for told in people.values()], dtype=bool)
    if not truth.any() or truth.all():
        return 0.5
    score = _means(people, list(people))
    return float(placements(score[None, truth], score[None, ~truth])[0].mean())


def _entry(folds: Sequence[_Fold]) -> dict[str, Any]:
    if len(folds) < 2:
        raise InputError(
            "There is one training only, so nothing is known of its lottery.",
            remedy="Set classify.folds to 2 or more.",
        )
    kinds = dict(folds[0].kinds)
    arms = {arm: _arm(folds, arm, kind) for arm, kind in kinds.items()}
    generative = CHOSEN if "generative" in folds[0].best else None
    if generative:
        arms[CHOSEN] = _arm(folds, CHOSEN, "generative")
    verdict, sentence = judge(arms.get(CHOSEN), generative, "the best free arm", "trainings")
    tested = {p: bool(t) for f in folds for p, t in zip(f.ids, f.positive, strict=True)}
    return {
        "draws": len(folds),
        "persons": {
            "patients": sum(tested.values()),
            "controls": len(tested) - sum(tested.values()),
        },
        "best_free": CHOSEN,
        "best_generative": generative,
        "chosen": {
            kind: dict(Counter(fold.best[kind] for fold in folds).most_common())
            for kind in ("free", "generative")
            if kind in folds[0].best
        },
        "arms": arms,
        "bites": _bites(arms),
        "verdict": verdict,
        "sentence": sentence,
    }


def _bites(arms: Mapping[str, Any]) -> bool | None:
    """Return whether a placebo costs what it must; None without one."""
    losses = [a["difference"]["value"] for a in arms.values() if a["kind"] == "placebo"]
    return min(losses) <= PLACEBO_LOSS if losses else None


def _arm(folds: Sequence[_Fold], arm: str, kind: str) -> dict[str, Any]:
    auc = [float(fold.placed(fold.score(arm, kind))[0].mean()) for fold in folds]
    return {
        "kind": kind,
        "measures": {"auc": {"mean": float(np.mean(auc)), "sd": float(np.std(auc, ddof=1))}},
        "difference": difference(folds, arm, kind),
        "share": None,
    }


def difference(folds: Sequence[_Fold], arm: str, kind: str) -> dict[str, float]:
    """Return an arm's AUC minus that of the free arm of each fold: mean over folds, 95 % interval.

    Half width: root of (1.96 se)^2 + (t s / sqrt(k))^2. se: DeLong's over persons, whose
    placements are averaged over the folds that tested them (clusters); s: standard deviation of
    the folds' differences, t: Student's with one degree less than there are, k: folds of one
    repeat, because repeats train on the same persons. With linear models on made data without a
    difference the interval leaves out 0 in 4 to 8 % of cohorts; DeLong's alone in 11 to 20 %.
    """
    values, owed = [], (Counter[str](), Counter[str]())
    for fold in folds:
        placed = fold.placed(fold.score(CHOSEN, "free"), fold.score(arm, kind))
        won = [both[1] - both[0] for both in placed]
        values.append(float(won[0].mean()))
        names = np.array(fold.ids)
        for side, mine, who in zip(owed, won, (fold.positive, ~fold.positive), strict=True):
            for person, one in zip(names[who], mine, strict=True):
                side[str(person)] += (one - values[-1]) / (len(folds) * len(mine))
    persons = sum(
        float(np.square(list(side.values())).sum()) * len(side) / (len(side) - 1) for side in owed
    )
    k = len({number for _, number in (fold.key for fold in folds)})
    lottery = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(k))
    value, half = float(np.mean(values)), float(np.hypot(Z95 * np.sqrt(persons), lottery))
    if half == 0 and any(f.best["free"] != arm for f in folds):
        # Equal ranks have no variance of their own, which is no proof of equality.
        half = unseen(min(map(len, owed)))
    return {"value": value, "low": value - half, "high": value + half, "n": len(values)}
