"""What a published map is worth without a generator: the free arms that know the map too.

`score_informed` is the way in, for results of `arms.run_arms`: the informed linear model alone, and
averaged with networks that do not know the map.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rarescan.classifiers.contract import person_means
from rarescan.classifiers.examples import labelled
from rarescan.classifiers.informed import averaged, fit_informed
from rarescan.classifiers.network import load_network
from rarescan.cohort.contracts import FloatArray, Question
from rarescan.cohort.store import open_cohort, require_grid


def score_informed(
    arms: Path, prepared: Path, pattern: FloatArray, question: Question, *, beside: Sequence[str]
) -> list[dict[str, Any]]:
    """Return rows as in `arms.PREDICTIONS`, of test persons.

    Parameters
    ----------
    arms : Path
        Folder that `run_arms` filled.
    prepared : Path
        The cohort that it was filled with.
    pattern : float32 array, shape (x, y, z)
        On the cohort's grid; negative where patients have less tissue.
    question : Question
    beside : sequence of str
        Arms whose networks are averaged with the informed model: half of the sum of z values, by
        training controls. Their rows are of `arm&informed`, model network; those of the model
        alone are of `informed`, both as linear model and among the networks.
    """
    cohort = open_cohort(prepared)
    real, tested = (labelled(cohort, question, part) for part in ("train", "test"))
    controls = real.read([p for p, label in enumerate(real.labels) if label == 0])
    images = tested.read()
    model = fit_informed(real, pattern, require_grid(prepared).spacing_mm)
    own, reference = model.score(images), model.score(controls)
    scores = {("informed", "linear"): own, ("informed", "network"): own}
    for arm in beside:
        network = load_network(arms / "networks" / f"{arm.replace(':', ',')}-0", "cpu")
        pair = [own, network.score(images)], [reference, network.score(controls)]
        scores[f"{arm}&informed", "network"] = averaged(*pair)
    truth = dict(zip(tested.person_ids, tested.labels, strict=True))
    return [
        {"person_id": person, "part": "test", "truth": truth[person], "score": score}
        | {"arm": arm, "model": kind}
        for (arm, kind), values in scores.items()
        for person, score in person_means(tested.person_ids, values).items()
    ]
