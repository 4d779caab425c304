"""What no normal person shows: a detector that has learned normal persons only.

`run_anomaly` is the way in. A function that is handed in (encode and decode) learns to give back
scans of normal persons; what it cannot give back is new to it. What the reader would get wrong:
the threshold comes from normal validation persons alone, nobody abnormal is looked at before the
test, and persons with one abnormal scan are learned from in none of their scans.
"""

import io
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA

from rarescan.classifiers.contract import Labels
from rarescan.classifiers.fold_tables import NETWORK, about_cohort, write_predictions
from rarescan.classifiers.folds import ABOUT, PREDICTIONS, examples_of
from rarescan.classifiers.maps import MAPS
from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.overlay import overlay, views
from rarescan.classifiers.spec import AnomalyConfig, ClassifyConfig, require_used_anomaly
from rarescan.classifiers.splits import Fold, Ints, LabelTable, draw_folds, label_table
from rarescan.classifiers.tables import thumbnails
from rarescan.cohort.contracts import Cohort, FloatArray
from rarescan.cohort.planes import are_planes
from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError, SettingError, nearest
from rarescan.files import read_json, write_atomic, write_json
from rarescan.processes import run_parallel
from rarescan.seeds import derive

Reconstruct = Callable[[FloatArray], FloatArray]
"""Stored images, shape (n, ...), values 0 to 1 -> what is left of them, same shape."""
Learn = Callable[[FloatArray, Path, int], Reconstruct]
"""Images of normal persons, a folder for checkpoints, seed -> the function that gives back."""

LABELS = Labels(names=("normal", "abnormal"))
_COMPONENTS = 20
_FEWEST = 8
_HOTTEST = 4.0
"""Errors this many times the threshold have the hottest colour of a map."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One fold: small and picklable, because it crosses to a worker process."""

    work: Path
    prepared: Path
    classify: ClassifyConfig
    anomaly: AnomalyConfig
    learn: Learn
    fold: int

    @property
    def folder(self) -> Path:
        """Where its result lies."""
        return self.work / "folds" / f"0-{self.fold}"


def run_anomaly(
    work: Path,
    prepared: Path,
    classify: ClassifyConfig,
    anomaly: AnomalyConfig,
    *,
    learn: Learn,
    workers: int | None = None,
) -> dict[str, Any]:
    """Test a detector of abnormal scans on persons whom it has not seen, by folds.

    Parameters
    ----------
    work : Path
        Folder of a step. It gets `predictions.parquet` and `classify.json` as `folds.run_folds`
        writes them, of the classes normal and abnormal, and `maps/`: scan, what was given back,
        where they differ. Beside the detector (`network`) stand 20 principal components of
        thumbnails, learned and scored alike, and the distance from the usual brightness. The
        probability of `abnormal` is error / (error + threshold). Finished folds are kept.
    prepared : Path
        Prepared cohort.
    classify : ClassifyConfig
        Which scans and classes, folds, share of validation persons, seed (`network.seed`).
    anomaly : AnomalyConfig
        Which class is normal; quantile of the threshold.
    learn : callable
        Importable by name.
    workers : int, optional
        Processes; all cores by default.

    Returns
    -------
    dict
        What `classify.json` holds.

    Raises
    ------
    SettingError
        No scan has the label that is called normal, or a key has no effect beside the others.
    InputError
        Too few normal persons to learn from.
    """
    require_used_anomaly(anomaly)
    classify = replace(classify, repeats=1, uncertainty="none", scheme="classes")
    cohort = open_cohort(prepared)
    table = two_classes(cohort, classify, anomaly)
    about = about_cohort(table, modality_of(cohort, classify.modality), classify)
    about |= {"anomaly": asdict(anomaly)}
    results: list[dict[str, Any]] = []
    if not about["insufficient"]:
        units = [
            Unit(work=work, prepared=prepared, classify=classify, anomaly=anomaly, learn=learn,
                 fold=fold)
            for fold in range(classify.folds)
        ]  # fmt: skip
        results = run_parallel(run_unit, units, what="learn normal persons", workers=workers)
        about["thresholds"] = [result["threshold"] for result in results]
    write_predictions(work / PREDICTIONS, table, classify, results)
    write_json(work / ABOUT, about)
    return about


def two_classes(cohort: Cohort, classify: ClassifyConfig, anomaly: AnomalyConfig) -> LabelTable:
    """Return the labelled scans with everything abnormal in one class."""
    table = label_table(cohort, classify, modality_of(cohort, classify.modality))
    names = list(table.labels.names)
    if anomaly.normal not in names:
        raise SettingError(
            f"No scan has the label '{anomaly.normal}'.",
            remedy=f"{nearest(anomaly.normal, names)} Correct anomaly.normal.",
        )
    truth = (table.truth != names.index(anomaly.normal)).astype(np.int64)
    return replace(table, labels=LABELS, truth=truth)


