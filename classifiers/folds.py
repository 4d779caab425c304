"""The honest estimate of a classifier: folds by person, repeated, with its baselines beside it.

`run_folds` is the way in: every repeat, fold and kind of model is one unit of work, and every
scan is predicted once a repeat by models that never saw its person. This module makes no
statement; the predictions go to `evaluation.classification`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rarescan.classifiers import train
from rarescan.classifiers.calibrate import calibration_error, fit_temperature
from rarescan.classifiers.contract import Device, choose_device
from rarescan.classifiers.examples import Examples, class_pools
from rarescan.classifiers.fold_tables import (
    NETWORK,
    about_cohort,
    about_fits,
    aggregations,
    write_predictions,
)
from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.network import TrainedNetwork
from rarescan.classifiers.package import write_package
from rarescan.classifiers.predict import Prediction, predict
from rarescan.classifiers.spec import ClassifyConfig, require_used_keys
from rarescan.classifiers.splits import Fold, Ints, LabelTable, draw_folds, label_table
from rarescan.classifiers.tables import Seen, fit_baseline, metadata_columns, thumbnails
from rarescan.cohort.contracts import Cohort
from rarescan.cohort.store import open_cohort, open_volumes, read_metadata
from rarescan.files import read_json, write_json
from rarescan.processes import run_parallel
from rarescan.seeds import derive

PREDICTIONS = "predictions.parquet"
ABOUT = "classify.json"
MODEL = "model"
_RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One fit: small and picklable, because it crosses to a worker process."""

    work: Path
    prepared: Path
    config: ClassifyConfig
    kind: Literal["network", "baselines", "model"]
    repeat: int
    fold: int
    device: Device

    @property
    def folder(self) -> Path:
        """Where its result lies."""
        if self.kind == "model":
            return self.work / MODEL
        return self.work / "folds" / f"{self.repeat}-{self.fold}" / self.kind


def run_folds(
    work: Path,
    prepared: Path,
    config: ClassifyConfig,
    *,
    workers: int | None = None,
    device: Device = "auto",
) -> dict[str, Any]:
    """Test a classifier and its baselines on persons whom they have not seen.

    Parameters
    ----------
    work : Path
        Folder of a step. It gets `predictions.parquet` (one row a scan, model and repeat:
        scan_id, item_id, person_id, source, truth, model, repeat, fold, probabilities, abstained,
        uncertainty), `classify.json`, `folds/<repeat>-<fold>/` and `model/`: a network fitted on
        the partition's training persons, stopped and calibrated on its validation persons.
        Finished fits are kept and skipped.
    prepared : Path
        Prepared cohort.
    config : ClassifyConfig
    workers : int, optional
        Processes; all cores by default. Results do not depend on it. One on a GPU.
    device : {"auto", "cpu", "cuda"}

    Returns
    -------
    dict
        What `classify.json` holds; `insufficient` says why there are no predictions.

    Raises
    ------
    SettingError
        A key has no effect beside the others, or a class does not exist.
    InputError
        Persons cannot be divided so that every fold has every class.
    """
    require_used_keys(config)
    cohort = open_cohort(prepared)
    modality = modality_of(cohort, config.modality)
    table = label_table(cohort, config, modality)
    about = about_cohort(table, modality, config)
    if about["insufficient"]:
        write_predictions(work / PREDICTIONS, table, config, [])
        write_json(work / ABOUT, about)
        return about
    folds = [draw_folds(table, config, repeat) for repeat in range(config.repeats)]
    units = [
        Unit(
            work=work, prepared=prepared, config=config, kind=kind, repeat=repeat, fold=fold,
            device=device,
        )
        for repeat in range(config.repeats)
        for fold in range(config.folds)
        for kind in ("network", "baselines")
    ]  # fmt: skip
    final = _final_fold(cohort, table)
    if final is not None:
        units.append(replace(units[0], kind="model"))
    if choose_device(device).type == "cuda":
        workers = 1
    results = run_parallel(run_unit, units, what="train classifiers", workers=workers)
    write_predictions(work / PREDICTIONS, table, config, results)
    about |= about_fits(table, folds, results)
    about["aggregation"] = aggregations(table, results, modality.top)
    about["model"] = MODEL if final is not None else None
    write_json(work / ABOUT, about)
    return about


def run_unit(unit: Unit) -> dict[str, Any]:
    """Return one fit's result, from its folder where it is finished."""
    result = unit.folder / _RESULT
    if not result.exists():
        cohort = open_cohort(unit.prepared)
        table = label_table(cohort, unit.config, modality_of(cohort, unit.config.modality))
        found = _FIT[unit.kind](unit, cohort, table)
        write_json(result, {"kind": unit.kind, "repeat": unit.repeat, "fold": unit.fold, **found})
    stored: dict[str, Any] = read_json(result)
    return stored


