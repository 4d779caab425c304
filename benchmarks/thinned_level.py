"""How often does `bench thinned` call a difference that is not there: on made persons.

Two linear discriminants that see overlapping halves of the features, and are equally good over
all cohorts, stand for the best free arm and for a generative one; 98 + 98 persons as in OASIS-1.
Printed: how often the interval of `evaluation.thinned.summarise` leaves out 0, and how often the
verdict is `use`.

    python benchmarks/thinned_level.py --cohorts 200
"""

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt

from rarescan.evaluation.thinned import summarise

PERSONS, FEATURES, EFFECT, RIDGE, FOLDS, HELD = 98, 12, 0.3, 0.3, 5, 15
ARMS = {"classical": slice(0, 8), "classical+other": slice(4, 12)}
KINDS = {"classical": "free", "classical+other": "generative"}
Array = npt.NDArray[np.float64]


def direction(values: Array, ill: npt.NDArray[np.bool_]) -> Array:
    """Return Fisher's discriminant with a ridge."""
    one, other = values[ill], values[~ill]
    spread = np.cov(one.T) * (len(one) - 1) + np.cov(other.T) * (len(other) - 1)
    within = spread / (len(values) - 2) + RIDGE * np.eye(values.shape[1])
    found: Array = np.linalg.solve(within, one.mean(axis=0) - other.mean(axis=0))
    return found


def cohort_rows(seed: int, patients: int, repeats: int) -> list[dict[str, Any]]:
    """Return the predictions of one made cohort."""
    random = np.random.default_rng([seed, patients, repeats])
    ill = np.arange(2 * PERSONS) < PERSONS
    values = random.normal(EFFECT * ill[:, None], 1, (2 * PERSONS, FEATURES))
    rows = []
    for repeat in range(repeats):
        order = random.permutation(PERSONS), PERSONS + random.permutation(PERSONS)
        for fold in range(FOLDS):
            rest = [random.permutation(np.delete(o, np.s_[fold::FOLDS])) for o in order]
            train = np.concatenate([rest[0][HELD : HELD + patients], rest[1][HELD:]])
            test = np.concatenate(
                [order[0][fold::FOLDS], rest[0][HELD + patients :], order[1][fold::FOLDS]]
            )
            for arm, seen in ARMS.items():
                scores = values[test, seen] @ direction(values[train, seen], ill[train])
                rows += [
                    {"patients": patients, "repeat": repeat, "fold": fold, "person_id": f"P{p}"}
                    | {"part": "test", "truth": int(ill[p]), "arm": arm, "model": "network"}
                    | {"seed": 0, "score": float(score)}
                    for p, score in zip(test, scores, strict=True)
                ]
    return rows


def main() -> None:
    """Print a row for each number of patients and repeats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=200)
    n = parser.parse_args().cohorts
    for repeats in (1, 2):
        for patients in (10, 20, 40):
            false = used = 0
            for seed in range(n):
                (entry,) = summarise(cohort_rows(seed, patients, repeats), KINDS)
                found = entry["arms"]["classical+other"]["difference"]
                false += found["low"] > 0 or found["high"] < 0
                used += entry["verdict"] == "use"
            print(
                f"{repeats} x {FOLDS} folds, {patients} patients: interval without 0 in "
                f"{false} of {n}, `use` in {used}",
                flush=True,
            )


if __name__ == "__main__":
    main()