def run_unit(unit: Unit) -> dict[str, Any]:
    """Return one fold's result, from its folder where it is finished."""
    path = unit.folder / "result.json"
    if not path.exists():
        cohort = open_cohort(unit.prepared)
        table = two_classes(cohort, unit.classify, unit.anomaly)
        fold = draw_folds(table, unit.classify, 0)[unit.fold]
        write_json(path, _tested(unit, cohort, table, fold))
    stored: dict[str, Any] = read_json(path)
    return stored


def _tested(unit: Unit, cohort: Cohort, table: LabelTable, fold: Fold) -> dict[str, Any]:
    parts = (of_normal_persons(table, fold.train), of_normal_persons(table, fold.validation))
    learned, held, asked = (examples_of(cohort, table, p).read() for p in (*parts, fold.test))
    seed = derive(unit.classify.network.seed, "anomaly", unit.fold)
    give_back = unit.learn(learned, unit.folder / "codec", seed)
    shutil.rmtree(unit.folder / "codec", ignore_errors=True)
    again = give_back(asked)
    errors = {NETWORK: (error_of(held, give_back(held)), error_of(asked, again))}
    errors |= _baselines(learned, held, asked)
    thresholds = {n: float(np.quantile(h, unit.anomaly.quantile)) for n, (h, _) in errors.items()}
    _draw(unit, table, fold, asked, again, thresholds[NETWORK])
    return {
        "kind": NETWORK, "repeat": 0, "fold": unit.fold, "positions": fold.test.tolist(),
        "threshold": thresholds[NETWORK],
        "predictions": {
            name: {"probabilities": _shares(found, thresholds[name]).tolist(), "uncertainty": None}
            for name, (_, found) in errors.items()
        },
    }  # fmt: skip


def of_normal_persons(table: LabelTable, positions: Ints) -> Ints:
    """Return the positions of persons all of whose scans are normal."""
    ill = {table.person_ids[p] for p in np.flatnonzero(table.truth)}
    found = np.array([p for p in positions if table.person_ids[p] not in ill], dtype=np.int64)
    if len(found) < _FEWEST:
        raise InputError(
            f"A fold has {len(found)} scans of persons who are normal in all their scans; "
            f"{_FEWEST} are needed.",
            remedy="Set fewer classify.folds, or add normal persons.",
        )
    return found


def error_of(images: FloatArray, again: FloatArray) -> FloatArray:
    """Return each image's mean absolute difference where it shows something, shape (n,)."""
    seen = images > 0
    axes = tuple(range(1, images.ndim))
    gap = np.where(seen, np.abs(images - again), 0).sum(axes)
    errors: FloatArray = gap / np.maximum(seen.sum(axes), 1)
    return errors


def _baselines(
    learned: FloatArray, held: FloatArray, asked: FloatArray
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return name -> errors of validation and of tested scans."""
    small = [thumbnails(images, range(len(images))) for images in (learned, held, asked)]
    components = PCA(min(_COMPONENTS, len(learned) - 1), svd_solver="full").fit(small[0])
    left = [s - components.inverse_transform(components.transform(s)) for s in small[1:]]
    usual = float(learned.mean())
    bright = [np.abs(i.mean(tuple(range(1, i.ndim))) - usual) for i in (held, asked)]
    return {
        "components_of_thumbnails": ((left[0] ** 2).mean(1), (left[1] ** 2).mean(1)),
        "brightness": (bright[0], bright[1]),
    }


def _shares(errors: FloatArray, threshold: float) -> FloatArray:
    abnormal = errors / np.maximum(errors + threshold, 1e-12)
    return np.stack((1 - abnormal, abnormal), axis=1)


def _draw(
    unit: Unit,
    table: LabelTable,
    fold: Fold,
    images: FloatArray,
    again: FloatArray,
    threshold: float,
) -> None:
    """Write a scan of each class, drawn by chance: as it is, as given back, the difference."""
    for label, name in enumerate(LABELS.names):
        own = np.flatnonzero(table.truth[fold.test] == label)
        if not len(own):
            continue
        row = min(own, key=lambda r: derive(unit.fold, "map", table.scans[fold.test[r]].scan_id))
        gap = np.where(images[row] > 0, np.abs(images[row] - again[row]), 0)
        hot = np.clip(gap / (_HOTTEST * threshold + 1e-12), 0, 1).astype(np.float32)
        heat: FloatArray = hot.mean(-1) if are_planes(hot.shape) else hot
        pairs = zip(views(images[row], heat), views(again[row], heat), strict=True)
        strips = [
            np.concatenate([overlay(i, None), overlay(a, None), overlay(i, h)], axis=1)
            for (i, h), (a, _) in pairs
        ]
        sheet = np.zeros((sum(map(len, strips)), max(s.shape[1] for s in strips), 3), np.uint8)
        for strip, top in zip(strips, np.cumsum([0, *map(len, strips)]), strict=False):
            sheet[top : top + len(strip), : strip.shape[1]] = strip
        stream = io.BytesIO()
        Image.fromarray(sheet).save(stream, "PNG")
        error = float(error_of(images[row : row + 1], again[row : row + 1])[0])
        caption = f"{unit.fold + 1}_{name}_error_{error / max(threshold, 1e-12):.2f}_thresholds"
        write_atomic(unit.work / MAPS / f"{caption}.png", stream.getvalue())