def _fit_fold(unit: Unit, cohort: Cohort, table: LabelTable) -> dict[str, Any]:
    fold = draw_folds(table, unit.config, unit.repeat)[unit.fold]
    trained, looks = fit_network(unit.config, cohort, table, fold, unit=unit)
    images = examples_of(cohort, table, fold.test).read()
    scan_ids = [table.scans[p].scan_id for p in fold.test]
    said = predict(trained, images, scan_ids, unit.config)
    plain = replace(trained, temperature=1.0).probabilities(images)
    if unit.repeat == 0:
        # The networks of one repeat are an ensemble that `explain` draws its maps with.
        trained.save(unit.folder)
    return {
        "temperature": trained.temperature,
        "ece_before": calibration_error(plain, table.truth[fold.test]),
        "ece_after": calibration_error(trained.probabilities(images), table.truth[fold.test]),
        "curve": train.as_rows(looks),
        "positions": fold.test.tolist(),
        "predictions": {NETWORK: _plain(said)},
    }


def fit_network(
    config: ClassifyConfig, cohort: Cohort, table: LabelTable, fold: Fold, *, unit: Unit
) -> tuple[TrainedNetwork, list[train.Look]]:
    """Return a network fitted on a fold's training scans and calibrated on its validation scans."""
    settings = replace(
        config.network, seed=derive(config.network.seed, unit.kind, unit.repeat, unit.fold)
    )
    fitted = examples_of(cohort, table, fold.train)
    watched = examples_of(cohort, table, fold.validation)
    trained, looks = train.fit(
        fitted,
        class_pools(fitted, settings.batch_size, len(table.labels.names)),
        settings,
        modality=modality_of(cohort, config.modality),
        device=choose_device(unit.device),
        watched=watched,
    )
    logits = trained.logits(watched.read())
    truth = np.array(watched.labels, dtype=np.int64)
    temperature = fit_temperature(logits, truth, watched.person_ids)
    return replace(trained, temperature=temperature), looks


def examples_of(cohort: Cohort, table: LabelTable, positions: Ints) -> Examples:
    """Return scans of a table as examples that stay in the cohort's memory map."""
    return Examples(
        sources=(open_volumes(cohort),),
        rows=tuple((0, table.rows[p]) for p in positions),
        labels=tuple(int(table.truth[p]) for p in positions),
        person_ids=tuple(table.scans[p].person_id for p in positions),
        classes=table.labels,
    )


def _fit_baselines(unit: Unit, cohort: Cohort, table: LabelTable) -> dict[str, Any]:
    fold = draw_folds(table, unit.config, unit.repeat)[unit.fold]
    seen = seen_of(cohort, table)
    # A baseline stops nowhere and is not calibrated: it may have the validation persons too.
    parts = (np.sort(np.concatenate((fold.train, fold.validation))), fold.test)
    seed = derive(unit.config.network.seed, "baselines", unit.repeat, unit.fold) % 2**32
    n_classes = len(table.labels.names)
    found = {
        name: fit_baseline(name, seen, table.truth, parts, n_classes=n_classes, seed=seed)
        for name in seen.names()
    }
    return {
        "positions": fold.test.tolist(),
        "predictions": {
            name: _plain(Prediction(probabilities=values)) for name, values in found.items()
        },
    }


def seen_of(cohort: Cohort, table: LabelTable) -> Seen:
    """Return what the baselines see of a table's scans."""
    known = read_metadata(cohort.root)
    rows = [known[row] for row in table.rows] if known else []
    return Seen(
        thumbnails=thumbnails(open_volumes(cohort), table.rows),
        metadata=metadata_columns(table.scans, rows)[1],
        sources=tuple(scan.site or "" for scan in table.scans),
    )


def _final_fold(cohort: Cohort, table: LabelTable) -> Fold | None:
    """Return the partition's persons as a fold, where its training persons show every class."""
    parts = {
        part: np.array(
            [
                p
                for p, person in enumerate(table.person_ids)
                if cohort.partition.get(person) == part
            ],
            dtype=np.int64,
        )
        for part in ("train", "validation", "test")
    }
    whole = len(set(table.truth[parts["train"]])) == len(table.labels.names)
    return Fold(**parts) if whole and len(parts["validation"]) else None


def _fit_model(unit: Unit, cohort: Cohort, table: LabelTable) -> dict[str, Any]:
    fold = _final_fold(cohort, table)
    if fold is None:
        raise RuntimeError("the partition has no training persons of every class")
    trained, looks = fit_network(unit.config, cohort, table, fold, unit=unit)
    persons = sorted({table.person_ids[p] for p in (*fold.train, *fold.validation)})
    write_package(unit.folder, trained, unit=table.scans[0].unit, persons=persons)
    return {"temperature": trained.temperature, "curve": train.as_rows(looks), "predictions": {}}


_FIT = {"network": _fit_fold, "baselines": _fit_baselines, "model": _fit_model}


def _plain(said: Prediction) -> dict[str, Any]:
    return {
        "probabilities": said.probabilities.tolist(),
        "uncertainty": None if said.uncertainty is None else said.uncertainty.tolist(),
    }
