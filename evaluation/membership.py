"""Can training persons be told from others of the same cohort? Attacks and the gate on them.

`black_box` needs synthetic persons only, `white_box` what the generator's inside says of each
person (a loss). `membership_gate` judges the former, because batches leave and weights do not.
That a generator was fitted to its persons is seen by both and is no copy: so the gate withholds a
pass and refuses nobody. White-box attacks are reported, and mostly succeed: a codec that was
fitted to few persons rebuilds them better than others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from rarescan.cohort.contracts import Gate, Outcome
from rarescan.evaluation.intervals import auc_interval
from rarescan.seeds import generator

Array = npt.NDArray[np.float64]

BLACK_BOX = "distance to the nearest synthetic person"
MOST_AUC = 0.65
"""The 95 % interval of the area under the attack's ROC curve must lie below."""
WIDEST = 0.10
"""Half of an interval that is wider says nothing."""
_PERMUTATIONS = 999


def attack(name: str, training: Array, validation: Array) -> dict[str, Any]:
    """Return how well a loss tells training persons (smaller) from validation persons.

    Parameters
    ----------
    name : str
        What is compared.
    training, validation : float arrays, shapes (n,) and (m,), one value a person

    Returns
    -------
    dict
        `attack`, `auc` with `low` and `high` (95 %, DeLong), `n_training`, `n_validation`. 0.5 is
        chance.
    """
    auc, low, high = auc_interval(-training, -validation)
    counts = {"n_training": len(training), "n_validation": len(validation)}
    return {"attack": name, "auc": auc, "low": low, "high": high, **counts}


def black_box(synthetic: Array, training: Array, validation: Array, *, seed: int) -> dict[str, Any]:
    """Return the attack of somebody who sees a batch: members lie nearer to synthetic persons.

    Parameters
    ----------
    synthetic, training, validation : float arrays, shapes (s, d), (n, d), (m, d)
        One row a person, from features that were not themselves fitted to training persons.
    seed : int
        Of the permutations.

    Returns
    -------
    dict
        As `attack`, and `permutation_p`: the chance that synthetic persons lie so much nearer to
        equally many training than validation persons, had the labels of persons been drawn.
    """
    nearest = [cdist(rows, synthetic).min(axis=1) for rows in (training, validation)]
    found = attack(BLACK_BOX, *nearest)
    return found | {"permutation_p": _permutation_p(synthetic, training, validation, seed)}


def _permutation_p(synthetic: Array, training: Array, validation: Array, seed: int) -> float:
    """Return the one-sided p of mean log(distance to nearest member / to nearest other)."""
    draw = generator(seed, "membership")
    k = min(len(training), len(validation))
    members = training[draw.permutation(len(training))[:k]]
    others = validation[draw.permutation(len(validation))[:k]]
    logs = np.log(np.maximum(cdist(np.concatenate([members, others]), synthetic), 1e-12))

    def nearness(order: npt.NDArray[np.intp]) -> float:
        return float(np.mean(logs[order[:k]].min(axis=0) - logs[order[k:]].min(axis=0)))

    seen = nearness(np.arange(2 * k))
    drawn = [nearness(draw.permutation(2 * k)) for _ in range(_PERMUTATIONS)]
    return (1 + int(np.sum(np.array(drawn) <= seen))) / (_PERMUTATIONS + 1)


def white_box(losses: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Return the attacks of somebody who holds the weights, one a loss.

    Parameters
    ----------
    losses : mapping
        Name -> `train`, `validation` -> one value a person; smaller means better known.
    """
    return [
        attack(name, np.asarray(parts["train"], float), np.asarray(parts["validation"], float))
        for name, parts in losses.items()
        if parts.get("train") and parts.get("validation")
    ]


def membership_gate(found: Mapping[str, Any]) -> Gate:
    """Return whether an attack of `black_box` surely stays below `MOST_AUC`; it never fails."""
    low, high = float(found["low"]), float(found["high"])
    numbers = f"AUC {found['auc']:.2f} ({low:.2f} to {high:.2f})"
    outcome: Outcome = "insufficient"
    if high < MOST_AUC and (high - low) / 2 <= WIDEST:
        outcome, words = "pass", "Training persons are hardly told from others"
    elif low > MOST_AUC:
        words = "Training persons are told from others"
    else:
        words = "Too few persons to exclude that training persons are told from others"
    return Gate(
        name="membership",
        outcome=outcome,
        statistic=high,
        limit=MOST_AUC,
        reason=f"{words} by their {found['attack']}: {numbers}; {found['n_training']} training, "
        f"{found['n_validation']} validation persons.",
    )
