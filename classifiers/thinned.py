"""Few patients out of many: whom a network of real persons may see when its disease is made rare.

`thinned_partition` is the way in: the folds of `splits`, in which only so many patients of the
training persons train and the others are tested. What the reader would get wrong: the patients of
a smaller number are among those of a larger one, and validation persons keep their number,
because they only choose what is compared with.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.classifiers.splits import draw_folds, label_table
from rarescan.classifiers.tables import MOST_COMPONENTS, metadata_columns
from rarescan.cohort.contracts import Cohort, Part, Question
from rarescan.cohort.store import open_volumes, read_metadata
from rarescan.errors import SettingError
from rarescan.seeds import derive

COVARIATES, THUMBNAILS = "covariates", "thumbnails"
_HELD_OUT: tuple[Part, ...] = ("validation", "test")
_INVERSE_PENALTY = {COVARIATES: 1.0, THUMBNAILS: 0.1}


def thinned_partition(
    cohort: Cohort,
    config: ClassifyConfig,
    question: Question,
    patients: int,
    place: tuple[int, int],
) -> dict[str, Part]:
    """Return person -> part of one fold in which so many patients train.

    Parameters
    ----------
    cohort : Cohort
        Real persons, prepared; its own partition does not count.
    config : ClassifyConfig
        Folds, share of validation persons, seed (of the network).
    question : Question
        The positive diagnosis is the one that becomes rare.
    patients : int
        How many patients train; the other training patients are tested.
    place : (int, int)
        Repeat and fold.

    Raises
    ------
    SettingError
        A fold has fewer training patients.
    """
    table = label_table(cohort, config, modality_of(cohort))
    repeat, number = place
    fold = draw_folds(table, config, repeat)[number]
    seed = config.network.seed
    mine = {table.scans[p].person_id for p in fold.train}
    ill = {s.person_id for s in table.scans if s.condition.diagnosis == question.positive}
    ranked = sorted(mine & ill, key=lambda person: derive(seed, "thin", repeat, number, person))
    if len(ranked) < patients:
        raise SettingError(
            f"{patients} patients are to train, and a fold has {len(ranked)}.",
            remedy="Set smaller numbers in thinned.patients, or fewer validation persons.",
        )
    parts: dict[str, Part] = dict.fromkeys(mine, "train")
    parts |= dict.fromkeys(ranked[patients:], "test")
    parts |= {table.scans[p].person_id: "validation" for p in fold.validation}
    parts |= {table.scans[p].person_id: "test" for p in fold.test}
    return dict(sorted(parts.items()))


def baseline_rows(cohort: Cohort, question: Question) -> list[dict[str, Any]]:
    """Return what logistic regressions without a network say of the held-out persons.

    `covariates`: what is known of a person without the image (age, sex, `pictures.metadata`);
    `thumbnails`: 40 principal components of the image. Both standardised, fitted on training
    persons; rows as in `arms`' predictions.
    """
    label = {question.positive: 1, question.negative: 0}
    first: dict[str, int] = {}
    for i, scan in enumerate(cohort.scans):
        if scan.condition.diagnosis in label and scan.person_id in cohort.partition:
            first.setdefault(scan.person_id, i)
    chosen = list(first.values())
    truth = np.array([label[cohort.scans[i].condition.diagnosis] for i in chosen])
    parts = [cohort.partition[person] for person in first]
    train = np.array([part == "train" for part in parts])
    rows = []
    for name, values in _seen(cohort, chosen).items():
        scores = _model(name, int(train.sum())).fit(values[train], truth[train])
        for k, score in enumerate(scores.predict_proba(values)[:, 1]):
            if parts[k] in _HELD_OUT:
                rows.append(
                    {"person_id": cohort.scans[chosen[k]].person_id, "part": parts[k], "seed": 0}
                    | {"truth": int(truth[k]), "arm": name, "model": "baseline"}
                    | {"score": float(score)}
                )
    return rows


def _seen(cohort: Cohort, chosen: Sequence[int]) -> dict[str, Any]:
    """Return name -> one row of numbers a person."""
    about = read_metadata(cohort.root)
    scans, told = [cohort.scans[i] for i in chosen], [about[i] for i in chosen] if about else []
    images = open_volumes(cohort)[chosen]
    seen: dict[str, Any] = {
        COVARIATES: metadata_columns(scans, told)[1],
        THUMBNAILS: images.reshape(len(images), -1),
    }
    return {name: values for name, values in seen.items() if values.shape[1]}


def _model(name: str, n: int) -> Any:
    """Return a model that was not fitted yet."""
    reduce = [PCA(min(MOST_COMPONENTS, n - 1), svd_solver="full")] if name == THUMBNAILS else []
    last = LogisticRegression(C=_INVERSE_PENALTY[name], class_weight="balanced", max_iter=5000)
    return make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), *reduce, last)
